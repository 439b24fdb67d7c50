"""Self and cross reconstructions side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from codemae.modality import MODALITY_NAMES

Picture = npt.NDArray[np.uint8]
COLUMNS = ("input", "masked input", "self reconstruction", "cross reconstruction", "cross target")


@dataclass(frozen=True, kw_only=True)
class PictureGrid:
    """Pictures in rows and named columns.

    Attributes:
        columns: Column titles.
        rows: Row label and, column by column, an (H, W, 3) picture or None where there is none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Picture | None, ...]], ...]

    def save(self, path: Path, gap: int = 4, side: int = 160) -> Path:
        """Writes the grid as one PNG without text, each picture ``side`` pixels wide."""
        pitch = side + gap
        width, height = len(self.columns) * pitch + gap, len(self.rows) * pitch + gap
        sheet = Image.new("RGB", (width, height), "white")
        for y, (_, pictures) in enumerate(self.rows):
            for x, picture in enumerate(pictures):
                if picture is not None:
                    tile = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
                    sheet.paste(tile, (gap + x * pitch, gap + y * pitch))
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
        return path


def reconstruction_grid(pictures: Mapping[str, Tensor], count: int = 4) -> PictureGrid:
    """Lays out what a method's ``reconstruct(batch)`` returns: two rows a place, optical above SAR.

    For each modality m and the other one o, the columns are the entries ``m`` (input), ``m_masked``,
    ``m_from_m`` (self), ``m_from_o`` (cross) and ``m_target`` (what the cross
    reconstruction should give); a missing entry leaves a gap, and a
    column that is missing everywhere is left out.

    Args:
        pictures: Name to (B, 3, H, W) in [0, 1]; values outside are clipped.
        count: How many places to show at most.

    Raises:
        KeyError: Neither modality's input is there.
    """
    present = [name for name in MODALITY_NAMES if name in pictures]
    if not present:
        raise KeyError(
            f"reconstructions need an entry named {' or '.join(MODALITY_NAMES)}; got {', '.join(pictures)}"
        )
    names = {name: _entries(name) for name in present}
    kept = [i for i in range(len(COLUMNS)) if any(names[name][i] in pictures for name in present)]
    shown = min(count, *(len(pictures[name]) for name in present))
    rows = tuple(
        (name, tuple(_picture(pictures.get(names[name][i]), place) for i in kept))
        for place in range(shown)
        for name in present
    )
    return PictureGrid(columns=tuple(COLUMNS[i] for i in kept), rows=rows)


def _entries(modality: str) -> tuple[str, ...]:
    other = next(name for name in MODALITY_NAMES if name != modality)
    return (
        modality,
        f"{modality}_masked",
        f"{modality}_from_{modality}",
        f"{modality}_from_{other}",
        f"{modality}_target",
    )


def _picture(images: Tensor | None, place: int) -> Picture | None:
    if images is None:
        return None
    values = images[place].detach().float().cpu().clamp(0, 1).mul(255).round()
    return values.permute(1, 2, 0).numpy().astype(np.uint8)
