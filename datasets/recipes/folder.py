"""A folder per class, with or without train and test folders above them."""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from codemae.modality import MODALITY_NAMES
from recipes.candidates import Candidate, Candidates
from recipes.left_out import LeftOut, LeftOuts
from recipes.listing import images_below
from recipes.plan import Plan, PrepareError, compiled, group_of, require_folder
from recipes.splits import SPLITS as _SPLITS
from recipes.splits import draw

HELP = "a folder per class: DIR/<class>/* or DIR/{train,test}/<class>/*"

_COMMAND = "python datasets/prepare.py folder --root DIR --modality optical|sar --out INDEX_DIR"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares this recipe's options."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the class folders")
    parser.add_argument("--modality", choices=MODALITY_NAMES, required=True)
    parser.add_argument("--source", metavar="NAME", help="name of the source; default: the folder's name")
    for split in _SPLITS:
        parser.add_argument(
            f"--{split}-list",
            type=Path,
            metavar="FILE",
            help=f"a path a line, relative to DIR, of the {split} images; a class number may follow",
        )
    parser.add_argument(
        "--split-fraction",
        type=float,
        metavar="SHARE",
        help="draw this share of each class as train, the rest as test",
    )
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="seed of that draw; default: 0"
    )
    parser.add_argument("--group-regex", metavar="REGEX", help="finds the scene in a path without suffix")


def plan(args: argparse.Namespace) -> Plan:
    """Finds the classes and their images."""
    root = require_folder(args.root, f"--root of {_COMMAND}")
    lists = {split: path for split in _SPLITS if (path := getattr(args, f"{split}_list"))}
    if lists and args.split_fraction is not None:
        raise PrepareError("list files and --split-fraction both say the split; give one of them")
    left_out = LeftOuts()
    listed = _from_lists(root, lists, left_out) if lists else _from_folders(root)
    met: dict[str, int] = {}
    pattern = compiled(args.group_regex)
    candidates = Candidates()
    for split, path in listed:
        stem, folder = os.path.splitext(path)[0], path.rpartition("/")[0]
        candidates.append(
            Candidate(
                key=stem,
                source=args.source or root.name,
                split=split,
                group=group_of(stem, pattern),
                label=met.setdefault(folder.rpartition("/")[2] or root.name, len(met)),
                **{args.modality: path},
            )
        )
    classes = tuple(sorted(met))
    candidates.renumber({met[name]: number for number, name in enumerate(classes)})
    if args.split_fraction is not None:
        _draw_split(candidates, args.split_fraction, args.split_seed)
    return Plan(root=root, candidates=candidates, left_out=left_out, classes=classes)


def _from_folders(root: Path) -> Iterator[tuple[str, str]]:
    """Split and relative path of every image."""
    below = [entry for entry in sorted(root.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    parted = [entry for entry in below if entry.name in _SPLITS]
    if parted and len(parted) != len(below):
        others = ", ".join(entry.name for entry in below if entry not in parted)
        raise PrepareError(
            f"{root} holds {', '.join(e.name for e in parted)} beside {others}: splits or classes?"
        )
    tops = {entry.name: entry for entry in parted} or {"train": root}
    empty = True
    for split, top in tops.items():
        for folder in sorted(entry for entry in top.iterdir() if entry.is_dir()):
            below_root = folder.relative_to(root).as_posix()
            for name in images_below(folder, deep=False):
                empty = False
                yield split, f"{below_root}/{name}"
    if empty:
        raise PrepareError(
            f"no image found in {root}, looked for DIR/<class>/* and DIR/train/<class>/*; usage: {_COMMAND}"
        )


def _from_lists(root: Path, lists: dict[str, Path], left_out: LeftOuts) -> Iterator[tuple[str, str]]:
    """Split and relative path of every image that list files name."""
    numbers: dict[str, dict[str, str]] = defaultdict(dict)
    seen: dict[str, str] = {}
    empty = True
    for split, file in lists.items():
        for line in _lines(split, file):
            name, number = _parse(line, root)
            if seen.setdefault(name, split) != split:
                raise PrepareError(f"{name!r} is in the {seen[name]} list and in the {split} list")
            path = Path(name)
            if ".." in path.parts or path.is_absolute():
                raise PrepareError(f"{file} names {name!r}, which is not a path inside {root}")
            if not (root / path).is_file():
                left_out.append(LeftOut(name, "missing", f"{file} names it, {root} does not hold it"))
                continue
            if number is not None:
                numbers[(root / path).parent.name][number] = name
            empty = False
            yield split, path.as_posix()
    torn = {folder: found for folder, found in numbers.items() if len(found) > 1}
    if torn:
        folder, found = next(iter(torn.items()))
        raise PrepareError(
            f"folder {folder!r} has several class numbers in the lists: {', '.join(sorted(found))}"
        )
    if empty:
        raise PrepareError(
            f"none of the images that the lists name lies in {root}; are their paths relative to it?"
        )


def _lines(split: str, file: Path) -> Iterator[str]:
    try:
        with open(file) as lines:
            yield from filter(None, map(str.strip, lines))
    except OSError as error:
        raise PrepareError(f"--{split}-list {file}: {error.strerror}") from None


def _parse(line: str, root: Path) -> tuple[str, str | None]:
    """Path and class number of a line; the path itself may hold blanks."""
    if (root / line).is_file():
        return line, None
    for separator in (",", None):
        name, *rest = line.rsplit(separator, 1)
        if rest and rest[0].strip().isdigit():
            return name.strip(), rest[0].strip()
    return line, None


def _draw_split(candidates: Candidates, share: float, seed: int) -> None:
    """Draws a share of each class's groups as train and the rest as test."""
    if not 0 < share < 1:
        raise PrepareError(f"--split-fraction lies between 0 and 1, got {share}")
    draw(candidates, {"train": share}, "test", seed)
