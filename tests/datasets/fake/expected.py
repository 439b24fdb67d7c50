"""What a fake copy of a dataset has to become."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(kw_only=True)
class Expected:
    """Rows worked out by hand.

    Attributes:
        rows: A mapping per row, in any order, with the columns that matter: ``source``, ``split``, ``group``,
            ``optical``, ``sar``, ``mask``, ``post``, ``label`` (number, or list of numbers), ``window``
            (x, y, width, height). Only the columns that the first row names are compared; a column that a
            later row lacks is None.
        root: Folder to pass as ``--root``; None: the folder that the maker was given.
        arguments: Further words of the command line.
        left_out: Number of samples that the report lists as left out, where it matters.
        boxes: Split to number of boxes in ``annotations/<split>.json``, where there are any.
    """

    rows: list[dict[str, Any]]
    root: Path | None = None
    arguments: list[str] = field(default_factory=list)
    left_out: int | None = None
    boxes: dict[str, int] = field(default_factory=dict)
