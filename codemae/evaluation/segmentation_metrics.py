"""Figures of dense prediction from a confusion matrix, in percent, and those BRIGHT adds for buildings."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from codemae.losses.segmentation import IGNORE, localisation_target


def confusion(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORE) -> Tensor:
    """Pixels of true class (row) and predicted class (column): (K, K) int64.

    Args:
        prediction: (...) class numbers.
        target: (...) class numbers or ``ignore_index``, whose pixels are not counted.
        num_classes: K.
        ignore_index: Stands for no label.
    """
    return multiclass_confusion_matrix(
        prediction.flatten(), target.flatten(), num_classes, ignore_index=ignore_index
    )


def pixel_accuracy(matrix: Tensor) -> float:
    """Overall accuracy: percent of the labelled pixels that are right; not a number without any."""
    return _percent(matrix.diagonal().sum(), matrix.sum())


def class_ious(matrix: Tensor) -> list[float]:
    """IoU of each class; not a number for a class neither labelled nor predicted."""
    right = matrix.diagonal()
    union = matrix.sum(0) + matrix.sum(1) - right
    return [_percent(hit, all_) for hit, all_ in zip(right, union, strict=True)]


def class_f1(matrix: Tensor) -> list[float]:
    """F1 of each class; not a number for a class neither labelled nor predicted."""
    right = matrix.diagonal()
    return [_percent(2 * hit, all_) for hit, all_ in zip(right, matrix.sum(0) + matrix.sum(1), strict=True)]


def mean_of_known(values: list[float]) -> float:
    """Mean of those values that are numbers."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def damage_f1(matrix: Tensor) -> float:
    """Harmonic mean of the F1 of the damage classes inside true buildings, as BRIGHT defines it.

    Only rows 1 to K-1 of the matrix count, so a building pixel called background is a miss of its class.
    Classes without a labelled pixel are left out, which on BRIGHT's whole splits is none; 0 where the F1 of
    a class is 0.

    Args:
        matrix: (K, K) confusion of the damage classes, background first.
    """
    inside = matrix.clone()
    inside[0] = 0
    scores = class_f1(inside)[1:]
    known = [score for score, row in zip(scores, inside[1:], strict=True) if row.sum() > 0]
    if not known:
        return math.nan
    return 0.0 if min(known) == 0 else len(known) / sum(1 / score for score in known)


class DamageScore:
    """Confusion of localisation and damage, gathered tile by tile for the whole set and for each event.

    Args:
        classes: Names of the damage classes, background first.
        ignore_index: Stands for no label.
    """

    def __init__(self, classes: tuple[str, ...], ignore_index: int = IGNORE) -> None:
        self.classes = classes
        self.ignore_index = ignore_index
        self.matrices: dict[str, tuple[Tensor, Tensor]] = {}
        self.tiles: dict[str, int] = {}

    def add(self, building: Tensor, damage: Tensor | None, target: Tensor, event: str) -> None:
        """Counts one tile.

        Args:
            building: (H, W) of 0 and 1.
            damage: (H, W) damage classes; None where only localisation is predicted.
            target: (H, W) damage classes or the ignore value.
            event: The disaster the tile belongs to.
        """
        count = len(self.classes)
        truth = localisation_target(target, self.ignore_index)
        found = [
            confusion(building, truth, 2, self.ignore_index),
            torch.zeros(count, count, dtype=torch.int64)
            if damage is None
            else confusion(damage, target, count, self.ignore_index),
        ]
        before = self.matrices.get(event, (torch.zeros_like(found[0]), torch.zeros_like(found[1])))
        self.matrices[event] = (before[0] + found[0], before[1] + found[1])
        self.tiles[event] = self.tiles.get(event, 0) + 1

    def figures(self, event: str | None = None) -> dict[str, float]:
        """The figures of one event, or of all tiles together.

        Returns:
            ``localisation_f1`` and, where damage was predicted, ``overall_accuracy``, ``mean_iou``,
            ``damage_f1`` and ``iou_<class>``.
        """
        matrices = list(self.matrices.values()) if event is None else [self.matrices[event]]
        building = torch.stack([pair[0] for pair in matrices]).sum(0)
        damage = torch.stack([pair[1] for pair in matrices]).sum(0)
        figures = {"localisation_f1": class_f1(building)[1], "localisation_iou": class_ious(building)[1]}
        if damage.sum():
            ious = class_ious(damage)
            figures |= {
                "overall_accuracy": pixel_accuracy(damage),
                "mean_iou": mean_of_known(ious),
                "damage_f1": damage_f1(damage),
            }
            figures |= {f"iou_{name}": value for name, value in zip(self.classes, ious, strict=True)}
        return figures

    def state(self) -> dict[str, tuple[list[list[int]], list[list[int]], int]]:
        """Plain numbers of all counts, for gathering them from several processes."""
        return {
            event: (pair[0].tolist(), pair[1].tolist(), self.tiles[event])
            for event, pair in self.matrices.items()
        }

    def merge(self, state: dict[str, tuple[list[list[int]], list[list[int]], int]]) -> None:
        """Adds the counts of another process."""
        for event, (building, damage, tiles) in state.items():
            pair = torch.tensor(building), torch.tensor(damage)
            before = self.matrices.get(event, (torch.zeros_like(pair[0]), torch.zeros_like(pair[1])))
            self.matrices[event] = (before[0] + pair[0], before[1] + pair[1])
            self.tiles[event] = self.tiles.get(event, 0) + tiles


def _percent(part: Tensor, whole: Tensor) -> float:
    return 100.0 * float(part) / float(whole) if float(whole) else math.nan
