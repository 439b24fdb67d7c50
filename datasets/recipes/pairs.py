"""Two folders of images, optical and SAR, matched by file stem."""

import argparse
import csv
import os
from pathlib import Path

from recipes.plan import Candidate, LeftOut, Plan, PrepareError, by_stem, compiled, group_of, require_folder

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
    left_out: list[LeftOut] = []
    found = {modality: by_stem(folder, left_out) for modality, folder in folders.items()}
    for modality, images in found.items():
        if not images:
            raise PrepareError(
                f"no image in {folders[modality]}, looked for files pairing by stem; usage: {command}"
            )
    common = found["optical"].keys() & found["sar"].keys()
    if not common:
        first = {modality: min(images) for modality, images in found.items()}
        raise PrepareError(
            f"no stem is in both folders: {folders['optical']} has {first['optical']!r}, "
            f"{folders['sar']} has {first['sar']!r}; rename one side so that both files of a pair agree"
        )
    ambiguous = {entry.sample for entry in left_out}
    for modality, other in (("optical", "sar"), ("sar", "optical")):
        for stem in sorted(found[modality].keys() - common - ambiguous):
            left_out.append(LeftOut(stem, "missing partner", f"{found[modality][stem]} has no {other} image"))
    root = Path(os.path.commonpath(list(folders.values())))
    pattern = compiled(args.group_regex)
    splits = _splits(args.split_csv) if args.split_csv else None
    candidates = []
    for stem in sorted(common):
        group = group_of(stem, pattern)
        split = args.split if splits is None else splits.get(group)
        if split is None:
            left_out.append(LeftOut(stem, "no split", f"scene {group!r} is not in {args.split_csv}"))
            continue
        paths = {modality: images[stem].relative_to(root).as_posix() for modality, images in found.items()}
        candidates.append(Candidate(stem, args.source or root.name or "pairs", split, group, **paths))
    return Plan(root=root, candidates=candidates, left_out=left_out)


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
