import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from codemae.data.index import open_index
from codemae.data.synthetic import (
    COVERS,
    FACTOR_SIDES,
    SCENES,
    SynthesisOptions,
    draw_factors,
    synthesise,
    write_dataset,
)
from codemae.data.synthetic.factors import BUILDING, FIELD, ROAD, WATER
from codemae.data.synthetic.optical import cast_shadow
from codemae.data.synthetic.sar import project, radar_shadow

STEADY = SynthesisOptions(cloud_fraction=0.0, nuisance=0.0)


def same(first, second):
    return np.array_equal(first.optical, second.optical), np.array_equal(first.sar, second.sar)


@pytest.mark.parametrize("scene", range(len(SCENES)))
@pytest.mark.parametrize("size", [48, 97])
def test_shapes_types_and_ranges(scene, size):
    pair = synthesise(5, size, SynthesisOptions(scene=scene, change_fraction=0.3))
    assert pair.optical.shape == (size, size, 3) and pair.optical.dtype == np.uint8
    assert pair.sar.shape == (size, size) and pair.sar.dtype == np.uint8
    for layer in (pair.cover, pair.later_cover, pair.height, pair.change, pair.intensity):
        assert layer.shape == (size, size)
    assert pair.cover.max() < len(COVERS)
    assert pair.label == scene
    assert set(pair.factors) == set(FACTOR_SIDES)
    assert np.isfinite(pair.intensity).all() and (pair.intensity >= 0).all()
    assert pair.optical.std() > 3 and pair.sar.std() > 3
    assert ((pair.boxes >= 0) & (pair.boxes <= size)).all()
    assert (pair.height[pair.cover == BUILDING] > 0).all()
    assert (pair.height[np.isin(pair.cover, (WATER, ROAD, FIELD))] == 0).all()


def test_same_seed_same_pair_other_seed_other_pair():
    first, again, other = synthesise(11, 64), synthesise(11, 64), synthesise(12, 64)
    assert same(first, again) == (True, True)
    assert first.factors == again.factors
    assert same(first, other) == (False, False)


def test_boxes_hold_the_buildings():
    pair = synthesise(3, 96, SynthesisOptions(scene=SCENES.index("residential"), building_density=1.0))
    assert len(pair.boxes) > 10
    covered = np.zeros((96, 96), dtype=bool)
    for left, top, right, bottom in pair.boxes.astype(int):
        assert (pair.cover[top:bottom, left:right] == BUILDING).any()
        covered[top:bottom, left:right] = True
    buildings = pair.cover == BUILDING
    assert covered[buildings].mean() > 0.98


@pytest.mark.parametrize("looks", [1.0, 4.0, 16.0])
def test_equivalent_number_of_looks(looks):
    # The same ground almost without speckle is the reference that the speckled power is divided by.
    options = replace(STEADY, scene=SCENES.index("river"))
    ratios = []
    for seed in range(6):
        speckled = synthesise(seed, 96, replace(options, looks=(looks, looks))).intensity
        smooth = synthesise(seed, 96, replace(options, looks=(1e6, 1e6))).intensity
        ratios.append((speckled / smooth).ravel())
    ratio = np.concatenate(ratios)
    assert ratio.mean() == pytest.approx(1.0, abs=0.02)
    assert ratio.mean() ** 2 / ratio.var() == pytest.approx(looks, rel=0.06)


def test_equivalent_number_of_looks_on_water():
    estimates = []
    for seed in range(40):
        pair = synthesise(
            seed, 96, replace(STEADY, scene=SCENES.index("river"), looks=(4.0, 4.0), roughness=0.5)
        )
        water = pair.cover == WATER
        inner = water.copy()
        for dy in range(-4, 5):
            for dx in range(-9, 10):
                inner &= np.roll(water, (dy, dx), axis=(0, 1))
        inner[:9], inner[-9:], inner[:, :12], inner[:, -12:] = False, False, False, False
        values = pair.intensity[inner]
        if values.size > 250:
            estimates.append(values.mean() ** 2 / values.var())
    assert len(estimates) >= 5
    assert np.median(estimates) == pytest.approx(4.0, rel=0.12)


def flat_with_block(height=6.0, n=64):
    heights = np.zeros((n, n), dtype=np.float32)
    heights[20:44, 30:40] = height
    return heights


def test_shadow_lies_behind_and_is_as_long_as_the_angle_says():
    incidence = np.deg2rad(45)
    hidden = radar_shadow(flat_with_block(6.0), incidence)
    assert not hidden[:, :40].any()
    # tan 45 degrees = 1: six pixels of height hide six pixels, less the grazing one.
    assert set(np.flatnonzero(hidden[30])) in ({40, 41, 42, 43, 44}, {40, 41, 42, 43, 44, 45})
    assert not hidden[:20].any() and not hidden[44:].any()


