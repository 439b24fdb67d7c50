"""Linear probing of frozen features: the classifiers of all seeds in one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from codemae.evaluation.metrics import score

BATCH_NORM_EPS = 1e-6


class ProbeError(ValueError):
    """The data cannot be probed as asked."""


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How the linear classifier is trained; the defaults are the published protocol.

    Attributes:
        epochs: Passes over the training subset.
        batch_size: Samples a step; a subset smaller than this makes one step an epoch.
        lr: First learning rate, not scaled by the batch size.
        min_lr: Learning rate the cosine falls to.
        momentum: Of SGD.
        weight_decay: Of SGD.
        init_std: Standard deviation of the first weights; biases start at zero.
        evaluate_every: Epochs between the states kept for the ``official`` figure.
    """

    epochs: int = 50
    batch_size: int = 256
    lr: float = 0.5
    min_lr: float = 1e-6
    momentum: float = 0.9
    weight_decay: float = 0.0
    init_std: float = 0.01
    evaluate_every: int = 5

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeState:
    """The classifiers of S seeds at one epoch.

    Attributes:
        weight: (S, K, D).
        bias: (S, K).
        mean: (S, D) running mean of the batch norm.
        var: (S, D) running variance of the batch norm.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    var: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) features to (S, B, K) logits, the batch norm folded into the linear layer."""
        weight = self.weight * torch.rsqrt(self.var + BATCH_NORM_EPS).unsqueeze(1)  # (S, K, D)
        bias = self.bias - torch.einsum("skd,sd->sk", weight, self.mean)
        return torch.einsum("bd,skd->sbk", features, weight) + bias.unsqueeze(1)

    def of(self, place: int) -> "ProbeState":
        """The classifier of one seed alone."""
        parts = (self.weight, self.bias, self.mean, self.var)
        weight, bias, mean, var = (part[place : place + 1] for part in parts)
        return ProbeState(weight=weight, bias=bias, mean=mean, var=var)


def normalise_features(features: Tensor) -> Tensor:
    """Layer norm without affine over the width of pooled features (B, D)."""
    return functional.layer_norm(features.float(), features.shape[-1:], eps=1e-6)


