"""Embedding dimensions one by one: which say the same of both modalities, and which are one's own."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from torch import Tensor

SETS = ("common", "unique")
SET_COLOURS = {"common": "#2f7ed8", "unique": "#e07b39"}


def standardise(features: Tensor) -> Tensor:
    """Each dimension (column) of (B, D) to mean 0 and deviation 1; a constant one to 0."""
    centred = features.double() - features.double().mean(0)
    return centred / centred.std(0, correction=0).clamp(min=1e-12)


def dimension_alignment(optical: Tensor, sar: Tensor) -> Tensor:
    """L_i = (1 - C_ii)^2, C the cross-correlation of the modalities: 0 aligned, 1 unrelated, at most 4.

    Reference: Wang et al., "Decoupling Common and Unique Representations for Multimodal Self-supervised
        Learning", arXiv:2309.05300, equation 7.

    Args:
        optical: (B, D) features of pairs.
        sar: (B, D) of the same pairs, same order.
    """
    return (1 - (standardise(optical) * standardise(sar)).mean(0)) ** 2


def split_dimensions(optical: Tensor, sar: Tensor, common_share: float = 0.5) -> dict[str, Tensor]:
    """The numbers of the best aligned dimensions, ``common``, and of the others, ``unique``.

    DeCUR trains its dimensions into two such sets; for an encoder that was not trained so, they are found by
    their alignment. Show them on other pairs: on the same ones the sets differ for any features, noise too.

    Raises:
        ValueError: One of the sets would be empty.
    """
    alignment = dimension_alignment(optical, sar)
    count = round(common_share * len(alignment))
    if not 0 < count < len(alignment):
        raise ValueError(f"a share of {common_share:g} makes {count} of {len(alignment)} dimensions common")
    order = alignment.argsort()
    return {"common": order[:count], "unique": order[count:]}


def evenly(count: int, most: int) -> Tensor:
    """At most ``most`` of the numbers 0 to ``count`` - 1, evenly spread."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).round().long()


def map_dimensions(optical: Tensor, sar: Tensor, seed: int = 0) -> npt.NDArray[np.float32]:
    """t-SNE in which every dimension of each modality is a point, described by its values over the pairs.

    Args:
        optical: (B, D) features of pairs.
        sar: (B, D) of the same pairs, same order.
        seed: Makes the layout repeatable.

    Returns:
        (2 D, 2): optical dimensions first.
    """
    from sklearn.manifold import TSNE

    points = np.concatenate([standardise(optical).T.numpy(), standardise(sar).T.numpy()]).astype(np.float32)
    perplexity = min(30.0, (len(points) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return np.asarray(layout, dtype=np.float32)


def draw_alignment_histogram(axes: Axes, alignment: Tensor, sets: Mapping[str, Tensor]) -> None:
    """Counts of dimensions by their alignment loss, the two sets in their colours."""
    bins = np.linspace(0, max(1.5, float(alignment.max())), 41)
    axes.hist(
        [alignment[sets[name]].numpy() for name in SETS],
        bins=[float(edge) for edge in bins],
        stacked=True,
        color=[SET_COLOURS[name] for name in SETS],
        label=list(SETS),
    )
    axes.axvline(1, color="#8a8f98", linestyle=":", linewidth=1.2)
    axes.set_xlabel("(1 - correlation)²: 0 aligned, 1 unrelated")
    axes.set_ylabel("dimensions")
    axes.legend()


def draw_dimension_map(axes: Axes, plane: npt.NDArray[np.float32], sets: Mapping[str, Tensor]) -> None:
    """Optical dimensions as circles, SAR ones as crosses, the two sets in their colours."""
    half = len(plane) // 2
    for name in SETS:
        chosen = sets[name].numpy()
        colour = SET_COLOURS[name]
        optical, sar = plane[chosen], plane[half + chosen]
        axes.scatter(
            optical[:, 0], optical[:, 1], s=14, facecolors="none", edgecolors=colour, label=f"optical, {name}"
        )
        axes.scatter(sar[:, 0], sar[:, 1], s=16, marker="x", color=colour, label=f"SAR, {name}")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
