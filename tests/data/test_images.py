import dataclasses
import tarfile

import numpy as np
import pytest
from data_makers import picture, save, save_geotiff
from PIL import Image

from codemae.data.images import (
    ImageError,
    Location,
    PathError,
    SceneCache,
    as_read,
    read_picture,
    read_window,
    resize,
    resolve_inside,
    with_channels,
)
from codemae.data.statistics import SourceStatistics


def test_palette_cmyk_grey_and_transparent_images_become_plain(tmp_path):
    rgb = Image.fromarray(picture(0))
    rgb.quantize(8).save(tmp_path / "palette.png")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    rgb.convert("RGBA").save(tmp_path / "rgba.png")
    rgb.convert("LA").save(tmp_path / "la.png")
    rgb.convert("1").save(tmp_path / "bits.png")
    modes = {p.name: read_picture(Location(str(p))).mode for p in sorted(tmp_path.iterdir())}
    assert modes == {
        "palette.png": "RGB", "cmyk.jpg": "RGB", "rgba.png": "RGB", "la.png": "L", "bits.png": "L",
    }  # fmt: skip
    assert np.array_equal(read_picture(Location(str(tmp_path / "rgba.png"))), picture(0))


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    path = save(tmp_path / "deep.png", values)
    read = read_picture(Location(str(path)))
    assert read.dtype == np.uint16
    assert np.array_equal(read[..., 0], values)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("bands", [1, 2, 3, 13])
def test_geotiff_of_any_kind_and_band_count(tmp_path, kind, bands):
    values = (np.random.default_rng(0).random((10, 12, bands)) * 200).astype(kind)
    path = save_geotiff(tmp_path / "scene.tif", values)
    whole = np.asarray(read_picture(Location(str(path)))).reshape(10, 12, bands)
    part = np.asarray(read_picture(Location(str(path)), (3, 2, 5, 4))).reshape(4, 5, bands)
    assert whole.dtype == kind
    assert np.array_equal(whole, values)
    assert np.array_equal(part, values[2:6, 3:8])


def test_nodata_becomes_nan(tmp_path):
    values = np.full((4, 4, 2), 7, np.uint16)
    values[1, 2, 0] = 65535
    read = read_picture(Location(str(save_geotiff(tmp_path / "s.tif", values, nodata=65535))))
    assert read.dtype == np.float32
    assert np.isnan(read[1, 2, 0]) and np.isfinite(read[1, 2, 1])
    assert int(np.isnan(read).sum()) == 1


def test_members_of_a_shard_are_read_at_their_offset(tmp_path):
    files = [save(tmp_path / f"{i}.png", picture(i)) for i in range(3)]
    files.append(save_geotiff(tmp_path / "3.tif", picture(3)))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for file in files:
            shard.add(file, file.name)
    with tarfile.open(tmp_path / "shard.tar") as shard:
        members = [(m.offset_data, m.size) for m in shard]
    (tmp_path / "shard.tif").symlink_to(tmp_path / "shard.tar")
    for i, (offset, size) in enumerate(members):
        name = "shard.tif" if i == 3 else "shard.tar"
        assert np.array_equal(read_picture(Location(str(tmp_path / name), offset, size)), picture(i))
    with pytest.raises(ImageError, match="ends inside the member"):
        read_picture(Location(str(tmp_path / "shard.tar"), members[-1][0], 10**9))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated_empty_and_missing_files_say_so(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(picture(0, 64)).save(whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ImageError, match=f"cut.{suffix}: cannot be decoded"):
        read_picture(Location(str(cut)))
    empty = tmp_path / f"empty.{suffix}"
    empty.touch()
    with pytest.raises(ImageError, match="the file is empty"):
        read_picture(Location(str(empty)))
    with pytest.raises(ImageError, match="no such file|No such file"):
        read_picture(Location(str(tmp_path / f"none.{suffix}")))


def test_window_outside_the_image(tmp_path):
    path = save(tmp_path / "a.png", picture(0, 16))
    with pytest.raises(ImageError, match="does not lie inside 16 x 16"):
        read_picture(Location(str(path)), (8, 8, 9, 4))


def test_paths_may_not_leave_their_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    save(outside / "secret.png", picture(0))
    save(root / "in.png", picture(0))
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "inner.png").symlink_to(root / "in.png")
    assert resolve_inside(str(root), "inner.png") == str(root / "in.png")
    for path, reason in (
        ("../outside/secret.png", "climbs"),
        ("a/../../outside/secret.png", "climbs"),
        (str(outside / "secret.png"), "absolute"),
        ("link.png", "through a link"),
    ):
        with pytest.raises(PathError, match=reason):
            resolve_inside(str(root), path)


def test_a_sibling_whose_name_begins_alike_is_outside(tmp_path):
    save(tmp_path / "data-private" / "x.png", picture(0))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").symlink_to(tmp_path / "data-private" / "x.png")
    with pytest.raises(PathError, match="through a link"):
        resolve_inside(str(tmp_path / "data"), "x.png")


