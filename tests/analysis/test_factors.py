import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

from codemae.analysis.factors import CEILED, factor_scores, scene_ceiling
from codemae.data.synthetic.factors import SynthesisOptions
from codemae.data.synthetic.pair import synthesise
from codemae.data.synthetic.writer import write_dataset

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


def test_the_penalty_is_that_of_the_best_accuracy_inside_each_fold() -> None:
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 3, size=150)
    features = np.eye(3)[classes] @ rng.normal(size=(3, 12)) + 2 * rng.normal(size=(150, 12))
    right = 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(features, classes):
        mean, std = features[train].mean(0), features[train].std(0)
        x, y = (features - mean) / std, classes
        accuracies = []
        for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            model = LogisticRegression(C=strength, max_iter=1000)
            parts = StratifiedKFold(3).split(x[train], y[train])
            accuracies.append(
                np.mean(
                    [model.fit(x[train][a], y[train][a]).score(x[train][b], y[train][b]) for a, b in parts]
                )
            )
        best = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)[int(np.argmax(accuracies))]
        right += int(
            (
                LogisticRegression(C=best, max_iter=1000).fit(x[train], y[train]).predict(x[test]) == y[test]
            ).sum()
        )
    known = np.bincount(classes).max() / 150
    scores = factor_scores(features, {"palette": classes.tolist()})
    assert scores["palette"] == pytest.approx((right / 150 - known) / (1 - known))
    assert 0.2 < scores["palette"] < 0.9


def test_the_ceiling_of_a_density_is_what_its_ground_shows(tmp_path: Path) -> None:
    options = SynthesisOptions(scene=4)
    write_dataset(tmp_path, train=1, test=120, size=48, options=options)
    ceiling = scene_ceiling(tmp_path, "test", 48)
    assert tuple(ceiling) == CEILED
    pairs = {
        line["name"]: synthesise(int(line["seed"]), 48, options)
        for line in csv.DictReader((tmp_path / "labels.csv").read_text().splitlines())
        if line["split"] == "test"
    }
    ground = np.array(
        [[*((pair.cover == cover).mean() for cover in range(7)), len(pair.boxes)] for pair in pairs.values()]
    )
    # With one scene the class and its products with the rest add nothing but a lighter penalty.
    for name in CEILED:
        expected = factor_scores(ground, {name: [float(pair.factors[name]) for pair in pairs.values()]})[name]
        assert ceiling[name] == pytest.approx(expected, abs=0.03)
        assert 0.05 < ceiling[name] < 0.95
