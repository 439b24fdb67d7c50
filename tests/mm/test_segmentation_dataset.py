from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_makers import save
from PIL import Image
from torch.utils.data import DataLoader

pytest.importorskip("mmseg")

from mm.segmentation_data import make_scenes  # noqa: E402

from codemae.data.images import ImageError  # noqa: E402
from codemae.data.index import open_index, write_index  # noqa: E402
from codemae.data.masks import MaskError  # noqa: E402
from codemae.data.statistics import read_statistics  # noqa: E402
from codemae.mm.segmentation import IndexSegmentation, SegmentationDataError  # noqa: E402

pytestmark = pytest.mark.mm


def dataset(index: Path, **kwargs: Any) -> IndexSegmentation:
    return IndexSegmentation(**{"index": str(index), "mask_values": [0, 255], **kwargs})


def stored(index: Path, path: str) -> np.ndarray:
    return np.asarray(Image.open(index.parent / "images" / path)).astype(np.float64)


def test_both_modalities_are_stacked_and_standardised_by_their_own_statistics(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    rows = dataset(index, modality="both", pipeline=[{"type": "StandardiseImage"}])
    sample = rows[1]
    assert len(rows) == 4 and sample["img"].shape == (64, 64, 6) and sample["img"].dtype == np.float32
    optical, sar = stored(index, "opt/train1.png"), stored(index, "sar/train1.png")
    for channel, (mean, std) in enumerate([(0.4, 0.2), (0.5, 0.25), (0.6, 0.3)]):
        wanted = (optical[..., channel] / 255 - mean) / std
        np.testing.assert_allclose(sample["img"][..., channel], wanted, atol=1e-5)
    for channel in (3, 4, 5):
        np.testing.assert_allclose(sample["img"][..., channel], (sar / 255 - 0.3) / 0.1, atol=1e-5)
    np.testing.assert_array_equal(sample["gt_seg_map"], stored(index, "mask/train1.png") / 255)


def test_metainfo_says_how_images_were_standardised(tmp_path: Path) -> None:
    facts = dataset(make_scenes(tmp_path), modality="sar").metainfo["codemae"]
    assert facts["modality"] == "sar" and facts["sources"] == ["made"]
    assert facts["statistics"]["sar"]["mean"] == [0.3] and set(facts["statistics"]) == {"sar"}


def test_ignored_values_and_colours(tmp_path: Path) -> None:
    index = make_scenes(tmp_path, values=[[255, 255, 255], [255, 0, 0]])
    rows = dataset(index, classes=["ground"], mask_values=[[255, 255, 255]], ignore_values=[[255, 0, 0]])
    mask = rows.read_mask(0)
    red = stored(index, "mask/train0.png")[..., 1] == 0
    assert set(np.unique(mask)) == {0, 255} and np.array_equal(mask == 255, red)


def test_a_window_is_read_from_image_and_mask(tmp_path: Path) -> None:
    whole = make_scenes(tmp_path)
    paths = {"optical": "opt/train3.png", "mask": "mask/train3.png"}
    place = {"x": 16, "y": 8, "width": 24, "height": 40}
    row = {"source": "made", "split": "train", "group": "a", **paths, **place}
    write_index(tmp_path / "cut", [row], read_statistics(whole), tmp_path / "images")
    sample = dataset(tmp_path / "cut").read(0)
    assert len(open_index(tmp_path / "cut")) == 1
    np.testing.assert_allclose(sample["img"], stored(whole, paths["optical"])[8:48, 16:40], atol=1e-3)
    np.testing.assert_array_equal(sample["gt_seg_map"], stored(whole, paths["mask"])[8:48, 16:40] / 255)


def test_a_share_of_the_rows_is_drawn_by_its_seed(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    one, again = (dataset(index, fraction=0.5, fraction_seed=3).rows.tolist() for _ in range(2))
    assert one == again and len(one) == 2 and set(one) <= {0, 1, 2, 3}
    drawn = {tuple(dataset(index, fraction=0.5, fraction_seed=seed).rows.tolist()) for seed in range(8)}
    assert len(drawn) > 1
    with pytest.raises(SegmentationDataError, match="fraction is 0"):
        dataset(index, fraction=0)


def test_an_unknown_value_stops_training_and_is_named(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    mask = stored(index, "mask/train2.png").astype(np.uint8)
    mask[5, 7] = 9
    save(tmp_path / "images/mask/train2.png", mask)
    with pytest.raises(MaskError, match=r"train2.png holds the values \[9\].*mask_values"):
        dataset(index)[2]


def test_a_mask_of_another_size_stops_training_and_is_named(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    save(tmp_path / "images/mask/train2.png", np.zeros((32, 64), np.uint8))
    with pytest.raises(SegmentationDataError, match="train2.png.*optical 64 x 64, mask 32 x 64"):
        dataset(index)[2]


def test_an_unreadable_image_is_replaced_in_training_and_an_error_in_a_test(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    (tmp_path / "images/opt/train1.png").write_bytes(b"\x89PNG broken")
    record = tmp_path / "run" / "bad_samples.txt"
    training = dataset(index, bad_samples=str(record))
    assert training[1]["row"] != 1
    training[1]
    assert "opt/train1.png" in record.read_text() and len(record.read_text().splitlines()) == 1
    with pytest.raises(ImageError, match="train1.png"):
        dataset(index, test_mode=True)[1]


def many_rows(folder: Path, broken: Sequence[int], count: int = 300) -> IndexSegmentation:
    """Rows of one image, but for those whose image cannot be read."""
    index = make_scenes(folder, side=16)
    (folder / "images/opt/broken.png").write_bytes(b"\x89PNG broken")
    sides = {"sar": "sar/train0.png", "mask": "mask/train0.png"}
    rows = [
        {"source": "made", "split": "train", "group": str(number), **sides}
        | {"optical": "opt/broken.png" if number in broken else "opt/train0.png"}
        for number in range(count)
    ]
    write_index(folder / "many", rows, read_statistics(index), folder / "images")
    return dataset(folder / "many", classes=["a", "b"])


def read_all(rows: IndexSegmentation, workers: int) -> list[int]:
    torch.manual_seed(0)
    np.random.seed(0)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=10, num_workers=workers, collate_fn=numbers_of)
    batches: Any = iter(loader)
    try:
        return [row for batch in batches for row in batch]
    finally:
        if workers:
            # Left to the garbage collection after an error, the processes are waited for in vain.
            batches._shutdown_workers()


def numbers_of(samples: list[dict[str, Any]]) -> list[int]:
    return [sample["row"] for sample in samples]


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_one_unreadable_image_in_a_hundred_ends_training(tmp_path: Path, workers: int) -> None:
    # Six of 300 in all, three of 150 in each of two processes.
    rows = many_rows(tmp_path, broken=(21, 31, 81, 91, 221, 231))
    with pytest.raises(
        SegmentationDataError, match=r"\d of [12]\d\d images or masks cannot be read, more than 1%"
    ):
        read_all(rows, workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_fewer_are_replaced(tmp_path: Path, workers: int) -> None:
    read = read_all(many_rows(tmp_path, broken=(221, 231)), workers)
    assert len(read) == 300 and not {221, 231} & set(read)


def test_stated_levels_stand_in_for_the_statistics_of_the_index(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    levels = {"optical": {"mean": [73.10, 79.13, 75.95], "std": [39.29, 35.37, 34.07]}}
    rows = dataset(index, modality="both", levels=levels, pipeline=[{"type": "StandardiseImage"}])
    optical, sar = stored(index, "opt/train1.png"), stored(index, "sar/train1.png")
    image = rows[1]["img"]
    for channel, (mean, std) in enumerate(zip(*levels["optical"].values(), strict=True)):
        np.testing.assert_allclose(image[..., channel], (optical[..., channel] - mean) / std, atol=1e-4)
    np.testing.assert_allclose(image[..., 3], (sar / 255 - 0.3) / 0.1, atol=1e-5)
    facts = rows.metainfo["codemae"]["statistics"]
    assert facts["optical"]["mean"] == pytest.approx([73.10 / 255, 79.13 / 255, 75.95 / 255], abs=1e-6)
    assert facts["optical"]["std"][1] == pytest.approx(35.37 / 255, abs=1e-6) and facts["sar"]["mean"] == [
        0.3
    ]
    with pytest.raises(SegmentationDataError, match="levels states 1 means and 1 deviations of optical"):
        dataset(index, levels={"optical": {"mean": [3.0], "std": [1.0]}})


def test_config_and_index_that_do_not_fit(tmp_path: Path) -> None:
    index = make_scenes(tmp_path)
    with pytest.raises(SegmentationDataError, match="2 classes .* but 3 mask_values"):
        dataset(index, mask_values=[0, 1, 2])
    with pytest.raises(SegmentationDataError, match="have 3 channels, the config's encoder takes 4"):
        dataset(index, channels={"optical": 4, "sar": 3})
    with pytest.raises(SegmentationDataError, match="optical, sar or both"):
        dataset(index, modality="radar")
    (tmp_path / "plain").mkdir()
    from data_makers import make_index

    with pytest.raises(SegmentationDataError, match="has sar and mask"):
        dataset(make_index(tmp_path / "plain", paired=2), classes=["a", "b"], modality="sar")