def test_channels_are_repeated_and_reduced_but_never_guessed():
    grey = Image.fromarray(picture(0, channels=1))
    assert np.array_equal(np.asarray(with_channels(grey, 3))[..., 2], picture(0, channels=1))
    assert np.array_equal(np.asarray(with_channels(Image.fromarray(picture(0)), 1)), picture(0)[..., 0])
    with pytest.raises(ImageError, match="3 channels stands where its source has 2"):
        with_channels(Image.fromarray(picture(0)), 2)


def test_scene_cache_decodes_once_and_keeps_its_bound(tmp_path):
    paths = [str(save(tmp_path / f"{i}.png", picture(i, 64))) for i in range(3)]
    scene_bytes = 64 * 64 * 4
    cache = SceneCache(2 * scene_bytes)
    reads = []

    def read(location):
        reads.append(location.path)
        return read_picture(location)

    for place in (0, 0, 1, 0, 2, 0, 1):
        cache.get(Location(paths[place]), read)
        assert len(cache) <= 2
    assert reads == [paths[0], paths[1], paths[2], paths[1]]
    window = (8, 16, 32, 24)
    assert np.array_equal(read_window(Location(paths[1]), window, cache), picture(1, 64)[16:40, 8:40])


def test_resizing_float_agrees_with_bytes_and_keeps_nan_in_its_place():
    pixels = picture(3, 48)
    from_bytes = resize(Image.fromarray(pixels), (20, 20)).astype(np.float32) / 255
    as_float = (pixels / np.float32(255)).astype(np.float32)
    # Bytes are rounded after each of the two passes of the resampling.
    assert np.abs(resize(as_float, (20, 20)) - from_bytes).max() < 2 / 255
    holed = as_float.copy()
    holed[:6, :6] = np.nan
    resized = resize(holed, (24, 24), fill=as_float.mean(axis=(0, 1)))
    assert np.isnan(resized[:, :3, :3]).all()
    assert np.isfinite(resized[:, 5:, 5:]).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_arrays_of_npy_files_in_every_order_of_axes(tmp_path, kind):
    values = (np.random.default_rng(0).random((10, 12, 5)) * 200).astype(kind)
    wanted = kind if kind in (np.uint8, np.uint16, np.float32) else np.float32
    for name, stored in (("last", values), ("first", np.moveaxis(values, -1, 0)), ("flat", values[..., 0])):
        np.save(tmp_path / f"{name}.npy", stored)
        location = Location(str(tmp_path / f"{name}.npy"))
        truth = values[..., :1] if name == "flat" else values
        whole = np.asarray(read_picture(location)).reshape(truth.shape)
        assert whole.dtype == wanted
        np.testing.assert_array_equal(whole, truth.astype(wanted))
        for cache in (None, SceneCache(1 << 20)):
            part = np.asarray(read_window(location, (3, 2, 5, 4), cache)).reshape(4, 5, -1)
            np.testing.assert_array_equal(part, truth[2:6, 3:8].astype(wanted))


def test_arrays_that_are_no_images_are_refused(tmp_path):
    cases = {
        "pickle": np.array([{"a": 1}], dtype=object),
        "vector": np.zeros(4),
        "words": np.array([["a"]]),
        "complex": np.zeros((4, 4), complex),
    }
    for name, stored in cases.items():
        np.save(tmp_path / f"{name}.npy", stored, allow_pickle=True)
        with pytest.raises(ImageError, match=name):
            read_picture(Location(str(tmp_path / f"{name}.npy")))
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(ImageError, match="the file is empty"):
        read_picture(Location(str(tmp_path / "empty.npy")))
    np.save(tmp_path / "cut.npy", np.zeros((50, 50, 3), np.float32))
    whole = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:2000])
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_picture(Location(str(tmp_path / "cut.npy")))
    with pytest.raises(ImageError, match="no such file"):
        read_picture(Location(str(tmp_path / "none.npy")))


def test_selected_channels_come_in_the_order_asked_for():
    bands = np.arange(4 * 6 * 5, dtype=np.uint16).reshape(4, 6, 5)
    five = SourceStatistics(channels=3, mean=(0.5,) * 3, std=(0.2,) * 3, select=(3, 2, 1))
    np.testing.assert_array_equal(as_read(bands, five), bands[..., [3, 2, 1]])
    turned = dataclasses.replace(five, select=(2, 1, 0))
    np.testing.assert_array_equal(as_read(Image.fromarray(picture(0)), turned), picture(0)[..., ::-1])
    one = SourceStatistics(channels=1, mean=(0.5,), std=(0.2,), select=(1,))
    assert np.array_equal(as_read(Image.fromarray(picture(0)), one), picture(0)[..., 1])
    pair = SourceStatistics(channels=2, mean=(0.5,) * 2, std=(0.2,) * 2, select=(2, 0))
    np.testing.assert_array_equal(as_read(Image.fromarray(picture(0)), pair), picture(0)[..., [2, 0]])
    with pytest.raises(ImageError, match="has not all of the channels"):
        as_read(bands[..., :3], five)
    plain = SourceStatistics(channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    assert as_read(Image.fromarray(picture(0, channels=1)), plain).mode == "RGB"
