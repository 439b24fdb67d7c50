import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold

from codemae.analysis.factors import factor_scores

B = 300


def test_what_the_features_hold_scores_high_and_what_they_lack_scores_zero() -> None:
    rng = np.random.default_rng(0)
    amount, angle = rng.uniform(size=B), rng.uniform(0, 360, size=B)
    palette = rng.integers(0, 4, size=B)
    known = np.stack([amount, np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle)), *np.eye(4)[palette].T], 1)
    features = (known @ rng.normal(size=(7, 20)) + 0.001 * rng.normal(size=(B, 20))).astype(np.float32)
    factors = {"roughness": amount, "sun_azimuth": angle, "palette": palette}
    held = factor_scores(features, {name: values.tolist() for name, values in factors.items()})
    assert all(score > 0.97 for score in held.values()), held
    noise = rng.normal(size=(B, 20)).astype(np.float32)
    lacking = factor_scores(noise, {name: values.tolist() for name, values in factors.items()})
    assert all(score < 0.08 for score in lacking.values()), lacking


def test_a_noisy_amount_scores_what_held_out_regression_explains() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(B, 3)).astype(np.float32)
    amount = features @ np.array([1.0, -2.0, 0.5]) + rng.normal(size=B) * 2
    left = np.zeros(B)
    for train, test in KFold(5, shuffle=True, random_state=0).split(features):
        fitted = LinearRegression().fit(features[train], amount[train])
        left[test] = (amount[test] - fitted.predict(features[test])) ** 2
    expected = 1 - left.mean() / amount.var()
    scores = factor_scores(features, {"calibration": amount.tolist()})
    assert scores["calibration"] == pytest.approx(expected, abs=0.02)  # ridge against no penalty
    assert 0.4 < expected < 0.7


def test_a_class_is_scored_above_naming_the_most_frequent_one() -> None:
    rng = np.random.default_rng(2)
    classes = np.repeat([0, 1], [240, 60])
    scores = factor_scores(rng.normal(size=(B, 5)).astype(np.float32), {"look_right": classes.tolist()})
    assert scores["look_right"] < 0.05  # 80 % accuracy, and nothing known


def test_a_factor_that_never_varies_is_refused() -> None:
    with pytest.raises(ValueError, match="palette never varies"):
        factor_scores(np.zeros((10, 2), np.float32), {"palette": [1.0] * 10})
