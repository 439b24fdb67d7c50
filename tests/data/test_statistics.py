import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from data_makers import SHARED_DATA, picture
from PIL import Image

from codemae.data.images import Location, read_picture
from codemae.data.measuring import Moments, Survey, float_bins, float_edges
from codemae.data.statistics import (
    IndexStatistics,
    Scaling,
    SourceStatistics,
    StatisticsError,
    mixture,
    read_statistics,
)

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")


def test_streamed_statistics_of_bytes_equal_numpy_on_all_pixels():
    images = [picture(seed, (20 + seed, 31)) for seed in range(5)]
    halves = [Survey("optical"), Survey("optical")]
    for place, image in enumerate(images):
        halves[place % 2].add(Image.fromarray(image))
    halves[0].merge(halves[1])
    found = halves[0].statistics(halves[0].scaling())
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-6)
    assert (found.images, found.pixel_count, found.pixels) == (5, len(pixels), "uint8")


def test_sar_stored_three_times_over_is_one_channel():
    grey = picture(0, channels=1)
    survey = Survey("sar")
    survey.add(Image.fromarray(np.repeat(grey[..., None], 3, axis=-1)))
    survey.add(Image.fromarray(grey))
    found = survey.statistics(survey.scaling())
    assert found.channels == 1
    np.testing.assert_allclose(found.mean, [grey.mean() / 255], rtol=1e-7)
    survey.add(Image.fromarray(picture(1)))
    assert survey.channels == 3


def test_sixteen_bit_scaling_and_statistics_equal_numpy():
    rng = np.random.default_rng(0)
    images = [rng.gamma(4, 300, (40, 30, 4)).astype(np.uint16) for _ in range(3)]
    survey = Survey("optical")
    for image in images:
        survey.add(image)
    scaling = survey.scaling()
    values = np.concatenate([image.ravel() for image in images])
    assert scaling.rule == "linear"
    assert abs(scaling.low - np.percentile(values, 0.5)) <= 2
    assert abs(scaling.high - np.percentile(values, 99.5)) <= 10
    unit = np.clip(
        (np.concatenate([i.reshape(-1, 4) for i in images]) - scaling.low) / (scaling.high - scaling.low),
        0,
        1,
    )
    found = survey.statistics(scaling)
    np.testing.assert_allclose(found.mean, unit.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.std, unit.std(axis=0), rtol=1e-5)
    assert found.pixels == "float32"


def test_float_sar_is_measured_in_decibels_without_its_gaps():
    rng = np.random.default_rng(1)
    images = [rng.gamma(1, 0.05, (64, 64, 1)).astype(np.float32) for _ in range(2)]
    images[0][:8] = np.nan
    survey = Survey("sar")
    for image in images:
        survey.add(image)
    scaling = survey.scaling()
    assert scaling.rule == "db"
    assert survey.nonfinite == 8 * 64
    moments = Moments(scaling, survey.channels)
    for image in images:
        moments.add(image)
    found = moments.statistics()
    values = np.concatenate([image.ravel() for image in images]).astype(np.float64)
    decibels = 10 * np.log10(values[np.isfinite(values)])
    assert abs(scaling.low - np.percentile(decibels, 0.5)) < 1
    assert abs(scaling.high - np.percentile(decibels, 99.5)) < 1
    unit = np.clip((decibels - scaling.low) / (scaling.high - scaling.low), 0, 1)
    # float32 logarithms of the product against float64 here.
    np.testing.assert_allclose(found.mean, [unit.mean()], rtol=1e-4)
    np.testing.assert_allclose(found.std, [unit.std()], rtol=1e-4)


def test_sar_already_in_decibels_is_scaled_linearly():
    survey = Survey("sar")
    survey.add(np.linspace(-25, 3, 4096, dtype=np.float32).reshape(64, 64, 1))
    assert survey.scaling().rule == "linear"


