"""What the offsets of many pairs have in common: one shift, one of each scene, or one direction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

ALIGNED = 2.0
"""Pixels within which a pair lines up."""
LEAST_GROUP = 4
"""Pairs that a scene needs for an offset of its own."""


@dataclass(frozen=True, slots=True)
class Displacement:
    """How the pairs of one source are displaced.

    Attributes:
        pairs: Number of offsets.
        right: Median offset to the right, in pixels.
        below: Median offset downwards.
        aligned: Share of pairs within ``ALIGNED`` pixels.
        aligned_source: The same once the median of all pairs is taken off.
        aligned_scene: The same once from each pair the median of the other pairs of its scene is taken off;
            None where no scene has ``LEAST_GROUP`` pairs.
        direction: Degrees, 0 to 180, from the right over below, of the line along which the pairs of a scene
            differ most; None where no scene has enough.
        along: Median absolute difference from the scene along that line, in pixels.
        across: The same across it.
        straightness: 1 where all differences lie on that line, 0 where they have no common direction.
    """

    pairs: int
    right: float
    below: float
    aligned: float
    aligned_source: float
    aligned_scene: float | None = None
    direction: float | None = None
    along: float | None = None
    across: float | None = None
    straightness: float | None = None


def displacement(offsets: npt.NDArray[np.float64], scenes: Sequence[object]) -> Displacement:
    """Sums up the offsets of pairs.

    SAR that was not corrected for terrain is displaced towards the sensor by the height of the ground: its
    pairs differ along the range direction and hardly across it. What is left across bounds the error of the
    estimates themselves.

    Args:
        offsets: (n, 2), to the right and below, in pixels.
        scenes: The scene of each pair.

    Raises:
        ValueError: There is no offset, or not a scene for each.
    """
    if not len(offsets) or len(scenes) != len(offsets):
        raise ValueError(f"an offset and a scene for each pair, got {len(offsets)} and {len(scenes)}")
    middle = np.median(offsets, axis=0)
    common = Displacement(
        len(offsets), float(middle[0]), float(middle[1]), _aligned(offsets), _aligned(offsets - middle)
    )
    rows: dict[object, list[int]] = {}
    for row, scene in enumerate(scenes):
        rows.setdefault(scene, []).append(row)
    local = [_from_others(offsets[own]) for own in rows.values() if len(own) >= LEAST_GROUP]
    if not local:
        return common
    left = np.concatenate(local)
    lengths = np.hypot(*left.T)
    # Opposite differences lie on one line, so angles are doubled before they are averaged.
    doubled = (lengths * np.exp(2j * np.arctan2(left[:, 1], left[:, 0]))).sum()
    angle = float(np.angle(doubled)) / 2
    axes = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    along, across = np.median(np.abs(left @ axes.T), axis=0)
    return replace(
        common,
        aligned_scene=_aligned(left),
        direction=float(np.degrees(angle) % 180),
        along=float(along),
        across=float(across),
        straightness=float(np.abs(doubled) / max(float(lengths.sum()), 1e-12)),
    )


def _aligned(offsets: npt.NDArray[np.float64]) -> float:
    return float(np.mean(np.hypot(*offsets.T) <= ALIGNED))


def _from_others(offsets: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Difference of each offset from the median of the others."""
    others = [np.median(np.delete(offsets, row, axis=0), axis=0) for row in range(len(offsets))]
    return offsets - np.stack(others)
