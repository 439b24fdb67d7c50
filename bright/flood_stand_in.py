"""Indexes flood scenes (optical before, SAR or optical after, flood mask) as a stand-in for BRIGHT.

The folder holds opt/<scene>_before.png, opt/<scene>_after.png, sar/<scene>_after.png, mask/<scene>.png (0 and
255) and scenes.csv with the columns scene and split, as OMBRIA's images come when they are sorted by scene.
A scene's name in the index begins with ``clouded`` or ``clear``: whether clouds hide its optical after image.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codemae.data.images import ImageError, Location, Picture, read_picture, size_of
from codemae.data.index import write_index
from codemae.data.index_file import IndexFileError
from codemae.data.masks import read_mask
from codemae.data.measuring import Survey
from codemae.data.statistics import IndexStatistics

SOURCE = "OMBRIA"
SPLITS = {"train": "train", "val": "val"}
AFTER = {"sar": "sar/{}_after.png", "optical": "opt/{}_after.png"}
WHITE = 0.25 * 255
CLOUDED = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the index; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of opt, sar and mask")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX_DIR", help="where the index goes")
    parser.add_argument("--after", choices=sorted(AFTER), default="sar", help="images of the second date")
    args = parser.parse_args(argv)
    try:
        counts = write(args.root, args.out, args.after)
    except (OSError, KeyError, ImageError, IndexFileError) as error:
        print(f"error: {args.root} is no folder of flood scenes: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{count} {split}" for split, count in sorted(counts.items())))
    return 0


def write(root: Path, out: Path, after: str) -> dict[str, int]:
    """Indexes every scene of the list whose files are there and of one size; returns rows by split.

    Statistics are those of the training scenes; an optical second date counts into the optical ones.

    Raises:
        OSError: No list.
        KeyError: The list lacks a column, or names another split.
        ImageError: A file of a listed scene is missing, or sizes differ.
    """
    rows: list[dict[str, Any]] = []
    surveys = {"optical": Survey("optical")}
    surveys.setdefault(after, Survey(after))
    with (root / "scenes.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    for line in listed:
        scene, split = line["scene"], SPLITS[line["split"]]
        paths = {"optical": f"opt/{scene}_before.png", "post": AFTER[after].format(scene)}
        pictures = {side: read_picture(Location(str(root / path))) for side, path in paths.items()}
        optical_after = read_picture(Location(str(root / AFTER["optical"].format(scene))))
        mask = f"mask/{scene}.png"
        sizes = {size_of(picture) for picture in pictures.values()}
        sizes.add(read_mask(Location(str(root / mask))).shape)
        if len(sizes) > 1:
            raise ImageError(f"the images of scene {scene} have different sizes: {sorted(sizes)}")
        if split == "train":
            surveys["optical"].add(pictures["optical"])
            surveys[after].add(pictures["post"])
        sky = "clouded" if whitened(pictures["optical"], optical_after) >= CLOUDED else "clear"
        rows.append({"source": SOURCE, "split": split, "group": f"{sky}_{scene}", "mask": mask, **paths})
    statistics = {name: survey.statistics(survey.scaling()) for name, survey in surveys.items()}
    classes = ("background", "flood")
    write_index(out, rows, IndexStatistics(sources={SOURCE: statistics}, classes=classes), root)
    return {split: sum(row["split"] == split for row in rows) for split in sorted(set(SPLITS.values()))}


def whitened(before: Picture, after: Picture) -> float:
    """Share of the pixels that turned white: the darkest channel went above a quarter of the range."""
    darkest_before, darkest_after = (np.asarray(side).min(axis=-1) for side in (before, after))
    return float(((darkest_after > WHITE) & (darkest_before <= WHITE)).mean())


if __name__ == "__main__":
    sys.exit(main())