def test_what_does_not_go_together_is_refused():
    mixed = Survey("optical")
    mixed.add(Image.fromarray(picture(0)))
    mixed.add(np.zeros((4, 4, 3), np.uint16))
    with pytest.raises(StatisticsError, match="mix uint16, uint8 pixels"):
        mixed.scaling()
    bands = Survey("optical")
    bands.add(np.zeros((4, 4, 4), np.uint16))
    bands.add(np.zeros((4, 4, 13), np.uint16))
    with pytest.raises(StatisticsError, match="4, 13 channels"):
        _ = bands.channels
    constant = Survey("sar")
    constant.add(Image.fromarray(np.full((8, 8), 9, np.uint8)))
    with pytest.raises(StatisticsError, match="std above 0"):
        constant.statistics(constant.scaling())


@pytest.mark.parametrize("text", ["uint8", "linear:0:4095", "db:-25.5:0.25", "amplitude:-40:10"])
def test_scaling_survives_its_text(text):
    assert str(Scaling.parse(text)) == text


@pytest.mark.parametrize("text", ["bytes", "linear", "linear:5:5", "db:0:-20", "linear:a:b"])
def test_impossible_scalings_are_refused(text):
    with pytest.raises(StatisticsError):
        Scaling.parse(text)


def test_scaling_by_hand():
    # 0.01 is -20 dB, 0.1 is -10 dB; with -20..0 dB they become 0 and 0.5.
    scaled = Scaling("db", -20, 0).apply(np.array([0.0, 0.01, 0.1, 1.0, 10.0, np.nan, np.inf], np.float32))
    np.testing.assert_allclose(scaled[:5], [0, 0, 0.5, 1, 1], atol=1e-6)
    assert np.isnan(scaled[5:]).all()


def test_mixture_is_that_of_the_pooled_pixels():
    rng = np.random.default_rng(2)
    pools = [rng.random((1000, 1)) * 0.3, 0.5 + rng.random((3000, 1)) * 0.5]
    parts = [
        (SourceStatistics(channels=1, mean=tuple(p.mean(0)), std=tuple(p.std(0))), float(len(p)))
        for p in pools
    ]
    whole, pooled = np.concatenate(pools), mixture(parts)
    np.testing.assert_allclose([pooled.mean[0], pooled.std[0]], [whole.mean(), whole.std()], rtol=1e-9)


def test_damaged_statistics_name_the_file(tmp_path):
    with pytest.raises(StatisticsError, match="no stats.yaml"):
        read_statistics(tmp_path)
    for text, reason in (
        ("a: [", "not YAML"),
        ("format: 9", "format 1"),
        (
            "format: 1\nsources: {s: {sar: {channels: 1, mean: [0.5], std: [0.0], scaling: uint8}}}",
            "std above 0",
        ),
        ("format: 1\nsources: {s: {sar: {channels: 1, mean: [0.5], scaling: uint8}}}", "std"),
    ):
        (tmp_path / "stats.yaml").write_text(text)
        with pytest.raises(StatisticsError, match=reason):
            read_statistics(tmp_path)


def test_hash_follows_the_numbers_only():
    def stats(mean, images=0):
        return IndexStatistics(
            sources={"s": {"sar": SourceStatistics(channels=1, mean=(mean,), std=(0.1,), images=images)}}
        )

    assert stats(0.2).hash() == stats(0.2, images=9).hash()
    assert stats(0.2).hash() != stats(0.21).hash()


def _survey(*images, modality="sar", **selection):
    survey = Survey(modality, **selection)
    for image in images:
        survey.add(image)
    return survey


