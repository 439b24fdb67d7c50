"""One folder of images of one modality, without labels."""

import argparse
from pathlib import Path

from codemae.modality import MODALITY_NAMES
from recipes.candidates import Candidate, Candidates
from recipes.left_out import LeftOuts
from recipes.listing import by_stem
from recipes.plan import Plan, PrepareError, compiled, group_of, require_folder

HELP = "one folder of unlabelled images of one modality"

_COMMAND = "python datasets/prepare.py images --root DIR --modality optical|sar --out INDEX_DIR"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares this recipe's options."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--modality", choices=MODALITY_NAMES, required=True)
    parser.add_argument("--source", metavar="NAME", help="name of the source; default: the folder's name")
    parser.add_argument("--tile", type=int, metavar="PIXELS", help="one sample for each window of this side")
    parser.add_argument(
        "--stride", type=int, metavar="PIXELS", help="step between windows; default: the tile"
    )
    parser.add_argument("--group-regex", metavar="REGEX", help="finds the scene in a path without suffix")
    parser.add_argument("--split", default="train", help="split of all samples; default: train")


def plan(args: argparse.Namespace) -> Plan:
    """Finds the images."""
    root = require_folder(args.root, f"--root of {_COMMAND}")
    left_out = LeftOuts()
    images = by_stem(root, left_out)
    if not images:
        raise PrepareError(f"no image found in {root} and the folders in it; usage: {_COMMAND}")
    pattern = compiled(args.group_regex)
    source = args.source or root.name or "images"
    candidates = Candidates(
        Candidate(
            stem,
            source,
            args.split,
            group_of(stem, pattern),
            **{args.modality: path},
        )
        for stem, path in images
    )
    return Plan(root=root, candidates=candidates, left_out=left_out)
