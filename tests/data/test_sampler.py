from collections import Counter

import numpy as np
import pytest
from data_makers import make_index

from codemae.data.index import open_index
from codemae.data.sampler import PretrainSampler


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """19 pairs, 13 optical and 6 SAR images."""
    return open_index(make_index(tmp_path_factory.mktemp("mixed"), paired=19, optical=13, sar=6, size=8))


def epoch_of(sampler, epoch):
    return [sampler.batch(epoch, step) for step in range(sampler.steps_per_epoch)]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_together_see_the_global_batch_in_its_order(mixed, world, accumulation):
    whole = PretrainSampler(mixed, 8, seed=3)
    for step in range(whole.steps_per_epoch):
        dealt = [
            draw
            for rank in range(world)
            for micro in PretrainSampler(mixed, 8, seed=3).rank_slice(1, step, rank, world, accumulation)
            for draw in micro
        ]
        assert dealt == whole.batch(1, step)


def test_steps_are_wholly_paired_or_wholly_unpaired_and_equal_on_all_processes(mixed):
    sampler = PretrainSampler(mixed, 4, seed=0)
    assert (sampler.paired_steps, sampler.unpaired_steps, sampler.steps_per_epoch) == (4, 3, 7)
    kinds = []
    for batch in epoch_of(sampler, 0):
        assert len(batch) == 4
        assert len({draw.paired for draw in batch}) == 1
        kinds.append(batch[0].paired)
    assert Counter(kinds) == {True: 4, False: 3}
    orders = {tuple(sampler.is_paired(epoch, step) for step in range(7)) for epoch in range(20)}
    assert len(orders) > 5


def test_paired_rows_come_once_and_unpaired_ones_recycle_the_shorter_list(mixed):
    sampler = PretrainSampler(mixed, 1, seed=5)
    draws = [draw for batch in epoch_of(sampler, 2) for draw in batch]
    paired = [draw for draw in draws if draw.paired]
    assert sorted(draw.optical_row for draw in paired) == mixed.paired_rows.tolist()
    assert all(draw.optical_row == draw.sar_row for draw in paired)
    loose = [draw for draw in draws if not draw.paired]
    assert sorted(draw.optical_row for draw in loose) == mixed.optical_only_rows.tolist()
    sar = Counter(draw.sar_row for draw in loose)
    assert set(sar) == set(mixed.sar_only_rows.tolist())
    # 13 optical rows against 6 SAR rows: two rounds and one more.
    assert sorted(sar.values()) == [2, 2, 2, 2, 2, 3]
    assert len({(draw.sar_row, draw.repeat) for draw in loose}) == 13


def test_the_two_unpaired_lists_are_shuffled_independently(tmp_path):
    index = open_index(make_index(tmp_path, optical=40, sar=40, size=4))
    sampler = PretrainSampler(index, 40, seed=0)
    orders = np.array([[(d.optical_row, d.sar_row) for d in sampler.batch(epoch, 0)] for epoch in range(30)])
    same_partner = (orders[..., 0] == orders[..., 1] - 40).mean()
    # By chance one in forty meets the row of its own number; 1200 meetings.
    assert same_partner < 0.05
    assert len({tuple(order) for order in orders[..., 0].tolist()}) == 30


def test_any_step_can_be_asked_for_in_any_order(mixed):
    forward = [epoch_of(PretrainSampler(mixed, 4, seed=1), epoch) for epoch in range(3)]
    sampler = PretrainSampler(mixed, 4, seed=1)
    for epoch, step in ((2, 6), (0, 0), (1, 3), (2, 0), (0, 5)):
        assert sampler.batch(epoch, step) == forward[epoch][step]
    assert forward[0] != forward[1]
    assert epoch_of(PretrainSampler(mixed, 4, seed=2), 0) != forward[0]


def test_repeats_stand_together_and_are_numbered(mixed):
    sampler = PretrainSampler(mixed, 6, seed=0, use="paired", repeats=3)
    assert sampler.steps_per_epoch == 9
    batch = sampler.batch(0, 0)
    assert [draw.repeat for draw in batch] == [0, 1, 2, 0, 1, 2]
    assert len({draw.optical_row for draw in batch}) == 2
    unpaired = PretrainSampler(mixed, 2, seed=0, use="unpaired", repeats=2)
    keys = [(d.optical_row, d.sar_row, d.repeat) for batch in epoch_of(unpaired, 0) for d in batch]
    assert len({(sar, repeat) for _, sar, repeat in keys}) == len(keys) == 26


def test_one_modality_uses_every_row_that_has_it(mixed):
    sampler = PretrainSampler(mixed, 1, seed=0, modalities=("sar",))
    draws = [draw for batch in epoch_of(sampler, 0) for draw in batch]
    assert sorted(draw.sar_row for draw in draws) == mixed.rows_with("sar").tolist()
    assert {(draw.optical_row, draw.paired) for draw in draws} == {(-1, False)}


def test_paired_images_stand_in_for_a_side_without_unpaired_ones(tmp_path):
    index = open_index(make_index(tmp_path, paired=3, optical=7, size=4))
    draws = [d for batch in epoch_of(PretrainSampler(index, 1, seed=0, use="unpaired"), 0) for d in batch]
    assert sorted(draw.optical_row for draw in draws) == index.optical_only_rows.tolist()
    assert {draw.sar_row for draw in draws} == set(index.paired_rows.tolist())


def test_batches_that_cannot_be_filled_or_dealt_are_refused(mixed, tmp_path):
    with pytest.raises(
        ValueError, match="13 unpaired samples do not fill a batch of 16; use a global batch of at most 13"
    ):
        PretrainSampler(mixed, 16, seed=0)
    with pytest.raises(ValueError, match="cannot be dealt to 3 processes"):
        PretrainSampler(mixed, 8, seed=0).rank_slice(0, 0, 0, 3)
    with pytest.raises(IndexError, match="not among the 7 steps"):
        PretrainSampler(mixed, 4, seed=0).batch(0, 7)
    optical = open_index(make_index(tmp_path, optical=3, size=4))
    with pytest.raises(ValueError, match="no sar image"):
        PretrainSampler(optical, 1, seed=0)
    with pytest.raises(ValueError, match="no sample of the wanted kind"):
        PretrainSampler(optical, 1, seed=0, use="paired")
