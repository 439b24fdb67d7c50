"""Losses of dense prediction; pixels without a label count in none of their terms."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def pixel_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Mean cross-entropy over the labelled pixels; zero, with zero gradient, where there are none.

    In several processes each averages over its own pixels, as the authors' code does.

    Args:
        logits: (B, K, H, W).
        target: (B, H, W), class numbers or ``ignore_index``.
        ignore_index: Stands for no label.
    """
    logits = logits.float()
    total = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="sum")
    return total / (target != ignore_index).sum().clamp(min=1)


def lovasz_softmax(logits: Tensor, target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Lovasz extension of the Jaccard loss, averaged over the classes the labels of the batch hold.

    With p the softmax probabilities and c a class, the error of pixel i is m_i = 1 - p_i(c) where its label
    is c and p_i(c) elsewhere. With errors sorted to fall, m_(1) >= m_(2) >= ..., and J_n the Jaccard loss
    of getting exactly the first n pixels wrong,

        loss_c = sum_n m_(n) (J_n - J_(n-1)),   J_0 = 0,
        J_n = 1 - (G - g_n) / (G + n - g_n),

    G pixels of class c in all and g_n of them among the first n.

    Args:
        logits: (B, K, H, W), computed in float32 whatever the autocast type.
        target: (B, H, W), class numbers or ``ignore_index``.
        ignore_index: Stands for no label; such pixels are taken out before anything is sorted.

    Returns:
        A number; zero, with zero gradient, where no pixel is labelled.

    Distributed: each process averages over its own pixels and classes, as the authors' code does.

    Differs from the authors' code: all images of the batch form one set, classes without a label are left
    out, and a batch without labels gives zero.

    Reference: Berman et al., "The Lovasz-Softmax loss: A tractable surrogate for the optimization of the
    intersection-over-union measure in neural networks", CVPR 2018.
    """
    probabilities = logits.float().softmax(dim=1).movedim(1, -1)
    labelled = target != ignore_index
    chosen, labels = probabilities[labelled], target[labelled]
    if not len(labels):
        return 0.0 * logits.float().sum()
    losses = []
    for number in labels.unique().tolist():
        truth = (labels == number).float()
        errors, order = (truth - chosen[:, number]).abs().sort(descending=True)
        # A product of vectors would be taken in the autocast type.
        losses.append((errors * _jaccard_steps(truth[order])).sum())
    return torch.stack(losses).mean()


def _jaccard_steps(truth: Tensor) -> Tensor:
    """What each pixel, in the order of falling errors, adds to the Jaccard loss: (n,) of zeros and ones."""
    total = truth.sum()
    found = truth.cumsum(0)
    counted = torch.arange(1, len(truth) + 1, device=truth.device)
    jaccard = 1.0 - (total - found) / (total + counted - found)
    return torch.diff(jaccard, prepend=jaccard.new_zeros(1))


def localisation_target(target: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Buildings, whatever happened to them: every class above 0 becomes 1, ignored pixels stay ignored."""
    merged = (target > 0).long()
    return torch.where(target == ignore_index, target, merged)


@dataclass(frozen=True, kw_only=True)
class DamageTerms:
    """Weights of the terms of ``damage_losses``.

    Attributes:
        localisation_ce: Cross-entropy of building against background.
        damage_ce: Cross-entropy of the damage classes.
        localisation_lovasz: Lovasz-softmax of building against background.
        damage_lovasz: Lovasz-softmax of the damage classes.
        post_localisation: Cross-entropy of building against background from the second date alone.
    """

    localisation_ce: float = 1.0
    damage_ce: float = 1.0
    localisation_lovasz: float = 0.0
    damage_lovasz: float = 0.0
    post_localisation: float = 0.0


def damage_losses(
    localisation: Tensor,
    damage: Tensor,
    target: Tensor,
    terms: DamageTerms,
    post_localisation: Tensor | None = None,
    ignore_index: int = IGNORE,
) -> dict[str, Tensor]:
    """The weighted terms of building damage assessment; their sum is the loss.

    CoDe-MAE's paper names cross-entropy (``DamageTerms()``); its code sums CE(localisation) + 2 CE(damage) +
    Lovasz(damage) + 0.5 Lovasz(localisation); BRIGHT's code CE + CE + 0.75 Lovasz(damage) + 0.5
    Lovasz(localisation).

    Args:
        localisation: (B, 2, H, W) logits of background and building.
        damage: (B, K, H, W) logits of background and damage classes.
        target: (B, H, W) damage classes or ``ignore_index``.
        terms: Weights; a term of weight 0 is not computed.
        post_localisation: (B, 2, H, W) logits from the second date alone, where the model has them.
        ignore_index: Stands for no label.

    Differs from the authors' code: theirs passes the ignore value to the localisation terms alone, so that a
    padded crop reaches the damage cross-entropy as class 255.
    """
    building = localisation_target(target, ignore_index)
    made = {
        "localisation_ce": lambda: pixel_cross_entropy(localisation, building, ignore_index),
        "damage_ce": lambda: pixel_cross_entropy(damage, target, ignore_index),
        "localisation_lovasz": lambda: lovasz_softmax(localisation, building, ignore_index),
        "damage_lovasz": lambda: lovasz_softmax(damage, target, ignore_index),
    }
    if post_localisation is not None:
        after = post_localisation
        made["post_localisation"] = lambda: pixel_cross_entropy(after, building, ignore_index)
    weights = {name: getattr(terms, name) for name in made}
    return {name: weight * made[name]() for name, weight in weights.items() if weight}