def test_shadow_against_a_ray_by_ray_transcription():
    heights = np.random.default_rng(0).uniform(0, 6, size=(3, 24)).astype(np.float32)
    tangent = np.tan(np.deg2rad(37))
    expected = np.zeros(heights.shape, dtype=bool)
    for row in range(3):
        for x in range(24):
            for nearer in range(x):
                ray = heights[row, nearer] - (x - nearer) / tangent
                expected[row, x] |= ray > heights[row, x] + 0.25
    assert np.array_equal(radar_shadow(heights, np.deg2rad(37)), expected)


def test_layover_and_double_bounce_lie_towards_the_sensor():
    heights = flat_with_block(6.0)
    ground = np.where(heights > 0, np.float32(0.4), np.float32(0.05)).astype(np.float32)
    bounce = np.full_like(ground, 2.0)
    diffuse, foot = project(ground, heights, heights > 0, bounce, np.deg2rad(45), facade=0.16)
    assert set(zip(*np.nonzero(foot), strict=True)) == {(row, 29) for row in range(20, 44)}
    assert foot[30, 29] == pytest.approx(2.0 * 6.0)
    # The roof moves six pixels nearer: over columns 24 to 33, on top of the ground and the wall in front.
    assert diffuse[30, 24:30].min() > 0.05 + 0.4 - 1e-6
    assert diffuse[30, 24:30].mean() == pytest.approx(0.05 + 0.4 + 0.16, rel=0.1)
    assert diffuse[30, :22] == pytest.approx(0.05)
    assert diffuse[30, 41:45] == pytest.approx(0.0, abs=1e-6)
    assert diffuse[5] == pytest.approx(0.05)


def test_projection_keeps_the_power_of_what_is_seen():
    heights = flat_with_block(5.0)
    ground = np.random.default_rng(1).uniform(0.1, 1, size=heights.shape).astype(np.float32)
    nothing = np.zeros(heights.shape, dtype=bool)
    diffuse, _ = project(ground, heights, nothing, ground, np.deg2rad(40), facade=0.2)
    seen = ground[~radar_shadow(heights, np.deg2rad(40))].sum()
    assert diffuse.sum() == pytest.approx(seen, rel=1e-5)


@pytest.mark.parametrize("look_right", [0, 1])
def test_walls_in_pictures_are_bright_on_the_sensor_side(look_right):
    options = replace(STEADY, scene=SCENES.index("industrial"), looks=(50.0, 50.0), scatterers=0.0)
    sensor_side, far_side, ground = [], [], []
    seeds = [s for s in range(80) if draw_factors(s, options)["look_right"] == look_right]
    for seed in seeds[:12]:
        pair = synthesise(seed, 96, options)
        power = pair.intensity if not look_right else pair.intensity[:, ::-1]
        cover = pair.cover if not look_right else pair.cover[:, ::-1]
        building = cover == BUILDING
        front = ~building[:, 1:-3] & building[:, 2:-2]
        back = building[:, 1:-3] & ~building[:, 2:-2] & ~building[:, 4:]
        sensor_side.append(power[:, 1:-3][front])
        far_side.append(power[:, 3:-1][back])
        ground.append(power[(cover != BUILDING) & (cover != WATER)])
    level = np.median(np.concatenate(ground))
    assert np.median(np.concatenate(sensor_side)) > 4 * level
    assert np.median(np.concatenate(far_side)) < 0.5 * level


def test_the_sun_casts_shadow_away_from_itself():
    heights = flat_with_block(6.0)
    sun_on_the_right = cast_shadow(heights, 0.0, 1.0)
    assert sun_on_the_right[30, 25:30].all() and not sun_on_the_right[30, 41:].any()
    sun_below = cast_shadow(heights, np.pi / 2, 1.0)
    assert sun_below[15:20, 35].all() and not sun_below[45:, 35].any()


