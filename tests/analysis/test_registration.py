import numpy as np
import pytest
from data_makers import SHARED_DATA
from PIL import Image

from codemae.analysis.displacement import displacement
from codemae.analysis.registration import CONFIDENT, orientation_maps, register
from codemae.data.synthetic import SynthesisOptions, synthesise


def sides(seed, shift=(0.0, 0.0), size=128):
    options = SynthesisOptions(misregistration=shift, cloud_fraction=0.0, nuisance=0.5, looks=(6, 8))
    pair = synthesise(seed, size, options)
    return pair.optical.mean(axis=2).astype(np.float32) / 255, pair.sar.astype(np.float32) / 255


@pytest.mark.parametrize(("down", "right"), [(2, 2), (4, -3), (-8, 5)])
def test_displacement_of_synthetic_pairs_is_found(down, right):
    errors = []
    for seed in range(6):
        # Layover displaces buildings in the SAR image itself, so the pair's own offset is taken off.
        still = register(*sides(seed))
        found = register(*sides(seed, (down, right)))
        errors.append(np.hypot(found.y - still.y - down, found.x - still.x - right))
    assert np.median(errors) < 1


def test_offset_is_found_where_contrast_is_reversed_and_pixels_are_missing():
    rng = np.random.default_rng(0)
    ground = np.kron(rng.random((20, 20)), np.ones((8, 8))).astype(np.float32)
    optical = ground[16:144, 16:144].copy()
    sar = (1 - ground[16 - 3 : 144 - 3, 16 + 5 : 144 + 5]).astype(np.float32)
    optical[:20, :30] = np.nan
    found = register(optical, sar)
    assert (found.x, found.y) == pytest.approx((-5, 3), abs=0.5)
    assert found.confidence > CONFIDENT
    assert not found.at_edge


def test_pairs_of_different_places_are_less_sure():
    pairs = [sides(seed) for seed in range(6)]
    true = [register(*pair).confidence for pair in pairs]
    shuffled = [register(pairs[i][0], pairs[(i + 1) % 6][1]).confidence for i in range(6)]
    assert min(true) > max(shuffled)


def test_side_without_texture_gives_no_confidence():
    optical, sar = sides(0)
    assert register(np.full_like(optical, 0.4), sar).confidence == 0
    assert register(np.full_like(optical, np.nan), sar).confidence == 0


def test_orientation_maps_equal_derivatives_taken_pixel_by_pixel():
    plane = np.random.default_rng(1).random((16, 16)).astype(np.float32)
    maps = orientation_maps(plane, 1.0, 4)
    # Contrast, its sign and brightness do not matter; a quarter turn moves the directions by half of them.
    np.testing.assert_allclose(orientation_maps(3 - 2 * plane, 1.0, 4), maps, atol=1e-4)
    turned = orientation_maps(np.rot90(plane).copy(), 1.0, 4)
    np.testing.assert_allclose(turned, np.roll(np.rot90(maps, axes=(1, 2)), 2, axis=0), atol=1e-4)


def test_sides_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="two sides of one size"):
        register(np.zeros((32, 32), np.float32), np.zeros((32, 40), np.float32))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")
def test_real_pairs_line_up_and_shifts_on_purpose_are_found():
    def read(side, name):
        pixels = np.asarray(Image.open(SHARED_DATA / "ombria" / side / name), dtype=np.float32) / 255
        return pixels if pixels.ndim == 2 else pixels.mean(axis=2)

    names = sorted(path.name for path in (SHARED_DATA / "ombria" / "opt").glob("*_before.png"))[::24]
    pairs = [(read("opt", name), read("sar", name)) for name in names]
    found = [register(*pair) for pair in pairs]
    assert np.mean([registration.length < 2 for registration in found]) >= 0.9
    inner = slice(16, 240)
    errors = []
    for optical, sar in pairs:
        still = register(optical[inner, inner], sar[inner, inner])
        moved = register(optical[inner, inner], sar[16 - 8 : 240 - 8, 16 + 4 : 240 + 4])
        errors.append(np.hypot(moved.x - still.x + 4, moved.y - still.y - 8))
    assert np.median(errors) < 1
    shuffled = [register(pairs[i][0], pairs[i - 1][1]).confidence for i in range(len(pairs))]
    assert np.mean(np.array(shuffled) < CONFIDENT) >= 0.9
    assert np.mean([registration.confidence > CONFIDENT for registration in found]) >= 0.9


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")
def test_real_scene_with_relief_is_displaced_along_the_range_direction():
    def read(side):
        image = Image.open(SHARED_DATA / "volkov_s1s2" / side / "151.png").convert("RGB")
        return np.asarray(image, dtype=np.float32).mean(axis=2) / 255

    optical, sar = read("opt"), read("sar")
    corners = [(y, x) for y in range(0, 1024, 256) for x in range(0, 1024, 256)]
    windows = [(slice(y, y + 256), slice(x, x + 256)) for y, x in corners]
    found = [register(optical[window], sar[window]) for window in windows]
    sure = [(one.x, one.y) for one in found if one.confidence >= CONFIDENT]
    assert len(sure) >= 12
    common = displacement(np.array(sure), ["151"] * len(sure))
    # Sentinel-1 flew southwards and looked west: its range direction lies about 11 degrees off the rows.
    assert common.direction == pytest.approx(9, abs=5)
    assert common.straightness > 0.9
    # Uncorrected relief moves windows by many pixels along it; across it the estimates agree.
    assert common.along > 5
    assert common.across < 1