def test_amplitude_and_intensity_of_one_scene_become_the_same_values():
    intensity = np.random.default_rng(3).gamma(1, 0.05, (50, 50, 1)).astype(np.float32)
    found = {}
    for rule, image in (("db", intensity), ("amplitude", np.sqrt(intensity))):
        found[rule] = Scaling.parse(f"{rule}:-30:0").apply(image)
    np.testing.assert_allclose(found["db"], found["amplitude"], atol=1e-5)
    by_hand = np.clip((10 * np.log10(intensity.astype(np.float64)) + 30) / 30, 0, 1)
    np.testing.assert_allclose(found["db"], by_hand, atol=1e-5)
    # What auto says: with a measured range it does not matter which of the two an image is.
    guesses = [_survey(np.sqrt(intensity)).scaling(rule) for rule in ("auto", "amplitude")]
    assert [guess.rule for guess in guesses] == ["db", "amplitude"]
    assert abs(guesses[1].low - 2 * guesses[0].low) < 1e-3
    values = [guess.apply(np.sqrt(intensity)) for guess in guesses]
    np.testing.assert_allclose(values[0], values[1], atol=1e-4)


def test_auto_says_what_it_took_and_refuses_to_guess():
    power = np.random.default_rng(4).gamma(1, 0.05, (64, 64, 1)).astype(np.float32)
    survey = _survey(power)
    assert survey.scaling().rule == "db"
    assert "taken as intensities" in survey.reason
    assert survey.moments(survey.scaling()).reason == survey.reason
    sixteen = _survey((power * 1000).astype(np.uint16))
    assert sixteen.statistics(sixteen.scaling()).reason == survey.reason
    decibels = _survey(10 * np.log10(power))
    assert decibels.scaling().rule == "linear"
    assert "decibels already" in decibels.reason
    power[:4] *= -1
    mixed = _survey(power)
    with pytest.raises(StatisticsError, match="6.25% of the sar pixels are negative.*--sar-scaling linear"):
        mixed.scaling()
    assert mixed.scaling("db").rule == "db" and mixed.reason == ""
    with pytest.raises(StatisticsError, match="end exactly at 1"):
        _survey(np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64, 1)).scaling()
    with pytest.raises(StatisticsError, match="is none of"):
        mixed.scaling("decibel")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_percentiles_of_each_channel_equal_numpy(kind):
    rng = np.random.default_rng(5)
    images = [np.stack([rng.gamma(4, 9 * (c + 1), (80, 70)) for c in range(2)], -1) for _ in range(3)]
    images = [np.minimum(image, 255).astype(kind) for image in images]
    halves = [_survey(*part, modality="optical") for part in (images[:1], images[1:])]
    halves[0].merge(halves[1])
    scaling = Scaling() if kind is np.uint8 else Scaling("linear", 0, 200)
    found = halves[0].percentiles(scaling)
    pixels = np.concatenate([image.reshape(-1, 2) for image in images])
    assert list(found) == ["1", "2", "50", "98", "99"]
    for share, values in found.items():
        wanted = np.percentile(scaling.apply(pixels), float(share), axis=0, method="inverted_cdf")
        np.testing.assert_allclose(values, wanted, atol=1e-6 if kind != np.float32 else 0.004)


def test_float_bins_keep_the_order_and_are_narrow():
    rng = np.random.default_rng(6)
    values = rng.choice([-1, 1], 5000) * 10.0 ** rng.uniform(-8, 8, 5000)
    values = np.sort(np.append(values, [0.0, -0.0])).astype(np.float32)
    bins, edges = float_bins(values), float_edges()
    assert (np.diff(bins) >= 0).all()
    assert (edges[bins] <= values).all() and (values <= edges[bins + 1]).all()
    width = edges[bins + 1] - edges[bins]
    assert (width <= np.maximum(np.abs(values) / 127, 1e-38)).all()