def phase_correlation(first, second):
    """Displacement of the second against the first, to a fraction of a pixel (parabola through the peak)."""
    spectra = np.fft.fft2(first - first.mean()).conj() * np.fft.fft2(second - second.mean())
    surface = np.fft.ifft2(spectra / (np.abs(spectra) + 1e-9)).real
    peak = np.unravel_index(surface.argmax(), surface.shape)
    shift = []
    for axis, place in enumerate(peak):
        line = np.take(surface, peak[1 - axis], axis=1 - axis)
        size = len(line)
        before, top, after = line[place - 1], line[place], line[(place + 1) % size]
        offset = (after - before) / (2 * top - before - after) / 2
        shift.append((place + offset + size / 2) % size - size / 2)
    return shift


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -5.0), (-2.0, 1.0), (1.5, 0.0)])
def test_misregistration_is_the_chosen_one(shift):
    smooth = replace(STEADY, looks=(1e6, 1e6), scene=SCENES.index("residential"))
    still = synthesise(9, 128, smooth)
    moved = synthesise(9, 128, replace(smooth, misregistration=shift))
    assert np.array_equal(still.optical, moved.optical) and np.array_equal(still.cover, moved.cover)
    assert moved.shift == shift
    assert phase_correlation(still.sar.astype(float), moved.sar.astype(float)) == pytest.approx(
        shift, abs=0.3
    )


@pytest.mark.parametrize("shift", [(0, 0), (4, -6)])
def test_misregistration_against_the_optical_ground(shift):
    # Roads are flat, so no layover moves them, and dark to the radar.
    options = replace(STEADY, looks=(1e3, 1e3), scene=SCENES.index("farmland"), road_density=1.0)
    found = []
    for seed in range(8):
        pair = synthesise(seed, 96, replace(options, misregistration=shift))
        road = (pair.cover == ROAD).astype(float)
        dark = -np.log(pair.intensity + 1e-3)
        product = np.fft.fft2(road - road.mean()).conj() * np.fft.fft2(dark - dark.mean())
        peak = np.unravel_index(np.fft.ifft2(product).real.argmax(), road.shape)
        found.append([(place + 48) % 96 - 48 for place in peak])
    assert np.abs(np.median(found, axis=0) - shift).max() <= 0.5


def test_jitter_spreads_the_displacement():
    shifts = np.array(
        [synthesise(s, 32, SynthesisOptions(misregistration_jitter=2.0)).shift for s in range(80)]
    )
    assert shifts.std() == pytest.approx(2.0, rel=0.2)
    assert np.abs(shifts.mean(axis=0)).max() < 0.8


@pytest.mark.parametrize(
    ("name", "value", "optical_stays", "sar_stays"),
    [
        ("palette", (0, 1), False, True),
        ("paint", (0, 2), False, True),
        ("cloud_fraction", (0.0, 0.6), False, True),
        ("roughness", (0.1, 0.9), True, False),
        ("scatterers", (0.1, 0.9), True, False),
        ("looks", ((1.0, 1.0), (8.0, 8.0)), True, False),
        ("misregistration", ((0.0, 0.0), (2.0, 1.0)), True, False),
        ("road_density", (0.0, 1.0), False, False),
        ("building_density", (0.0, 1.0), False, False),
        ("scene", (0, 4), False, False),
    ],
)
def test_a_factor_shows_on_its_own_side_only(name, value, optical_stays, sar_stays):
    base = SynthesisOptions(scene=4, building_density=1.0, road_density=0.5)
    seed = next(
        s for s in range(100) if draw_factors(s, SynthesisOptions(cloud_fraction=0.3))["cloud_cover"] > 0.3
    )
    first, second = (synthesise(seed, 64, replace(base, **{name: v})) for v in value)
    assert same(first, second) == (optical_stays, sar_stays)
    if name in FACTOR_SIDES:
        assert FACTOR_SIDES[name] == {(False, True): "optical", (True, False): "sar"}.get(
            (optical_stays, sar_stays), "shared"
        )


def test_pinning_a_factor_to_what_was_drawn_changes_nothing():
    drawn = draw_factors(21, SynthesisOptions())
    names = ("scene", "road_density", "building_density", "palette", "paint", "roughness", "scatterers")
    pinned = SynthesisOptions(**{name: drawn[name] for name in names})
    assert same(synthesise(21, 64), synthesise(21, 64, pinned)) == (True, True)


def test_shared_factors_are_on_the_ground_of_both_dates():
    options = SynthesisOptions(scene=SCENES.index("residential"))
    for name, cover in (("building_density", BUILDING), ("road_density", ROAD)):
        shares = {}
        for level in (0.0, 1.0):
            pairs = [synthesise(s, 96, replace(options, **{name: level})) for s in range(6)]
            shares[level] = np.mean([p.cover == cover for p in pairs])
            assert all(np.array_equal(p.cover, p.later_cover) for p in pairs)
        assert shares[1.0] > 1.25 * shares[0.0]


