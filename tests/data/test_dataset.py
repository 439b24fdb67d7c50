import numpy as np
import pytest
import torch
from data_makers import make_index, picture, save, save_geotiff, statistics
from PIL import Image

from codemae.data.dataset import Draw, PairDataset
from codemae.data.index import IndexFileError, open_index, write_index
from codemae.data.randomness import counter_rng
from codemae.data.statistics import IndexStatistics, Scaling, SourceStatistics
from codemae.data.views import View, Views

VIEWS = Views(
    {"optical": View(modality="optical", size=16), "sar": View(modality="sar", size=16)}, num_patches=16
)


def slow_crop(view, height, width, rng):
    """Random resized crop from its published description, in plain Python."""
    numbers = rng.random((10, 4)).tolist()
    flips = rng.random(2).tolist()
    for a, b, c, d in numbers:
        area = (view.scale[0] * (1 - a) + view.scale[1] * a) * height * width
        ratio = view.ratio[0] ** (1 - b) * view.ratio[1] ** b
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            return int(c * (height - h + 1)), int(d * (width - w + 1)), h, w, flips[0] < view.horizontal_flip
    raise AssertionError("the sizes of this test always fit within ten draws")


def slow_image(path, box, flip, size, window=None):
    image = Image.open(path)
    if window:
        image = image.crop((window[0], window[1], window[0] + window[2], window[1] + window[3]))
    top, left, h, w = box
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.BICUBIC)
    image = image.transpose(Image.FLIP_LEFT_RIGHT) if flip else image
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def test_pair_shares_the_crop_that_a_slow_recomputation_finds(tmp_path):
    index = open_index(make_index(tmp_path, paired=6, size=40))
    dataset = PairDataset(index, VIEWS, seed=9)
    draws = [Draw(3, 0, row, row, True) for row in range(6)]
    batch = dataset.collate(dataset.__getitems__(draws))
    flips = set()
    for row in range(6):
        *box, flip = slow_crop(VIEWS["optical"], 40, 40, counter_rng(9, 3, 0, row, "crop:pair"))
        flips.add(flip)
        for name, folder in (("optical", "opt"), ("sar", "sar")):
            assert batch.crops[name][row].tolist() == [*box, flip]
            expected = slow_image(tmp_path / "images" / folder / f"paired{row}.png", box, flip, 16)
            assert np.array_equal(batch.images[name][row].numpy(), expected)
        noise = counter_rng(9, 3, 0, row, "mask").random(16, dtype=np.float32)
        assert np.array_equal(batch.mask_noise[row].numpy(), noise)
    assert flips == {True, False}
    assert batch.source_sizes["sar"].tolist() == [[40, 40]] * 6
    assert batch.images["sar"].dtype == torch.uint8
    assert batch.paired and batch.epoch == 3 and not batch.bad


def test_unpaired_sides_are_cropped_independently(tmp_path):
    index = open_index(make_index(tmp_path, optical=30, sar=30, size=40))
    dataset = PairDataset(index, VIEWS, seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, row, 30 + row, False)] for row in range(30)])
    crops = [batch.crops[name][:, :4].numpy() for name in ("optical", "sar")]
    assert (crops[0] == crops[1]).all(axis=1).sum() == 0
    agreeing_flips = (batch.crops["optical"][:, 4] == batch.crops["sar"][:, 4]).sum().item()
    assert 5 <= agreeing_flips <= 25


def test_crops_cover_the_asked_share_of_the_image(tmp_path):
    index = open_index(make_index(tmp_path, optical=1, size=200))
    view = View(modality="optical", size=4, scale=(0.3, 0.6))
    dataset = PairDataset(index, Views({"optical": view}), seed=0)
    crops = np.array([dataset[Draw(epoch, 0, 0, -1, False)].crops["optical"] for epoch in range(300)])
    share = crops[:, 2] * crops[:, 3] / 200**2
    ratio = crops[:, 3] / crops[:, 2]
    assert share.min() > 0.29 and share.max() < 0.61
    # Uniform on 0.3..0.6 has mean 0.45 and standard error 0.005 over 300 draws.
    assert abs(share.mean() - 0.45) < 0.02
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert abs(np.log(ratio).mean()) < 0.04


def test_crop_of_an_image_too_long_for_any_ratio_is_central(tmp_path):
    save(tmp_path / "long.png", picture(0, (10, 100)))
    row = {"source": "a", "split": "train", "group": "g", "optical": "long.png"}
    write_index(tmp_path / "index", [row], statistics("a"), tmp_path)
    view = View(modality="optical", size=8, scale=(1.0, 1.0), horizontal_flip=0)
    dataset = PairDataset(open_index(tmp_path / "index"), Views({"optical": view}), seed=0)
    assert dataset[Draw(0, 0, 0, -1, False)].crops["optical"] == (0, 43, 10, 13, 0)


