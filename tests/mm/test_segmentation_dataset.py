from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_makers import save
from PIL import Image

pytest.importorskip("mmseg")

from mm.segmentation_data import make_scenes  # noqa: E402

from codemae.data.images import ImageError  # noqa: E402
from codemae.data.masks import MaskError  # noqa: E402
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
    from codemae.data.index import open_index, write_index
    from codemae.data.statistics import read_statistics

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
    for number in (0, 2):
        (tmp_path / f"images/opt/train{number}.png").write_bytes(b"")
    with pytest.raises(SegmentationDataError, match="of 4 images or masks cannot be read, more than 1 %"):
        for place in range(3):
            training[place]


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