def train_probes(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    subsets: Sequence[Tensor],
    seeds: Sequence[int],
    settings: ProbeSettings,
) -> dict[int, ProbeState]:
    """Trains one classifier a seed, all in one run: batch norm without affine, then a linear layer.

    The seeds share nothing but the feature table: each has its subset, its first weights, its order
    and its batch statistics, so the outcome equals training each alone. A last batch of one sample
    is left out, for it has no variance.

    Args:
        features: (B, D) of the training split, layer-normalised.
        labels: (B,) class numbers or (B, K) zeros and ones.
        num_classes: K.
        subsets: Rows of ``features`` each seed trains on.
        seeds: One a subset.
        settings: Of the training.

    Returns:
        Epochs done -> the classifiers then: each ``evaluate_every``-th epoch and the last.
    """
    width, device = features.shape[1], features.device
    for seed, rows in zip(seeds, subsets, strict=True):
        if len(rows) < 2:
            raise ProbeError(f"the subset of seed {seed} has {len(rows)} images; at least 2 are needed")

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    weights, biases = [], []
    for generator in generators:
        first = torch.randn(num_classes, width, generator=generator) * settings.init_std
        weights.append(first.to(device).requires_grad_())
        biases.append(torch.zeros(num_classes, device=device, requires_grad=True))
    optimizer = torch.optim.SGD(
        [{"params": pair} for pair in zip(weights, biases, strict=True)],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    mean = torch.zeros(len(seeds), width, device=device)
    var = torch.ones(len(seeds), width, device=device)
    steps_per_epoch = [_num_batches(len(rows), settings.batch_size) for rows in subsets]

    kept: dict[int, ProbeState] = {}
    for epoch in range(settings.epochs):
        orders = [
            rows[torch.randperm(len(rows), generator=generator)].to(device)
            for rows, generator in zip(subsets, generators, strict=True)
        ]
        for step in range(max(steps_per_epoch)):
            optimizer.zero_grad()
            for members, rows in _batches_of_equal_length(orders, step, settings.batch_size):
                batch = features[rows].reshape(len(rows), -1)  # (B, S * D)
                chosen = torch.tensor(members, device=device)
                group_mean, group_var = mean[chosen].reshape(-1), var[chosen].reshape(-1)
                batch = functional.batch_norm(batch, group_mean, group_var, training=True, eps=BATCH_NORM_EPS)
                mean[chosen] = group_mean.reshape(-1, width)
                var[chosen] = group_var.reshape(-1, width)
                stacked = torch.stack([weights[i] for i in members]).transpose(1, 2)  # (S, D, K)
                logits = torch.baddbmm(
                    torch.stack([biases[i] for i in members]).unsqueeze(1),
                    batch.reshape(len(rows), -1, width).transpose(0, 1),
                    stacked,
                )  # (S, B, K)
                target = labels[rows].transpose(0, 1)
                # The mean over S groups of equal size, times S: each seed gets its own mean's gradient.
                (_loss(logits, target) * len(members)).backward()
                for i in members:
                    done = (epoch * steps_per_epoch[i] + step) / (settings.epochs * steps_per_epoch[i])
                    optimizer.param_groups[i]["lr"] = _cosine(settings, done)
            optimizer.step()
        if (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == settings.epochs:
            kept[epoch + 1] = ProbeState(
                weight=torch.stack(weights).detach().clone(),
                bias=torch.stack(biases).detach().clone(),
                mean=mean.clone(),
                var=var.clone(),
            )
    return kept


def evaluate_probes(
    states: dict[int, ProbeState], features: Tensor, labels: Tensor
) -> dict[int, list[float]]:
    """Scores every kept state on the evaluated split: epochs done -> one figure a seed."""
    return {
        epoch: [score(logits, labels) for logits in state.logits(features)] for epoch, state in states.items()
    }


def best_epochs(
    states: dict[int, ProbeState], features: Tensor, labels: Tensor, validations: Sequence[Tensor]
) -> list[int]:
    """The kept epoch of each seed that scores best on its validation rows; of equals the latest."""
    chosen = []
    for place, rows in enumerate(validations):
        rows = rows.to(features.device)
        figures = {
            epoch: score(state.of(place).logits(features[rows])[0], labels[rows])
            for epoch, state in states.items()
        }
        chosen.append(max(figures, key=lambda epoch: (figures[epoch], epoch)))
    return chosen


def _num_batches(count: int, batch_size: int) -> int:
    whole, rest = divmod(count, batch_size)
    return whole + (rest > 1)


def _batches_of_equal_length(
    orders: Sequence[Tensor], step: int, batch_size: int
) -> Iterator[tuple[list[int], Tensor]]:
    """The step's batches, seeds with the same batch length together: (seed positions, rows (B, S))."""
    by_length: dict[int, list[int]] = {}
    for i, order in enumerate(orders):
        length = min(len(order) - step * batch_size, batch_size)
        if length > 1:
            by_length.setdefault(length, []).append(i)
    for length, members in by_length.items():
        start = step * batch_size
        yield members, torch.stack([orders[i][start : start + length] for i in members], dim=1)


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """(S, B, K) logits against (S, B) class numbers or (S, B, K) zeros and ones, averaged over S and B."""
    if target.ndim == 2:
        return functional.cross_entropy(logits.flatten(0, 1), target.flatten())
    return functional.multilabel_soft_margin_loss(logits.flatten(0, 1), target.flatten(0, 1).float())


def _cosine(settings: ProbeSettings, done: float) -> float:
    return settings.min_lr + 0.5 * (settings.lr - settings.min_lr) * (1.0 + math.cos(math.pi * done))
