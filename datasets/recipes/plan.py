"""What a recipe hands over: the samples it found and what it left out."""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codemae.data.statistics import SourceStatistics
from recipes.candidates import Candidate, Candidates
from recipes.labels import MaskClasses
from recipes.left_out import LeftOuts

if TYPE_CHECKING:
    from recipes.stacking import Bands


class PrepareError(Exception):
    """The data cannot be indexed as asked; the message says what to change."""


Kept = Iterable[tuple[Candidate, tuple[int, int]]]
"""The samples that are indexed, with the height and width of their images."""


@dataclass(kw_only=True)
class Plan:
    """All of one recipe's findings.

    Attributes:
        root: Folder that all paths are relative to.
        candidates: The samples.
        left_out: What is missing from them and why.
        classes: Class names, in the order of their numbers.
        published: Source to modality to statistics that are taken as published instead of measured.
        notes: Further facts for the report.
        tile: Side of the windows, unless the command line gives one.
        stride: Step between them.
        scaling: Modality to scaling rule, unless the command line gives one.
        bands: Modality to the names of the stored channels.
        select: Modality to the names of the channels to read, unless the command line says it.
        stacks: Modality to the bands that are to become one image; the candidates name the first of them.
        mask_classes: How labels come out of masks, where they do.
        expected: Split to number of rows that a complete copy gives.
        write_beside: Writes further files into the index folder, given it and the samples that are kept;
            returns facts for the report.
    """

    root: Path
    candidates: Candidates
    left_out: LeftOuts = field(default_factory=LeftOuts)
    classes: tuple[str, ...] = ()
    published: dict[str, dict[str, SourceStatistics]] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    tile: int | None = None
    stride: int | None = None
    scaling: dict[str, str] = field(default_factory=dict)
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    select: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stacks: "dict[str, Bands]" = field(default_factory=dict)
    mask_classes: MaskClasses | None = None
    expected: dict[str, int] = field(default_factory=dict)
    write_beside: list[Callable[[Path, Kept], dict[str, object]]] = field(default_factory=list)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.writing")
    staged.write_text(text)
    os.replace(staged, path)


def group_of(stem: str, pattern: re.Pattern[str] | None) -> str:
    """The group of a stem: itself, or what a pattern finds in it.

    Raises:
        PrepareError: The pattern does not match.
    """
    if pattern is None:
        return stem
    match = pattern.search(stem)
    if match is None:
        raise PrepareError(f"--group-regex {pattern.pattern!r} does not match {stem!r}")
    return match.group(1) if pattern.groups else match.group(0)


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """A regular expression of the command line.

    Raises:
        PrepareError: It is none.
    """
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise PrepareError(f"--group-regex {pattern!r} is not a regular expression: {error}") from None


def require_folder(folder: Path, what: str) -> Path:
    """The real place of a folder that has to exist.

    Raises:
        PrepareError: It does not.
    """
    if not folder.is_dir():
        near = ""
        if folder.parent.is_dir():
            beside = [entry.name for entry in sorted(folder.parent.iterdir()) if entry.is_dir()][:6]
            near = f"; {folder.parent} holds {', '.join(beside) or 'no folder'}"
        raise PrepareError(f"no folder {folder} ({what}){near}")
    return folder.resolve()