def test_built_up_ground_is_brighter_to_the_radar():
    options = SynthesisOptions(scene=SCENES.index("residential"), nuisance=0.0)
    few = [synthesise(s, 96, replace(options, building_density=0.0)).intensity.mean() for s in range(6)]
    many = [synthesise(s, 96, replace(options, building_density=1.0)).intensity.mean() for s in range(6)]
    assert np.mean(np.array(many) > np.array(few)) == 1.0


def test_time_gap_changes_objects_for_the_radar_only():
    options = SynthesisOptions(scene=SCENES.index("residential"))
    shares = []
    for fraction in (0.0, 0.2, 0.6):
        now, later = (
            synthesise(4, 128, options),
            synthesise(4, 128, replace(options, change_fraction=fraction)),
        )
        assert np.array_equal(now.optical, later.optical) and np.array_equal(now.cover, later.cover)
        moved = later.cover != later.later_cover
        assert np.array_equal(moved & ~later.change, np.zeros_like(moved))
        assert ((later.cover == BUILDING) | (later.later_cover == BUILDING))[moved].all()
        shares.append((moved & (now.cover == BUILDING)).sum() / (now.cover == BUILDING).sum())
        assert np.array_equal(now.sar, later.sar) == (fraction == 0)
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.2, abs=0.12) and shares[2] == pytest.approx(0.6, abs=0.15)


def test_cloud_fraction_is_met_on_average():
    options = SynthesisOptions(cloud_fraction=0.2)
    assert np.mean([draw_factors(s, options)["cloud_cover"] for s in range(3000)]) == pytest.approx(
        0.2, rel=0.06
    )
    overcast = next(s for s in range(100) if draw_factors(s, options)["cloud_cover"] > 0.5)
    clear, cloudy = (
        synthesise(overcast, 64, STEADY),
        synthesise(overcast, 64, replace(STEADY, cloud_fraction=0.2)),
    )
    assert cloudy.optical.mean() > clear.optical.mean() + 15


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"looks": (0.0, 1.0)}, "looks"),
        ({"cloud_fraction": 1.5}, "cloud_fraction"),
        ({"misregistration": (0.0, 40.0)}, "misregistration"),
        ({"misregistration_jitter": -1.0}, "jitter"),
        ({"scene": 6}, "scene must be one of 0 to 5"),
        ({"roughness": -0.1}, "roughness"),
    ],
)
def test_impossible_options_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        SynthesisOptions(**wrong)


def test_dataset_is_an_index(tmp_path):
    folder = write_dataset(tmp_path / "twin", train=12, test=6, unpaired=3, size=32, seed=7)
    index = open_index([folder])
    assert len(index) == 12 + 6 + 2 * 3
    assert len(index.paired_rows) == 18
    assert len(index.optical_only_rows) == 3 and len(index.sar_only_rows) == 3
    train, test = open_index([folder], split="train"), open_index([folder], split="test")
    assert np.bincount(train.labels()).tolist() == [2] * 6 and np.bincount(test.labels()).tolist() == [1] * 6
    assert tuple(train.classes) == SCENES

    pictures = {
        "optical": [*sorted(folder.glob("optical/train_*.png")), *folder.glob("unpaired/optical/*.png")],
        "sar": [*sorted(folder.glob("sar/train_*.png")), *folder.glob("unpaired/sar/*.png")],
    }
    for modality, paths in pictures.items():
        assert len(paths) == 15
        values = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
        values = values.reshape(-1, 3 if modality == "optical" else 1)
        stats = index.stats("synthetic", modality)
        assert stats.mean == pytest.approx(values.mean(axis=0), abs=1e-5)
        assert stats.std == pytest.approx(values.std(axis=0), abs=1e-5)

    with open(folder / "labels.csv") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 24
    line = lines[4]
    pair = synthesise(int(line["seed"]), 32, SynthesisOptions(scene=int(line["label"])))
    assert np.array_equal(np.asarray(Image.open(folder / "sar" / f"{line['name']}.png")), pair.sar)
    assert float(line["road_density"]) == pytest.approx(pair.factors["road_density"], abs=1e-6)


def test_more_pairs_leave_the_first_ones_alone_and_workers_change_nothing(tmp_path):
    small = write_dataset(tmp_path / "small", train=2, test=1, size=32)
    large = write_dataset(tmp_path / "large", train=4, test=1, size=32, workers=2)
    for name in ("optical/train_000001.png", "sar/train_000001.png", "optical/test_000000.png"):
        assert (small / name).read_bytes() == (large / name).read_bytes()


def test_a_dataset_without_training_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train >= 1"):
        write_dataset(tmp_path, train=0)
