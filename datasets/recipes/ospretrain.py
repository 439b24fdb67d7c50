"""OSPretrain-1M as released: ROOT/<source>/{RGB,SAR}/<name>.png with text files of names."""

import argparse
from pathlib import Path

from normalization import OSPRETRAIN

from recipes.plan import Candidate, LeftOut, Plan, PrepareError, by_stem, require_folder

HELP = "OSPretrain-1M as released: ROOT/<source>/{RGB,SAR}/<name>.png and {train,val,test}.txt"

UNPAIRED = "Unpaired"
TEST_HELD_BACK = ("WHU-OPT-SAR", "OGSOD-2", "DDHR", "DFC23_Track1")
HELD_BACK = ("PIE-RGB-SAR", "YESeg-OPT-SAR")

_SIDES = {"optical": "RGB", "sar": "SAR"}
_SPLITS = ("train", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares this recipe's options."""
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="folder of the source folders"
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
    benchmarks test on (split ``test``); two sources are benchmarks as a whole and are not indexed.
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
    left_out: list[LeftOut] = []
    candidates: list[Candidate] = []
    unlisted: dict[str, int] = {}
    for source in sources:
        if source in HELD_BACK:
            continue
        found = {modality: by_stem(root / source / side, left_out) for modality, side in _SIDES.items()}
        if source == UNPAIRED:
            candidates += _unpaired(root, found)
        else:
            pairs, rest = _listed(root, source, found, left_out)
            candidates += pairs
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
            "held back as benchmarks": [source for source in sources if source in HELD_BACK],
            "images that no list names": unlisted,
        },
    )


def _unpaired(root: Path, found: dict[str, dict[str, Path]]) -> list[Candidate]:
    """A sample for each image of the pool; equal names on the two sides mean nothing."""
    return [
        Candidate(
            key=f"{UNPAIRED}/{_SIDES[modality]}/{stem}",
            source=UNPAIRED,
            split="train",
            group=f"{_SIDES[modality]}/{stem}",
            **{modality: path.relative_to(root).as_posix()},
        )
        for modality, images in found.items()
        for stem, path in images.items()
    ]


def _listed(
    root: Path, source: str, found: dict[str, dict[str, Path]], left_out: list[LeftOut]
) -> tuple[list[Candidate], int]:
    """The pairs that a source's text files name, and how many images no file names."""
    lists = {split: root / source / f"{split}.txt" for split in _SPLITS}
    if not any(path.is_file() for path in lists.values()):
        raise PrepareError(f"{root / source} has none of train.txt, val.txt, test.txt with a name a line")
    candidates: list[Candidate] = []
    named: dict[str, str] = {}
    for split, file in lists.items():
        for line in file.read_text().splitlines() if file.is_file() else ():
            stem = _stem(line.strip())
            if not stem:
                continue
            key = f"{source}/{stem}"
            if stem in named:
                if named[stem] != split:
                    raise PrepareError(f"{source}: {stem!r} is in {named[stem]}.txt and in {split}.txt")
                continue
            named[stem] = split
            lacking = [side for modality, side in _SIDES.items() if stem not in found[modality]]
            if lacking:
                reason = f"{file} names it, no image in {' and '.join(lacking)}"
                left_out.append(LeftOut(key, "missing partner", reason))
                continue
            paths = {
                modality: images[stem].relative_to(root).as_posix() for modality, images in found.items()
            }
            use = "test" if split == "test" and source in TEST_HELD_BACK else "train"
            candidates.append(Candidate(key, source, use, stem, **paths))
    every = found["optical"].keys() | found["sar"].keys()
    return candidates, len(every - named.keys())


def _stem(line: str) -> str:
    """The name of a line, its extension optional."""
    name = Path(line)
    return (
        name.with_suffix("").as_posix() if name.suffix.lower() in (".png", ".jpg", ".tif", ".tiff") else line
    )
