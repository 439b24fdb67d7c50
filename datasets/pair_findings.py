"""What the pair doctor finds out, and how it reads the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from codemae.analysis.displacement import Displacement, displacement
from codemae.analysis.duplicates import Match, Thumbnail
from codemae.analysis.registration import Registration
from codemae.data.images import SceneCache, as_read, read_window
from codemae.data.index import Index

FLAGS = ("unreadable", "empty", "saturated", "clouded", "unrelated", "shifted", "duplicate")


@dataclass
class Finding:
    """What was found out about one row.

    Attributes:
        row: Its number in its index.
        flags: What is wrong with it.
        registration: Offset of the SAR side; None where a side is missing, empty or too small.
        similarity: Scale to SSIM of the two sides.
        hashes: Modality to content hash and thumbnail.
    """

    row: int
    flags: set[str] = field(default_factory=set)
    registration: Registration | None = None
    similarity: dict[int, float | None] = field(default_factory=dict)
    hashes: dict[str, tuple[str, Thumbnail]] = field(default_factory=dict)


@dataclass(frozen=True)
class Duplicate:
    """A row of the index and another row, of it or of another index, that show one image.

    Attributes:
        row: The row of the examined index.
        other_index: Folder of the other row's index.
        other: Name of the other row.
        other_row: Its number.
        modality: The side that is the same.
        match: How the images match.
        reason: ``within split``, ``across splits`` or ``between indexes``.
    """

    row: int
    other_index: str
    other: str
    other_row: int
    modality: str
    match: Match
    reason: str


def read_side(
    index: Index, row: int, modality: str, cache: SceneCache | None = None
) -> tuple[np.ndarray, npt.NDArray[np.float32]]:
    """One side of a row: as stored, and as (H, W, C) values in [0, 1].

    Raises:
        ImageError: It cannot be read.
    """
    statistics = index.stats(index.source(row), modality)
    picture = read_window(index.location(row, modality), index.window(row), cache)
    values = statistics.scaling.apply(np.asarray(as_read(picture, statistics)))
    return np.asarray(picture), values[..., None] if values.ndim == 2 else values


def brightness(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mean of the channels, (H, W)."""
    return values.mean(axis=-1, dtype=np.float32)


def displacements(index: Index, findings: Sequence[Finding], confidence: float) -> dict[str, Displacement]:
    """For each source what its sure offsets have in common."""
    rows: dict[str, list[tuple[float, float, object]]] = {}
    for finding in findings:
        found = finding.registration
        if found is not None and found.confidence >= confidence:
            scene = index.cell(finding.row, "group")
            rows.setdefault(index.source(finding.row), []).append((found.x, found.y, scene))
    return {
        source: displacement(np.array([row[:2] for row in own]), [row[2] for row in own])
        for source, own in sorted(rows.items())
    }
