"""What a recipe hands over: the samples it found and what it left out."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from codemae.data.statistics import SourceStatistics
from recipes.labels import MaskClasses

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".npy")


class PrepareError(Exception):
    """The data cannot be indexed as asked; the message says what to change."""


@dataclass(slots=True)
class Candidate:
    """A sample that will be in the index if its images can be read.

    Attributes:
        key: Name in reports and in ``--exclude`` files.
        source: Source it belongs to.
        split: Its split.
        group: Scene or place; a split never cuts a group.
        optical: Path of the optical image, relative to the plan's root.
        sar: Path of the SAR image.
        mask: Path of the mask.
        post: Path of the image of the second date.
        label: Class number, or numbers of all classes present.
    """

    key: str
    source: str
    split: str
    group: str
    optical: str | None = None
    sar: str | None = None
    mask: str | None = None
    post: str | None = None
    label: int | list[int] | None = None

    @property
    def paths(self) -> dict[str, str]:
        """Modality to path, of the images of the first date."""
        return {name: path for name in ("optical", "sar") if (path := getattr(self, name)) is not None}


@dataclass(slots=True)
class LeftOut:
    """A sample that is not in the index, and why."""

    sample: str
    kind: str
    reason: str


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
        mask_classes: How labels come out of masks, where they do.
        expected: Split to number of rows that a complete copy gives.
        write_beside: Writes further files into the index folder, given it and the samples that are kept;
            returns facts for the report.
    """

    root: Path
    candidates: list[Candidate]
    left_out: list[LeftOut] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    published: dict[str, dict[str, SourceStatistics]] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)
    tile: int | None = None
    stride: int | None = None
    scaling: dict[str, str] = field(default_factory=dict)
    bands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    select: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mask_classes: MaskClasses | None = None
    expected: dict[str, int] = field(default_factory=dict)
    write_beside: list[Callable[[Path, Kept], dict[str, object]]] = field(default_factory=list)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.writing")
    staged.write_text(text)
    os.replace(staged, path)


def images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and the folders in it, sorted, hidden ones left aside."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from images_below(entry)
        elif entry.suffix.lower() in IMAGE_SUFFIXES:
            yield entry


def by_stem(folder: Path, left_out: list[LeftOut]) -> dict[str, Path]:
    """Images of a folder by their path without suffix; two files of one stem are left out."""
    found: dict[str, Path] = {}
    doubled: set[str] = set()
    for path in images_below(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            doubled.add(stem)
        found[stem] = path
    for stem in sorted(doubled):
        left_out.append(LeftOut(stem, "ambiguous", f"two images named {stem!r} in {folder}"))
        del found[stem]
    return found


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
