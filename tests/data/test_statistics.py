import numpy as np
import pytest
from data_makers import picture
from PIL import Image

from codemae.data.measuring import Moments, Survey
from codemae.data.statistics import (
    IndexStatistics,
    Scaling,
    SourceStatistics,
    StatisticsError,
    mixture,
    read_statistics,
)


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


@pytest.mark.parametrize("text", ["uint8", "linear:0:4095", "db:-25.5:0.25"])
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
