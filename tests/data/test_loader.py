import pytest
import torch
from data_makers import make_index

from codemae.data.dataset import PairDataset
from codemae.data.index import open_index
from codemae.data.loader import make_loader
from codemae.data.sampler import PretrainSampler
from codemae.data.views import View, Views

VIEWS = Views(
    {"optical": View(modality="optical", size=16), "sar": View(modality="sar", size=16)}, num_patches=4
)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(make_index(tmp_path_factory.mktemp("loader"), paired=18, optical=10, sar=7, size=24))


def stream(index, **options):
    return make_loader(PairDataset(index, VIEWS, seed=1), PretrainSampler(index, 8, seed=1), **options)


def joined(batches, get):
    return torch.cat([get(batch) for batch in batches])


@pytest.mark.parametrize(("world", "micro"), [(1, 4), (2, 4), (2, 2), (8, 1)])
def test_samples_crops_and_masks_do_not_depend_on_world_size_or_accumulation(index, world, micro):
    whole = list(stream(index, epochs=2))
    assert len(whole) == 6
    parts = [
        list(stream(index, epochs=2, rank=r, world_size=world, batch_per_rank=micro)) for r in range(world)
    ]
    accumulation = 8 // world // micro
    assert {len(part) for part in parts} == {6 * accumulation}
    for step, batch in enumerate(whole):
        mine = [part[step * accumulation + i] for part in parts for i in range(accumulation)]
        assert {piece.paired for piece in mine} == {batch.paired}
        assert {piece.epoch for piece in mine} == {batch.epoch}
        for name in ("optical", "sar"):
            assert torch.equal(joined(mine, lambda b: b.rows[name]), batch.rows[name])  # noqa: B023
            assert torch.equal(joined(mine, lambda b: b.crops[name]), batch.crops[name])  # noqa: B023
            assert torch.equal(joined(mine, lambda b: b.images[name]), batch.images[name])  # noqa: B023
        assert torch.equal(joined(mine, lambda b: b.mask_noise), batch.mask_noise)


def test_stream_begins_anywhere_and_ignores_the_number_of_workers(index):
    whole = list(stream(index, epochs=3))
    rest = list(stream(index, epochs=3, start_step=4, num_workers=2))
    assert len(rest) == 5
    for late, early in zip(rest, whole[4:], strict=True):
        assert torch.equal(late.images["optical"], early.images["optical"])
        assert torch.equal(late.mask_noise, early.mask_noise)
    assert [batch.epoch for batch in whole] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert list(stream(index, total_steps=5, start_step=5)) == []
    assert len(stream(index, total_steps=5, start_step=1, batch_per_rank=2)) == 16


def test_epochs_differ(index):
    first, second = (
        torch.cat([b.crops["optical"] for b in stream(index, epochs=2) if b.epoch == epoch])
        for epoch in (0, 1)
    )
    assert not torch.equal(first, second)


def test_batch_that_cannot_be_dealt_is_refused(index):
    with pytest.raises(ValueError, match="not a multiple of 3 processes x 2 samples"):
        stream(index, world_size=3, batch_per_rank=2)


def test_replaced_samples_are_added_up_across_workers(tmp_path):
    index = open_index(make_index(tmp_path, paired=16))
    (tmp_path / "images/sar/paired3.png").write_bytes(b"")
    loader = make_loader(
        PairDataset(index, VIEWS, seed=0), PretrainSampler(index, 4, seed=0), epochs=2, num_workers=2
    )
    for batch in loader:
        assert 3 not in batch.rows["sar"].tolist()
    assert loader.samples == 32
    assert len(loader.bad) >= 2
    assert {sentence.split()[0] for sentence in loader.bad} == {"row=3"}
