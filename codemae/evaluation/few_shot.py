"""Which training images a probe or a fine-tuning may use: k shots, or a share of the labels."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SUBSET_SEED = 729

FewShot = Literal["per_class", "official"]


class FewShotError(ValueError):
    """The training split holds too little for the subset asked for."""


def multi_hot(labels: Tensor, num_classes: int) -> np.ndarray:
    """(B,) class numbers or (B, K) zeros and ones as a (B, K) table of booleans."""
    table = labels if labels.ndim == 2 else functional.one_hot(labels, num_classes)
    return table.numpy().astype(bool)


def few_shot_rows(
    labels: Tensor, num_classes: int, shots: int | None, seed: int, rule: FewShot = "per_class"
) -> Tensor:
    """Draws the training subset of one seed.

    Args:
        labels: (B,) class numbers or (B, K) zeros and ones of the whole training split.
        num_classes: K.
        shots: k; None takes every row.
        seed: Of the probe; the generator starts from 729 + seed.
        rule: ``per_class`` draws k rows that show each class (with several labels a row: their union);
            ``official`` draws k x K rows from the whole split whatever their class.

    Returns:
        Row numbers, each once.

    Raises:
        FewShotError: The split holds too few rows.
    """
    if shots is None:
        return torch.arange(len(labels))
    if shots < 1:
        raise FewShotError(
            f"--shots {shots}: ask for at least 1, or leave it out to use every training image"
        )
    table = multi_hot(labels, num_classes)
    generator = np.random.RandomState(SUBSET_SEED + seed)
    if rule == "official":
        wanted = shots * num_classes
        if wanted > len(table):
            raise FewShotError(
                f"--shots {shots} --few_shot official draws {wanted} images, the training split has "
                f"{len(table)}; lower --shots"
            )
        return torch.from_numpy(generator.permutation(len(table))[:wanted])
    chosen: list[np.ndarray] = []
    for klass in range(num_classes):
        members = np.flatnonzero(table[:, klass])
        if len(members) < shots:
            raise FewShotError(
                f"--shots {shots}: class {klass} has only {len(members)} training images; lower --shots"
            )
        chosen.append(generator.permutation(members)[:shots])
    return torch.from_numpy(np.unique(np.concatenate(chosen)))


def label_fraction_rows(labels: Tensor, num_classes: int, fraction: float, seed: int) -> Tensor:
    """Draws a share of the labels for one seed, the shares of the classes kept.

    Args:
        labels: (B,) class numbers or (B, K) zeros and ones of the whole training split.
        num_classes: K.
        fraction: Above 0, at most 1; 1 takes every row.
        seed: Of the probe; the generator starts from 729 + seed.

    Returns:
        Row numbers in order: with one label a row, the rounded share of each class and at least one row of
        it; with several, the rounded share of all rows, whatever they show.

    Raises:
        FewShotError: No share, or so few rows that none is drawn.
    """
    if not 0 < fraction <= 1:
        raise FewShotError(f"--fraction {fraction:g}: it must be above 0 and at most 1, as in 0.01")
    if fraction == 1:
        return torch.arange(len(labels))
    generator = np.random.RandomState(SUBSET_SEED + seed)
    if labels.ndim == 2:
        wanted = round(fraction * len(labels))
        if not wanted:
            raise FewShotError(
                f"--fraction {fraction:g} of {len(labels)} training images is none; raise --fraction"
            )
        return torch.from_numpy(np.sort(generator.permutation(len(labels))[:wanted]))
    numbers = labels.numpy()
    chosen = []
    for klass in range(num_classes):
        members = np.flatnonzero(numbers == klass)
        chosen.append(generator.permutation(members)[: max(1, round(fraction * len(members)))])
    return torch.from_numpy(np.sort(np.concatenate(chosen)))
