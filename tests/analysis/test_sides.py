import numpy as np
import pytest
from data_makers import SHARED_DATA
from PIL import Image
from scipy import ndimage

from codemae.analysis.sides import cloud_mask, side_flags

MEAN, STD = (0.30, 0.32, 0.28), (0.12, 0.11, 0.11)


def ground(size=96, seed=0):
    """Fields of several colours with a little texture, of about the mean and deviation above."""
    rng = np.random.default_rng(seed)
    colours = np.clip(rng.normal(MEAN, STD, (size // 12, size // 12, 3)), 0.05, 0.6)
    fields = np.repeat(np.repeat(colours, 12, axis=0), 12, axis=1)
    return np.clip(fields + rng.normal(0, 0.02, fields.shape), 0, 1).astype(np.float32)


def clouded(image, share, colour=(0.7, 0.75, 0.75), texture=0.01):
    rows = round(share * len(image))
    image = image.copy()
    image[:rows] = colour + np.random.default_rng(1).normal(0, texture, image[:rows].shape)
    return np.clip(image, 0, 1)


def test_smooth_bright_part_is_a_cloud():
    assert side_flags(ground(), "optical", MEAN, STD) == []
    assert side_flags(clouded(ground(), 0.4), "optical", MEAN, STD) == ["clouded"]
    assert side_flags(clouded(ground(), 0.04), "optical", MEAN, STD) == []
    assert side_flags(clouded(ground(), 0.4), "sar", MEAN, STD) == []


def test_desert_roofs_and_dim_haze_are_no_cloud():
    assert side_flags(clouded(ground(), 0.4, colour=(0.8, 0.7, 0.6)), "optical", MEAN, STD) == []
    assert side_flags(clouded(ground(), 0.4, texture=0.2), "optical", MEAN, STD) == []
    assert side_flags(clouded(ground(), 0.4, colour=(0.34, 0.36, 0.34)), "optical", MEAN, STD) == []
    # The same image is not bright where the whole source is.
    assert side_flags(clouded(ground(), 0.4), "optical", (0.7, 0.7, 0.7), STD) == []


def test_mask_equals_the_rule_pixel_by_pixel():
    rng = np.random.default_rng(3)
    base = 0.2 + 6 * np.abs(ndimage.gaussian_filter(rng.random((36, 36, 1)) - 0.5, (4, 4, 0)))
    image = (base + rng.normal(0, 0.01, (36, 36, 3))).clip(0, 1).astype(np.float32)
    mean, std = image.mean(axis=(0, 1)), image.std(axis=(0, 1))
    grey = image.mean(axis=2)
    alone = np.zeros((36, 36), bool)
    for y, x in np.ndindex(36, 36):
        around = np.pad(grey, 3, mode="symmetric")[y : y + 7, x : x + 7]
        value = image[y, x]
        bright = min((value - mean) / std) > 0.75 and value.min() > 0.2
        alone[y, x] = bright and around.std() < 0.12 * around.mean() and value[2] >= 0.95 * value[0]
    expected = np.zeros_like(alone)
    for y, x in np.ndindex(36, 36):
        around = np.pad(alone, 1, mode="symmetric")[y : y + 3, x : x + 3]
        expected[y, x] = alone[y, x] and around.mean() > 0.65
    assert expected.sum() > 5
    np.testing.assert_array_equal(cloud_mask(image, mean, std), expected)


def test_empty_and_saturated_images():
    image = ground()
    image[:50] = np.nan
    assert side_flags(image, "optical", MEAN, STD) == ["empty"]
    assert side_flags(np.full((32, 32, 1), 0.4, np.float32), "sar") == ["empty"]
    glare = ground()
    glare[:, :24] = 1
    assert "saturated" in side_flags(glare, "optical", (0.9, 0.9, 0.9), STD)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")
def test_real_clouds_are_found_and_clear_images_are_not():
    folder = SHARED_DATA / "ombria" / "opt"
    mean, std = (0.229, 0.272, 0.144), (0.136, 0.123, 0.113)

    def flags(name):
        values = np.asarray(Image.open(folder / f"{name}.png"), dtype=np.float32) / 255
        return side_flags(values, "optical", mean, std)

    for scene in ("0144", "0163", "0173", "0189", "0246", "0251"):
        assert "clouded" in flags(f"train_{scene}_after")
    clear = sorted(path.stem for path in folder.glob("*_before.png"))[::6]
    assert not any("clouded" in flags(name) for name in clear)
