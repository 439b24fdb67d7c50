"""OSPretrain-1M as released: ROOT/<source>/{RGB,SAR}/<name>.png with text files of names."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from normalization import OSPRETRAIN

from recipes.candidates import Candidate, Candidates
from recipes.left_out import LeftOut, LeftOuts
from recipes.listing import Keyed, by_stem
from recipes.plan import Plan, PrepareError, require_folder

HELP = "OSPretrain-1M as released: ROOT/<source>/{RGB,SAR}/<name>.png and {train,val,test}.txt"

UNPAIRED = "Unpaired"
TEST_HELD_BACK = ("WHU-OPT-SAR", "OGSOD-2", "DDHR", "DFC23_Track1")
HELD_BACK = ("PIE-RGB-SAR", "YESeg-OPT-SAR", "SS4EO-S12")

_SIDES = {"optical": "RGB", "sar": "SAR"}
_SPLITS = ("train", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares this recipe's options."""
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="folder of the source folders"
    )
    parser.add_argument(
        "--include",
        action="append",
        choices=HELD_BACK,
        default=[],
        help="take a source that the authors' training script leaves out; may be given several times",
    )
    parser.add_argument(
        "--stats",
        choices=("published", "measure"),
        default="published",
        help="take the published mean and std of each source, or measure them; default: published",
    )


def plan(args: argparse.Namespace) -> Plan:
    """Finds the pairs and the unpaired pool.

    Every listed pair is for pretraining (split ``train``), except the test lists of the sources that
    benchmarks test on (split ``test``). Two sources are benchmarks as a whole; these and SS4EO-S12 are left
    out, as in the authors' training script, unless asked for.
    """
    root = require_folder(
        args.root, "--root of python datasets/prepare.py ospretrain --root DIR --out INDEX_DIR"
    )
    sources = [
        entry.name
        for entry in sorted(root.iterdir())
        if entry.is_dir() and all((entry / side).is_dir() for side in _SIDES.values())
    ]
    if not sources:
        raise PrepareError(
            f"no source in {root}: looked for ROOT/<source>/RGB and ROOT/<source>/SAR; "
            "usage: python datasets/prepare.py ospretrain --root DIR --out INDEX_DIR"
        )
    unknown = [source for source in sources if source not in OSPRETRAIN and source not in HELD_BACK]
    if unknown and args.stats == "published":
        raise PrepareError(
            f"no published statistics for {', '.join(unknown)}; known: {', '.join(OSPRETRAIN)}. "
            "Rename the folder, or add --stats measure"
        )
    left_out = LeftOuts()
    candidates = Candidates()
    unlisted: dict[str, int] = {}
    for source in sources:
        if source in HELD_BACK and source not in args.include:
            continue
        found = {modality: by_stem(root / source / side, left_out) for modality, side in _SIDES.items()}
        if source == UNPAIRED:
            _add_unpaired(candidates, found)
        else:
            rest = _add_listed(candidates, root, source, found, left_out)
            unlisted |= {source: rest} if rest else {}
    published = {
        source: {m: OSPRETRAIN[source].of(m) for m in _SIDES} for source in sources if source in OSPRETRAIN
    }
    return Plan(
        root=root,
        candidates=candidates,
        left_out=left_out,
        published=published if args.stats == "published" else {},
        notes={
            "held back": [s for s in sources if s in HELD_BACK and s not in args.include],
            "images that no list names": unlisted,
        },
    )


def _add_unpaired(candidates: Candidates, found: dict[str, Keyed]) -> None:
    """A sample for each image of the pool; equal names on the two sides mean nothing."""
    for modality, images in found.items():
        side = _SIDES[modality]
        for stem, path in images:
            paths = {modality: f"{UNPAIRED}/{side}/{path}"}
            key = f"{UNPAIRED}/{side}/{stem}"
            candidates.append(Candidate(key, UNPAIRED, "train", f"{side}/{stem}", **paths))


def _add_listed(
    candidates: Candidates, root: Path, source: str, found: dict[str, Keyed], left_out: LeftOuts
) -> int:
    """Adds the pairs that a source's text files name; returns how many images no file names."""
    lists = {split: root / source / f"{split}.txt" for split in _SPLITS}
    if not any(path.is_file() for path in lists.values()):
        raise PrepareError(f"{root / source} has none of train.txt, val.txt, test.txt with a name a line")
    named: dict[str, str] = {}
    with_image = 0
    for split, file in lists.items():
        fresh = list(_fresh(source, split, file, named))
        places = {modality: images.places(fresh) for modality, images in found.items()}
        with_image += int(np.logical_or(*(held >= 0 for held in places.values())).sum())
        for number, stem in enumerate(fresh):
            key = f"{source}/{stem}"
            lacking = [side for modality, side in _SIDES.items() if places[modality][number] < 0]
            if lacking:
                reason = f"{file} names it, no image in {' and '.join(lacking)}"
                left_out.append(LeftOut(key, "missing partner", reason))
                continue
            paths = {
                modality: f"{source}/{_SIDES[modality]}/{images.paths[int(places[modality][number])].as_py()}"
                for modality, images in found.items()
            }
            use = "test" if split == "test" and source in TEST_HELD_BACK else "train"
            candidates.append(Candidate(key, source, use, stem, **paths))
    in_both = int((found["sar"].places(found["optical"].keys) >= 0).sum())
    return len(found["optical"]) + len(found["sar"]) - in_both - with_image


def _fresh(source: str, split: str, file: Path, named: dict[str, str]) -> Iterator[str]:
    """Stems of a list that no list before it names."""
    if not file.is_file():
        return
    with open(file) as lines:
        for line in lines:
            stem = _stem(line.strip())
            if not stem:
                continue
            if stem not in named:
                named[stem] = split
                yield stem
            elif named[stem] != split:
                raise PrepareError(f"{source}: {stem!r} is in {named[stem]}.txt and in {split}.txt")


def _stem(line: str) -> str:
    """The name of a line, its extension optional."""
    name = Path(line)
    return (
        name.with_suffix("").as_posix() if name.suffix.lower() in (".png", ".jpg", ".tif", ".tiff") else line
    )
