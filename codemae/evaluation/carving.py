"""A validation part carved from the training split, so that choices need no look at the test split."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from codemae.evaluation.few_shot import multi_hot

CARVING_SEED = 1009


class CarvingError(ValueError):
    """The training split leaves nothing to validate on."""


def carve_validation(
    labels: Tensor,
    train_rows: Tensor,
    seed: int,
    *,
    fraction: float = 0.1,
    shots: int | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """Splits off the rows that choices are made on.

    Without ``shots`` a share of every class leaves the training rows: the rounded share, but at least one row
    of a class that has two and never its last training row. With ``shots`` the training rows were drawn
    already and stay as they are; up to ``shots`` more rows of each class come from the rows left over. The
    rarest class is served first, and rows drawn for one class count for the others they show.

    Args:
        labels: (B,) class numbers or (B, K) zeros and ones of the whole training split.
        train_rows: Positions in ``labels`` that may be trained on.
        seed: Of the draw, which is a function of all arguments.
        fraction: Share of each class that is carved off; above 0 and below 1.
        shots: Images a class the training rows were drawn with.
        groups: (B,) scene or place of each row; rows of one group never stand on both sides, so that classes
            can get more than their share, or none.

    Returns:
        Positions in ``labels`` to train on and to validate on; no row is in both.

    Raises:
        CarvingError: No row can be had to validate on.
    """
    if not 0 < fraction < 1:
        raise CarvingError(f"a validation share of {fraction:g} is not between 0 and 1")
    num_classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    table = multi_hot(labels, num_classes)
    table = np.column_stack([table, ~table.any(axis=1)])  # rows that show no class are one more class
    places = np.arange(len(table)) if groups is None else np.unique(groups, return_inverse=True)[1]
    train = train_rows.numpy()
    generator = np.random.RandomState(CARVING_SEED + seed)
    if shots is None:
        counts = table[train].sum(axis=0)
        wanted = np.minimum(np.maximum(np.rint(fraction * counts), 1), counts - 1)
        chosen = _draw(table, train, places, wanted, generator, keep=counts)
        training = train[~np.isin(train, chosen)]
    else:
        rest = np.setdiff1d(np.arange(len(table)), train)
        rest = rest[~np.isin(places[rest], places[train])]
        chosen = _draw(
            table, rest, np.arange(len(table)), np.full(table.shape[1], shots), generator, keep=None
        )
        training = train
    if not len(chosen):
        raise CarvingError(
            "the training split leaves no image to validate on; use --select last, which needs none"
        )
    return torch.from_numpy(training), torch.from_numpy(chosen)


def _draw(
    table: np.ndarray,
    candidates: np.ndarray,
    places: np.ndarray,
    wanted: np.ndarray,
    generator: np.random.RandomState,
    keep: np.ndarray | None,
) -> np.ndarray:
    """Draws whole groups of candidates until each class has its number, sorted.

    ``keep`` counts the training rows of each class; a group that would take a class's last is passed over.
    """
    taken = np.zeros(table.shape[1])
    chosen: set[int] = set()
    in_order = candidates[np.argsort(places[candidates], kind="stable")]
    starts = np.flatnonzero(np.diff(places[in_order])) + 1
    members = {int(places[group[0]]): group for group in np.split(in_order, starts) if len(group)}
    for klass in np.argsort(table[candidates].sum(axis=0), kind="stable"):
        for row in generator.permutation(candidates[table[candidates, klass]]):
            if taken[klass] >= wanted[klass]:
                break
            group = members[int(places[row])]
            shown = table[group].sum(axis=0)
            if int(row) in chosen or (keep is not None and (taken + shown >= keep)[shown > 0].any()):
                continue
            chosen.update(int(member) for member in group)
            taken += shown
    return np.array(sorted(chosen), dtype=np.int64)
