from pathlib import Path

import numpy as np
import pytest
import torch
from data_makers import picture, save, statistics

from codemae.data.augmentation import AugmentationConfig, ClassificationImages, ShuffledBatches
from codemae.data.index import Index, open_index, write_index

SIDE = 16


@pytest.fixture
def index(tmp_path: Path) -> Index:
    rows = []
    for item in range(3):
        save(tmp_path / f"o{item}.png", picture(item, SIDE))
        save(tmp_path / f"s{item}.png", picture(item, SIDE)[..., 0])
        rows.append(
            {
                "source": "made",
                "split": "train",
                "group": str(item),
                "optical": f"o{item}.png",
                "sar": f"s{item}.png",
                "label": item,
            }
        )
    write_index(tmp_path / "index", rows, statistics("made"), tmp_path)
    return open_index(tmp_path / "index")


def images(index: Index, size: int, train: bool, **config: object) -> ClassificationImages:
    augmentation = AugmentationConfig(**config)  # type: ignore[arg-type]
    labels = torch.arange(3)
    return ClassificationImages(
        index, ("optical", "sar"), size, index.rows, labels, augmentation, train=train, seed=3
    )


def standardised(pixels: np.ndarray, mean: list[float], std: list[float]) -> np.ndarray:
    return np.moveaxis((pixels / 255 - np.array(mean)) / np.array(std), -1, 0)


@pytest.mark.parametrize(("config", "side"), [({"center_crop": 8}, 8), ({"eval_crop": 0.75}, 12), ({}, 16)])
def test_what_is_evaluated_is_the_middle_cut_out_and_standardised(
    index: Index, config: dict[str, object], side: int
) -> None:
    found, label = images(index, side, False, **config)[0, 1]
    start = (SIDE - side) // 2
    cut = picture(1, SIDE)[start : start + side, start : start + side]
    expected = standardised(cut, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    np.testing.assert_allclose(found["optical"].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found["sar"].numpy(), standardised(cut[..., :1], [0.3], [0.1]), atol=1e-5)
    assert label == 1


def test_both_modalities_get_one_crop_and_each_epoch_another(index: Index) -> None:
    dataset = images(index, 8, True, scale=[0.2, 0.6], horizontal_flip=0.5)
    seen = []
    for epoch in range(4):
        sides, _ = dataset[epoch, 0]
        optical = sides["optical"][0] * 0.2 + 0.4
        sar = sides["sar"][0] * 0.1 + 0.3
        torch.testing.assert_close(optical, sar, atol=1e-5, rtol=0)
        seen.append(optical)
        torch.testing.assert_close(dataset[epoch, 0][0]["optical"], sides["optical"], atol=0, rtol=0)
    assert all(not torch.equal(seen[0], other) for other in seen[1:])


def test_draws_leave_the_global_generators_alone_and_do_not_depend_on_them(index: Index) -> None:
    strong = {"rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 1.0}
    dataset = images(index, 16, True, **strong)
    torch.manual_seed(0)
    np.random.seed(0)
    first = dataset[0, 0][0]["optical"]
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    assert drawn == (torch.rand(1), np.random.rand())
    assert torch.equal(dataset[0, 0][0]["optical"], first)
    plain = images(index, 16, False)[0, 0][0]["optical"]
    assert not torch.equal(first, plain)


def test_every_epoch_shows_each_sample_once_in_an_order_of_its_own() -> None:
    batches = list(ShuffledBatches(6, 3, 2, seed=0))
    assert len(batches) == len(ShuffledBatches(6, 3, 2, seed=0)) == 4
    orders = [[place for batch in batches[2 * e : 2 * e + 2] for _, place in batch] for e in (0, 1)]
    assert [sorted(order) for order in orders] == [[*range(6)]] * 2
    assert orders[0] != orders[1]
    assert {epoch for epoch, _ in batches[0]} == {0} and {epoch for epoch, _ in batches[3]} == {1}


def test_processes_share_each_batch_and_a_resumed_run_starts_where_it_stopped() -> None:
    whole = list(ShuffledBatches(14, 4, 3, seed=1))
    parts = [list(ShuffledBatches(14, 4, 3, seed=1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    for start in (0, 2, 3, 7, 9):
        rest = ShuffledBatches(14, 4, 3, seed=1, start=start)
        assert list(rest) == whole[start:] and len(rest) == 9 - start
    with pytest.raises(ValueError, match="4 images has no equal parts for 3 processes.*batch_size 3"):
        ShuffledBatches(14, 4, 3, seed=1, world_size=3)
