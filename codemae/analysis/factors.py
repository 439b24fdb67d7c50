"""What of a scene can be read out of features: one score for each known factor of the synthetic twin."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Kind = Literal["class", "amount", "angle"]

KINDS: Mapping[str, Kind] = {
    "scene": "class",
    "palette": "class",
    "paint": "class",
    "look_right": "class",
    "orientation": "angle",
    "sun_azimuth": "angle",
}
PERIODS: Mapping[str, float] = {"orientation": 180.0, "sun_azimuth": 360.0}
FOLDS = 5
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def factor_scores(
    features: NDArray[np.float32], factors: Mapping[str, Sequence[float]], seed: int = 0
) -> dict[str, float]:
    """How well linear models read each factor out of features, on held-out places.

    Amounts are regressed (ridge, R²), angles as sine and cosine over their period (mean R² of the two),
    classes classified (logistic regression, accuracy rescaled so that always naming the most frequent class
    gives 0). 1 is perfect, 0 what is known without the features; below 0 is shown as 0. Every prediction is
    of a place that its model has not seen (5 folds); the strength of the penalty is chosen inside each fold.

    Args:
        features: (B, D).
        factors: B values by name.
        seed: Of the folds.

    Raises:
        ValueError: A factor never varies.
    """
    return {name: _score(features, np.asarray(values), name, seed) for name, values in factors.items()}


def _score(features: NDArray[np.float32], values: NDArray[np.float64], name: str, seed: int) -> float:
    if np.unique(values).size < 2:
        raise ValueError(f"the factor {name} never varies; synthesise pairs that do not pin it")
    kind = KINDS.get(name, "amount")
    if kind == "class":
        return _class_score(features, values.astype(int), seed)
    targets = values[:, None]
    if kind == "angle":
        phase = 2 * np.pi * values / PERIODS[name]
        targets = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    model = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-1, 5, 13)))
    predicted = cross_val_predict(model, features, targets, cv=KFold(FOLDS, shuffle=True, random_state=seed))
    predicted = predicted.reshape(targets.shape)
    unexplained = ((targets - predicted) ** 2).mean(axis=0) / targets.var(axis=0)
    return float(max(0.0, 1 - unexplained.mean()))


def _class_score(features: NDArray[np.float32], classes: NDArray[np.int64], seed: int) -> float:
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    classifier = LogisticRegressionCV(
        Cs=PENALTIES, cv=3, l1_ratios=(0,), max_iter=1000, use_legacy_attributes=False, scoring="accuracy"
    )
    model = make_pipeline(StandardScaler(), classifier)
    accuracy = float((cross_val_predict(model, features, classes, cv=folds) == classes).mean())
    known = float(np.bincount(classes).max() / len(classes))
    return max(0.0, (accuracy - known) / (1 - known))
