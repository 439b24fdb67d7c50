import math

import numpy as np
import pytest
import torch

from codemae.evaluation.segmentation_metrics import (
    DamageScore,
    class_f1,
    class_ious,
    confusion,
    damage_f1,
    mean_of_known,
    pixel_accuracy,
)

CLASSES = ("background", "intact", "damaged", "destroyed")


def maps(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 4, (17, 23))
    damage = np.where(rng.random(target.shape) < 0.6, target, rng.integers(0, 4, target.shape))
    building = np.where(rng.random(target.shape) < 0.8, target > 0, rng.random(target.shape) < 0.5)
    target[rng.random(target.shape) < 0.25] = 255
    return building.astype(np.int64), damage, target


def by_hand(building: np.ndarray, damage: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Masks and sums, no confusion matrix."""
    known = target != 255
    ious = []
    for number in range(4):
        hit = (known & (damage == number) & (target == number)).sum()
        ious.append(100 * hit / (known & ((damage == number) | (target == number))).sum())
    truth = known & (target > 0)
    found = known & (building == 1)
    f1 = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    inverse = []
    for number in (1, 2, 3):
        inside_hit = (truth & (damage == number) & (target == number)).sum()
        share = (truth & (damage == number)).sum() + (truth & (target == number)).sum()
        inverse.append(share / (2 * inside_hit))
    return {
        "overall_accuracy": 100 * (known & (damage == target)).sum() / known.sum(),
        "mean_iou": float(np.mean(ious)),
        "localisation_f1": 100 * f1,
        "damage_f1": 100 * 3 / sum(inverse),
        **{f"iou_{name}": value for name, value in zip(CLASSES, ious, strict=True)},
    }


def test_all_figures_agree_with_numpy_on_random_maps_with_ignored_pixels() -> None:
    score, parts = DamageScore(CLASSES), [maps(seed) for seed in range(3)]
    for place, (building, damage, target) in enumerate(parts):
        tensors = [torch.from_numpy(each) for each in (building, damage, target)]
        score.add(*tensors, event=f"event{place % 2}")
    joined = [np.concatenate([part[kind] for part in parts]) for kind in range(3)]
    expected = by_hand(*joined)
    found = score.figures()
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    alone = by_hand(*parts[1])
    assert {name: score.figures("event1")[name] for name in alone} == pytest.approx(alone, abs=1e-9)
    assert score.tiles == {"event0": 2, "event1": 1}


def test_counts_of_two_processes_add_up() -> None:
    whole, halves = DamageScore(CLASSES), [DamageScore(CLASSES), DamageScore(CLASSES)]
    for place in range(4):
        tensors = [torch.from_numpy(each) for each in maps(place)]
        whole.add(*tensors, event="a")
        halves[place % 2].add(*tensors, event="a")
    gathered = DamageScore(CLASSES)
    for half in halves:
        gathered.merge(half.state())
    assert gathered.figures() == whole.figures() and gathered.tiles == whole.tiles


def test_a_class_nobody_has_is_left_out_and_one_never_found_counts_zero() -> None:
    target = torch.tensor([0, 0, 1, 1, 255])
    matrix = confusion(torch.tensor([0, 1, 1, 0, 3]), target, 4)
    assert matrix.sum() == 4
    assert class_ious(matrix)[:2] == pytest.approx([100 / 3, 100 / 3])
    assert all(math.isnan(value) for value in class_ious(matrix)[2:] + class_f1(matrix)[2:])
    assert mean_of_known(class_ious(matrix)) == pytest.approx(100 / 3)
    assert pixel_accuracy(matrix) == 50.0
    assert damage_f1(matrix) == pytest.approx(
        100 * 2 / 3
    )  # class 1 inside buildings: 1 of 2 found, no false one
    assert damage_f1(confusion(torch.tensor([1, 1]), torch.tensor([1, 2]), 4)) == 0.0


def test_localisation_alone_has_no_damage_figures() -> None:
    score = DamageScore(CLASSES)
    score.add(torch.tensor([[1, 0]]), None, torch.tensor([[3, 0]]), "a")
    assert score.figures() == {"localisation_f1": 100.0, "localisation_iou": 100.0}
