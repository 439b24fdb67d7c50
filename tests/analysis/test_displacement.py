import numpy as np
import pytest

from codemae.analysis.displacement import displacement


def test_offset_that_all_pairs_share_is_told_from_their_scatter():
    offsets = np.array([[3.0, 4.0], [3.5, 4.0], [2.5, 4.0], [9.0, 4.0]])
    found = displacement(offsets, ["a", "b", "c", "d"])
    assert (found.right, found.below, found.pairs) == (3.25, 4.0, 4)
    # By hand: all are 4.7 px and more from 0; from the median, three of four are less than 1 px away.
    assert (found.aligned, found.aligned_source) == (0.0, 0.75)
    assert found.aligned_scene is None


def test_each_scene_has_an_offset_of_its_own():
    scenes = ["left"] * 5 + ["right"] * 5 + ["alone"]
    offsets = np.array([[-8.0, 0.0]] * 5 + [[8.0, 1.0]] * 5 + [[0.0, 0.0]])
    offsets[4] = -8.0, 7.0
    found = displacement(offsets, scenes)
    assert found.aligned == found.aligned_source == pytest.approx(1 / 11)
    # The pair alone in its scene does not count; of the other ten, one differs from its scene.
    assert found.aligned_scene == pytest.approx(0.9)


def test_direction_of_relief_is_found_and_bounds_the_noise():
    rng = np.random.default_rng(0)
    angle = np.radians(11)
    heights = rng.laplace(0, 4, 200)
    noise = rng.normal(0, 0.5, (200, 2))
    scenes = np.repeat(np.arange(20), 10)
    shift = rng.normal(0, 3, (20, 2))[scenes]
    offsets = shift + heights[:, None] * [np.cos(angle), np.sin(angle)] + noise
    found = displacement(offsets, scenes.tolist())
    assert found.direction == pytest.approx(11, abs=3)
    assert found.straightness > 0.8
    assert found.across == pytest.approx(0.67 * 0.5, rel=0.3)
    assert found.along > 4 * found.across
    assert displacement(noise, scenes.tolist()).straightness < 0.3


def test_missing_offsets_are_refused():
    with pytest.raises(ValueError, match="an offset and a scene"):
        displacement(np.zeros((2, 2)), ["a"])
