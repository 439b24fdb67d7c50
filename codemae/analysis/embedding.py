"""Paired embeddings of both modalities in two dimensions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

MODALITY_COLOURS = {"optical": "#2f7ed8", "sar": "#e07b39"}


@dataclass(frozen=True, kw_only=True)
class PairedMap:
    """Where the two sides of each pair lie in the plane.

    Attributes:
        optical: (n, 2).
        sar: (n, 2), row by row the other sides.
    """

    optical: npt.NDArray[np.float32]
    sar: npt.NDArray[np.float32]


def project_pairs(
    optical: Tensor, sar: Tensor, *, seed: int = 0, neighbours: int = 15, min_dist: float = 0.1
) -> PairedMap:
    """Projects the features of paired images with one UMAP fitted to both modalities together.

    Args:
        optical: (B, D) features.
        sar: (B, D) features of the same places, same order.
        seed: Makes the layout repeatable.
        neighbours: How many neighbours UMAP looks at; lowered where there are fewer samples.
        min_dist: How tightly UMAP may pack points.

    Raises:
        ValueError: The features are not pairs, or there are fewer than four of them.
    """
    if optical.shape != sar.shape or len(optical) < 4:
        raise ValueError(
            f"a paired map needs at least 4 pairs of equal width, got {tuple(optical.shape)} "
            f"and {tuple(sar.shape)}"
        )
    from umap import UMAP  # importing it compiles for seconds; nobody else should wait for that

    both = np.concatenate([optical.float().cpu().numpy(), sar.float().cpu().numpy()])
    reducer = UMAP(
        n_neighbors=min(neighbours, len(both) - 1),
        min_dist=min_dist,
        metric="cosine",
        random_state=seed,
        n_jobs=1,
        init="spectral" if len(both) > 16 else "random",
    )
    plane = reducer.fit_transform(both).astype(np.float32)
    return PairedMap(optical=plane[: len(optical)], sar=plane[len(optical) :])


def draw_pairs(axes: Axes, pairs: PairedMap, most_lines: int = 400) -> None:
    """Draws both clouds and a thin line between the two sides of each pair."""
    segments = np.stack([pairs.optical, pairs.sar], axis=1)[:most_lines]
    axes.add_collection(LineCollection(list(segments), colors="#8a8f98", linewidths=0.5, alpha=0.45))
    for label, points in (("optical", pairs.optical), ("SAR", pairs.sar)):
        axes.scatter(points[:, 0], points[:, 1], s=12, color=MODALITY_COLOURS[label.lower()], label=label)
    axes.set_xlabel("UMAP 1")
    axes.set_ylabel("UMAP 2")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend()