def test_windows_are_crops_of_their_tile(tmp_path):
    scene = picture(0, 96)
    save(tmp_path / "opt.png", scene)
    save(tmp_path / "sar.png", picture(1, 96, 1))
    windows = [(x, y) for y in (0, 32, 64) for x in (0, 32, 64)]
    rows = [
        {"source": "a", "split": "train", "group": "scene", "optical": "opt.png", "sar": "sar.png"}
        | {"x": x, "y": y, "width": 32, "height": 32}
        for x, y in windows
    ]
    write_index(tmp_path / "index", rows, statistics("a"), tmp_path)
    dataset = PairDataset(open_index(tmp_path / "index"), VIEWS, seed=0)
    for row, (x, y) in enumerate(windows):
        sample = dataset[Draw(0, 0, row, row, True)]
        top, left, h, w, flip = map(int, sample.crops["optical"])
        expected = slow_image(tmp_path / "opt.png", (top, left, h, w), flip, 16, (x, y, 32, 32))
        assert np.array_equal(sample.images["optical"], expected)
        assert sample.sizes["sar"] == (32, 32)


def test_views_of_several_sizes_and_groups(tmp_path):
    views = Views(
        {
            "optical": View(modality="optical", size=16),
            "sar": View(modality="sar", size=16),
            "optical_again": View(modality="optical", size=8, crop_group="again", vertical_flip=0.5),
        }
    )
    dataset = PairDataset(open_index(make_index(tmp_path, paired=8, size=32)), views, seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, row, row, True)] for row in range(8)])
    assert torch.equal(batch.crops["optical"], batch.crops["sar"])
    assert not torch.equal(batch.crops["optical"][:, :4], batch.crops["optical_again"][:, :4])
    assert batch.images["optical_again"].shape == (8, 3, 8, 8)
    assert set(batch.crops["optical_again"][:, 4].tolist()) > {2.0}
    assert batch.mask_noise.shape == (8, 0)
    assert batch.normalised("optical_again").shape == (8, 3, 8, 8)


