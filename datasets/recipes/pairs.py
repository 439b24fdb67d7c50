"""Two folders of images, optical and SAR, matched by file stem."""

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from recipes.candidates import BATCH, Candidate, Candidates
from recipes.left_out import LeftOut, LeftOuts
from recipes.listing import Keyed, by_stem, sorted_places
from recipes.plan import Plan, PrepareError, compiled, group_of, require_folder

HELP = "two folders, optical and SAR, whose images pair by file stem"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares this recipe's options."""
    parser.add_argument("--optical", type=Path, required=True, metavar="DIR", help="optical images")
    parser.add_argument("--sar", type=Path, required=True, metavar="DIR", help="SAR images of the same stems")
    parser.add_argument("--source", metavar="NAME", help="name of the source; default: the folder above both")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="one sample for each window of this side")
    parser.add_argument(
        "--stride", type=int, metavar="PIXELS", help="step between windows; default: the tile"
    )
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="finds the scene in a stem (first parenthesis, or all of the match); default: the stem",
    )
    parser.add_argument("--split", default="train", help="split of all samples; default: train")
    parser.add_argument(
        "--split-csv", type=Path, metavar="FILE", help="columns scene,split: the split of each group instead"
    )


def plan(args: argparse.Namespace) -> Plan:
    """Finds the pairs."""
    command = "python datasets/prepare.py pairs --optical DIR --sar DIR --out INDEX_DIR"
    folders = {
        "optical": require_folder(args.optical, f"--optical of {command}"),
        "sar": require_folder(args.sar, f"--sar of {command}"),
    }
    left_out = LeftOuts()
    found = {modality: by_stem(folder, left_out) for modality, folder in folders.items()}
    for modality, images in found.items():
        if not images:
            raise PrepareError(
                f"no image in {folders[modality]}, looked for files pairing by stem; usage: {command}"
            )
    partners = found["sar"].places(found["optical"].keys)
    if (partners < 0).all():
        first = {modality: pc.min(images.keys).as_py() for modality, images in found.items()}
        raise PrepareError(
            f"no stem is in both folders: {folders['optical']} has {first['optical']!r}, "
            f"{folders['sar']} has {first['sar']!r}; rename one side so that both files of a pair agree"
        )
    ambiguous = {entry.sample for entry in left_out}
    for modality, other in (("optical", "sar"), ("sar", "optical")):
        for stem, path in _alone(found[modality], found[other]):
            if stem not in ambiguous:
                reason = f"{folders[modality] / path} has no {other} image"
                left_out.append(LeftOut(stem, "missing partner", reason))
    root = Path(os.path.commonpath(list(folders.values())))
    pattern = compiled(args.group_regex)
    splits = _splits(args.split_csv) if args.split_csv else None
    below = {modality: _prefix(root, folder) for modality, folder in folders.items()}
    candidates = Candidates()
    for stem, optical, sar in _together(found["optical"], found["sar"], partners):
        group = group_of(stem, pattern)
        split = args.split if splits is None else splits.get(group)
        if split is None:
            left_out.append(LeftOut(stem, "no split", f"scene {group!r} is not in {args.split_csv}"))
            continue
        paths = {"optical": below["optical"] + optical, "sar": below["sar"] + sar}
        candidates.append(Candidate(stem, args.source or root.name or "pairs", split, group, **paths))
    return Plan(root=root, candidates=candidates, left_out=left_out)


def _prefix(root: Path, folder: Path) -> str:
    """What stands before a path in a folder to make it relative to the root."""
    below = folder.relative_to(root).as_posix()
    return "" if below == "." else f"{below}/"


def _alone(images: Keyed, others: Keyed) -> Iterator[tuple[str, str]]:
    """Stem and path, sorted by stem, of images whose stem the other side lacks."""
    places = np.flatnonzero(others.places(images.keys) < 0)
    stems, paths = images.keys.take(places), images.paths.take(places)
    for place in sorted_places(stems):
        yield stems[place].as_py(), paths[place].as_py()


def _together(optical: Keyed, sar: Keyed, partners: np.ndarray) -> Iterator[tuple[str, str, str]]:
    """Stem, optical path and SAR path of the stems of both sides, sorted by stem.

    Args:
        optical: Optical images.
        sar: SAR images.
        partners: Place of the SAR image of each optical image; -1 where there is none.
    """
    order = sorted_places(optical.keys)
    order = order[partners[order] >= 0]
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        columns = optical.keys.take(places), optical.paths.take(places), sar.paths.take(partners[places])
        yield from zip(*(column.to_pylist() for column in columns), strict=True)


def _splits(path: Path) -> dict[str, str]:
    """Scene to split."""
    try:
        with open(path, newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise PrepareError(f"--split-csv {path}: {error.strerror}") from None
    if not rows or not {"scene", "split"} <= rows[0].keys():
        raise PrepareError(f"--split-csv {path} needs a header with the columns scene and split")
    splits: dict[str, str] = {}
    for row in rows:
        if splits.setdefault(row["scene"], row["split"]) != row["split"]:
            raise PrepareError(f"{path} puts scene {row['scene']!r} in two splits")
    return splits
