import numpy as np
import pytest

from codemae.analysis.structure import reduced, similarity_by_scale


def slow_similarity(a, b):
    """SSIM by its definition: Gaussian weights of 11 x 11 pixels round every pixel, the border mirrored."""
    a, b = (np.pad(side, 5, mode="reflect") for side in (a, b))
    steps = np.arange(-5, 6)
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for y in range(5, a.shape[0] - 5):
        for x in range(5, a.shape[1] - 5):
            p, q = (side[y - 5 : y + 6, x - 5 : x + 6].astype(np.float64) for side in (a, b))
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * p * p).sum() - mp**2, (weights * q * q).sum() - mq**2
            c = (weights * p * q).sum() - mp * mq
            top = (2 * mp * mq + 1e-4) * (2 * c + 9e-4)
            values.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_similarity_equals_its_definition():
    rng = np.random.default_rng(0)
    a = rng.random((20, 24)).astype(np.float32)
    b = (0.6 * a + 0.4 * rng.random((20, 24))).astype(np.float32)
    found = similarity_by_scale(a, b, [1])[1]
    assert found == pytest.approx(slow_similarity(a, b), abs=2e-4)


def test_next_level_is_the_binomial_mean_of_every_second_pixel():
    plane = np.random.default_rng(1).random((9, 12)).astype(np.float32)
    line = np.array([1, 4, 6, 4, 1]) / 16
    by_hand = sum(line[i] * line[j] * plane[4 + i - 2, 6 + j - 2] for i in range(5) for j in range(5))
    assert reduced(plane)[2, 3] == pytest.approx(by_hand, rel=1e-5)
    assert reduced(plane).shape == (5, 6)


def test_noise_that_differs_between_sides_counts_less_at_coarser_scales():
    rng = np.random.default_rng(2)
    ground = np.kron(rng.random((8, 8)), np.ones((16, 16)))
    a, b = (np.clip(ground + rng.normal(0, 0.3, ground.shape), 0, 1).astype(np.float32) for _ in range(2))
    found = similarity_by_scale(a, b)
    assert found[1] < found[2] < found[4] < found[8]
    assert similarity_by_scale(a, a)[1] == pytest.approx(1)


def test_level_smaller_than_the_window_has_no_similarity():
    plane = np.zeros((32, 32), np.float32)
    assert similarity_by_scale(plane, plane)[4] is None


def test_impossible_scales_and_sides_are_refused():
    plane = np.zeros((32, 32), np.float32)
    with pytest.raises(ValueError, match="powers of two"):
        similarity_by_scale(plane, plane, [3])
    with pytest.raises(ValueError, match="one size"):
        similarity_by_scale(plane, plane[:16])