def test_selected_bands_are_those_measured_and_recorded():
    pixels = np.random.default_rng(7).integers(0, 4000, (30, 30, 5), dtype=np.uint16)
    survey = _survey(pixels, modality="optical", select=(3, 2, 1), bands=("B4", "B3", "B2"))
    found = survey.statistics(survey.scaling("linear:0:4000"))
    np.testing.assert_allclose(found.mean, pixels[..., [3, 2, 1]].mean((0, 1)) / 4000, rtol=1e-6)
    assert (found.channels, found.select, found.bands) == (3, (3, 2, 1), ("B4", "B3", "B2"))
    assert SourceStatistics.from_dict(found.to_dict()).select == (3, 2, 1)
    whole = IndexStatistics(sources={"s": {"optical": found}})
    other = IndexStatistics(sources={"s": {"optical": dataclasses.replace(found, select=(1, 2, 3))}})
    assert whole.hash() != other.hash()
    floats = _survey(pixels.astype(np.float32), modality="optical", select=(4,))
    moments = floats.moments(Scaling("linear", 0, 4000)).fresh()
    moments.add(pixels.astype(np.float32))
    np.testing.assert_allclose(moments.statistics().mean, [pixels[..., 4].mean() / 4000], rtol=1e-5)
    with pytest.raises(StatisticsError, match=r"5 channels has not all of the channels \[7\]"):
        _survey(pixels, modality="optical", select=(7,))


def test_optional_facts_survive_the_file_and_do_not_clutter_it(tmp_path):
    full = SourceStatistics(
        channels=1,
        mean=(0.5,),
        std=(0.1,),
        bands=("VV",),
        select=(0,),
        percentiles={"50": (0.4,)},
        reason="x",
    )
    bare = SourceStatistics(channels=1, mean=(0.5,), std=(0.1,))
    assert SourceStatistics.from_dict(full.to_dict()) == full
    assert not {"bands", "select", "percentiles", "reason"} & bare.to_dict().keys()
    assert SourceStatistics.from_dict(bare.to_dict()) == bare
    with pytest.raises(StatisticsError, match="must name each of the 1 channels"):
        dataclasses.replace(bare, select=(0, 1))


def _measured_files(paths, modality):
    survey = Survey(modality)
    for path in paths:
        survey.add(read_picture(Location(str(path))))
    return survey.statistics(survey.scaling())


@needs_shared_data
@pytest.mark.parametrize(
    ("pattern", "modality"),
    [
        ("volkov_s1s2/opt/*.png", "optical"),
        ("volkov_s1s2/sar/*.png", "sar"),
        ("mstar10_soc/train/*/*.jpeg", "sar"),
    ],
)
def test_statistics_of_real_images_equal_numpy(pattern, modality):
    paths = sorted(SHARED_DATA.glob(pattern))
    found = _measured_files(paths, modality)
    count, total, squares = 0, 0.0, 0.0
    for path in paths:
        pixels = np.asarray(Image.open(path), dtype=np.float64)
        pixels = (pixels.mean(-1) if pixels.ndim == 3 and modality == "sar" else pixels) / 255
        flat = pixels.reshape(-1, found.channels)
        count, total, squares = count + len(flat), total + flat.sum(0), squares + (flat**2).sum(0)
    mean = total / count
    np.testing.assert_allclose(found.mean, mean, atol=1e-4)
    np.testing.assert_allclose(found.std, np.sqrt(squares / count - mean**2), atol=1e-4)
    assert found.images == len(paths) > 40


_PEAK = """
import sys, tracemalloc
import numpy as np
from codemae.data.measuring import Survey
kind = sys.argv[1]
images = lambda n: (np.random.default_rng(i).gamma(1, 50, (48, 48, 2)).astype(kind) for i in range(n))
peaks = []
for count in (200, 1000):
    tracemalloc.start()
    survey = Survey("sar")
    for image in images(count):
        survey.add(image)
    scaling = survey.scaling("db")
    if kind == "float32":
        moments = survey.moments(scaling)
        for image in images(count):
            moments.add(image)
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
print(*peaks)
"""


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_memory_stays_flat_over_a_thousand_images(kind):
    printed = subprocess.run(
        [sys.executable, "-c", _PEAK, kind], capture_output=True, text=True, check=True
    ).stdout
    few, many = map(int, printed.split())
    assert many < few * 1.02 + 20_000
