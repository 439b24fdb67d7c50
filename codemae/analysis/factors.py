"""What of a scene can be read out of features: one score for each known factor of the synthetic twin."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from codemae.data.synthetic.factors import COVERS, MARGIN, SCENES
from codemae.data.synthetic.layout import build_layouts
from codemae.data.synthetic.writer import LABELS_NAME, read_factors

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
CEILED = ("road_density", "building_density")


def factor_scores(
    features: NDArray[np.float32], factors: Mapping[str, Sequence[float]], seed: int = 0
) -> dict[str, float]:
    """How well linear models read each factor out of features, on held-out places.

    Amounts are regressed (ridge, R²), angles as sine and cosine over their period (mean R² of the two),
    classes classified (logistic regression, accuracy rescaled so that always naming the most frequent class
    gives 0). 1 is every value read exactly, 0 what is known without the features; below 0 is shown as 0. A
    density is the chance by which a scene's roads or buildings were drawn, so that no picture shows it
    exactly: ``scene_ceiling`` says how much of it the ground holds. Every prediction is of a place that its
    model has not seen (5 folds); the strength of the penalty is chosen inside each fold.

    Args:
        features: (B, D).
        factors: B values by name.
        seed: Of the folds.

    Raises:
        ValueError: A factor never varies.
    """
    # On matrices this small a second thread only waits: 5 times as slow beside other work.
    with threadpool_limits(1):
        return {name: _score(features, np.asarray(values), name, seed) for name, values in factors.items()}


def scene_ceiling(directory: str | Path, split: str, size: int, seed: int = 0) -> dict[str, float]:
    """What the ground itself tells of the densities, by the probe of ``factor_scores``: a row to measure by.

    The features are the scene's class, the exact share of each land cover and the number of buildings, and
    the products of the class with the others, since one share speaks of another density in another class. The
    layouts are built again from the seeds and factors in the twin's table. Features of pictures can pass this
    by what lies in the arrangement; other factors have no such row, their ceiling is not known.

    Args:
        directory: Folder of a synthetic dataset; the ground is that of its optical date.
        split: One of its splits.
        size: Side of its pictures in pixels.
        seed: Of the folds.

    Returns:
        Scores of ``CEILED``.
    """
    factors = read_factors(directory, split)
    with open(Path(directory) / LABELS_NAME, newline="") as handle:
        seeds = {line["name"]: int(line["seed"]) for line in csv.DictReader(handle)}
    ground = np.stack([_ground(seeds[name], size, place) for name, place in factors.items()])
    scenes = np.eye(len(SCENES))[[int(place["scene"]) for place in factors.values()]]
    products = (scenes[:, :, None] * ground[:, None]).reshape(len(ground), -1)
    features = np.concatenate([scenes, ground, products], axis=1).astype(np.float32)
    return factor_scores(
        features, {name: [place[name] for place in factors.values()] for name in CEILED}, seed
    )


def _ground(seed: int, size: int, factors: Mapping[str, float]) -> NDArray[np.float64]:
    """Share of each land cover in the picture of a place, and the number of its buildings."""
    drawn = {name: int(value) if KINDS.get(name) == "class" else value for name, value in factors.items()}
    layout, _ = build_layouts(seed, size, drawn, change_fraction=0.0)
    window = slice(MARGIN, -MARGIN)
    shares = np.bincount(layout.cover[window, window].ravel(), minlength=len(COVERS)) / size**2
    return np.append(shares, len(layout.boxes))


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
    choices = {"C": PENALTIES}
    classifier = GridSearchCV(LogisticRegression(max_iter=1000), choices, cv=3, scoring="accuracy")
    model = make_pipeline(StandardScaler(), classifier)
    accuracy = float((cross_val_predict(model, features, classes, cv=folds) == classes).mean())
    known = float(np.bincount(classes).max() / len(classes))
    return max(0.0, (accuracy - known) / (1 - known))