def test_each_sample_is_standardised_by_its_own_source(tmp_path):
    rows = []
    for place, source in enumerate(("a", "b")):
        save(tmp_path / f"{source}.png", picture(place, 16, 1))
        rows.append({"source": source, "split": "train", "group": source, "sar": f"{source}.png"})
    facts = IndexStatistics(
        sources={
            "a": {"sar": SourceStatistics(channels=1, mean=(0.2,), std=(0.5,))},
            "b": {"sar": SourceStatistics(channels=1, mean=(0.7,), std=(0.1,))},
        }
    )
    write_index(tmp_path / "index", rows, facts, tmp_path)
    view = View(modality="sar", size=16, scale=(1, 1), ratio=(1, 1), horizontal_flip=0)
    dataset = PairDataset(open_index(tmp_path / "index"), Views({"sar": view}), seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, -1, row, False)] for row in (0, 1)])
    for place, (mean, std) in enumerate(((0.2, 0.5), (0.7, 0.1))):
        expected = (picture(place, 16, 1) / 255 - mean) / std
        np.testing.assert_allclose(batch.normalised("sar")[place, 0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.unit("sar")[place, 0], picture(place, 16, 1) / 255, rtol=1e-6)


def test_nodata_is_zero_after_standardising_and_counted(tmp_path):
    power = np.random.default_rng(0).gamma(1, 0.1, (16, 16, 1)).astype(np.float32)
    power[3:5, 6:10] = np.nan
    power[0, 0] = np.inf
    power[10, 10] = -9999
    save_geotiff(tmp_path / "s.tif", power, nodata=-9999)
    facts = IndexStatistics(
        sources={
            "a": {
                "sar": SourceStatistics(
                    channels=1, mean=(0.6,), std=(0.2,), scaling=Scaling("db", -30, 0), pixels="float32"
                )
            }
        }
    )
    write_index(
        tmp_path / "index", [{"source": "a", "split": "t", "group": "g", "sar": "s.tif"}], facts, tmp_path
    )
    view = View(modality="sar", size=16, scale=(1, 1), ratio=(1, 1), horizontal_flip=0)
    dataset = PairDataset(open_index(tmp_path / "index"), Views({"sar": view}), seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, -1, 0, False)]])
    gone = ~np.isfinite(power[..., 0]) | (power[..., 0] == -9999)
    assert batch.nonfinite == gone.sum() == 10
    normalised = batch.normalised("sar")[0, 0].numpy()
    assert (normalised[gone] == 0).all()
    decibels = 10 * np.log10(np.where(gone, 1, power[..., 0]))
    expected = (np.clip((decibels + 30) / 30, 0, 1) - 0.6) / 0.2
    np.testing.assert_allclose(normalised[~gone], expected[~gone], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(batch.unit("sar")).all()


def test_grey_sources_are_repeated_beside_colour_and_bytes_beside_floats(tmp_path):
    save(tmp_path / "grey.png", picture(0, 16, 1))
    save(tmp_path / "deep.png", picture(1, 16, 1).astype(np.uint16) * 100)
    save(tmp_path / "rgb.png", picture(2, 16))
    facts = IndexStatistics(
        sources={
            "grey": {"optical": SourceStatistics(channels=1, mean=(0.3,), std=(0.1,))},
            "deep": {
                "optical": SourceStatistics(
                    channels=1, mean=(0.5,), std=(0.2,), scaling=Scaling("linear", 0, 25500), pixels="float32"
                )
            },
            "rgb": {"optical": SourceStatistics(channels=3, mean=(0.1, 0.2, 0.3), std=(0.1,) * 3)},
        }
    )
    rows = [
        {"source": s, "split": "train", "group": s, "optical": f"{s}.png"} for s in ("grey", "deep", "rgb")
    ]
    write_index(tmp_path / "index", rows, facts, tmp_path)
    view = View(modality="optical", size=16, scale=(1, 1), ratio=(1, 1), horizontal_flip=0)
    dataset = PairDataset(open_index(tmp_path / "index"), Views({"optical": view}), seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, row, -1, False)] for row in range(3)])
    unit = batch.unit("optical").numpy()
    assert unit.shape == (3, 3, 16, 16)
    for channel in range(3):
        np.testing.assert_allclose(unit[0, channel], picture(0, 16, 1) / 255, atol=1e-6)
        np.testing.assert_allclose(unit[1, channel], picture(1, 16, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(unit[2], picture(2, 16).transpose(2, 0, 1) / 255, atol=1e-6)
    assert batch.mean["optical"].tolist()[0] == pytest.approx([0.3] * 3)


def test_sources_of_other_channel_counts_are_refused(tmp_path):
    facts = IndexStatistics(
        sources={
            "vv": {"sar": SourceStatistics(channels=2, mean=(0.3,) * 2, std=(0.1,) * 2)},
            "rgb": {"sar": SourceStatistics(channels=3, mean=(0.3,) * 3, std=(0.1,) * 3)},
        }
    )
    rows = [{"source": s, "split": "train", "group": s, "sar": f"{s}.tif"} for s in ("vv", "rgb")]
    write_index(tmp_path / "index", rows, facts, tmp_path)
    with pytest.raises(
        IndexFileError, match="cannot share a batch: rgb 3, vv 2|cannot share a batch: vv 2, rgb 3"
    ):
        PairDataset(open_index(tmp_path / "index"), Views({"sar": View(modality="sar", size=8)}), seed=0)


@pytest.mark.parametrize("damage", ["truncate", "empty", "remove"])
def test_image_that_breaks_after_prepare_is_replaced_and_recorded(tmp_path, damage):
    index = open_index(make_index(tmp_path, paired=6, optical=4, sar=4, size=32))
    for name in ("opt/paired2.png", "sar/sar1.png"):
        file = tmp_path / "images" / name
        if damage == "remove":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:200] if damage == "truncate" else b"")
    dataset = PairDataset(index, VIEWS, seed=0)
    sample = dataset[Draw(0, 0, 2, 2, True)]
    assert sample.rows["optical"] == sample.rows["sar"] != 2
    assert sample.rows["optical"] in index.paired_rows
    assert len(sample.bad) == 1
    assert sample.bad[0].startswith("row=2 source=made optical=opt/paired2.png: ")
    again = PairDataset(index, VIEWS, seed=0)[Draw(0, 0, 2, 2, True)]
    assert again.rows == sample.rows
    assert np.array_equal(again.images["sar"], sample.images["sar"])
    loose = dataset[Draw(0, 0, 7, 11, False)]
    assert loose.rows["optical"] == 7
    assert loose.rows["sar"] in set(index.sar_only_rows.tolist()) - {11}
    assert dataset.collate([sample]).bad == sample.bad


def test_when_nothing_can_be_read_the_run_stops(tmp_path):
    index = open_index(make_index(tmp_path, paired=3))
    for file in (tmp_path / "images").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(RuntimeError, match="3 images could not be read"):
        PairDataset(index, VIEWS, seed=0)[Draw(0, 0, 0, 0, True)]


def test_mixed_batches_are_refused(tmp_path):
    dataset = PairDataset(open_index(make_index(tmp_path, paired=2, optical=1, sar=1)), VIEWS, seed=0)
    samples = [dataset[Draw(0, 0, 0, 0, True)], dataset[Draw(0, 0, 2, 3, False)]]
    with pytest.raises(ValueError, match="wholly paired or wholly unpaired"):
        dataset.collate(samples)


def test_batch_moves_as_a_whole(tmp_path):
    dataset = PairDataset(open_index(make_index(tmp_path, paired=2)), VIEWS, seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, 0, 0, True)]]).to("meta")
    tensors = [*batch.images.values(), *batch.mean.values(), *batch.std.values(), *batch.rows.values()]
    tensors += [*batch.crops.values(), *batch.source_sizes.values(), batch.mask_noise]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
