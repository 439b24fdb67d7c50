"""Indexes flood scenes (optical and SAR image after the flood, flood mask) for segmentation.

The folder holds opt/<scene>_after.png, sar/<scene>_after.png, mask/<scene>.png (0 and 255) and scenes.csv
with the columns scene and split, as OMBRIA's images come when they are sorted by scene.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codemae.data.images import ImageError, Location, read_picture, size_of
from codemae.data.index import write_index
from codemae.data.index_file import IndexFileError
from codemae.data.masks import read_mask
from codemae.data.measuring import Survey
from codemae.data.statistics import IndexStatistics

SOURCE = "OMBRIA"
CLASSES = ("dry", "flood")
FILES = {"optical": "opt/{}_after.png", "sar": "sar/{}_after.png"}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the index; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of opt, sar and mask")
    parser.add_argument("--out", type=Path, required=True, metavar="INDEX_DIR", help="where the index goes")
    args = parser.parse_args(argv)
    try:
        counts = write(args.root, args.out)
    except (OSError, KeyError, ImageError, IndexFileError) as error:
        print(f"error: {args.root} is no folder of flood scenes: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: " + ", ".join(f"{count} {split}" for split, count in sorted(counts.items())))
    return 0


def write(root: Path, out: Path) -> dict[str, int]:
    """Indexes every scene of the list; returns rows by split. Statistics are those of the training scenes.

    Raises:
        OSError: No list.
        KeyError: The list lacks a column.
        ImageError: A file of a listed scene is missing, or sizes differ.
    """
    rows: list[dict[str, Any]] = []
    surveys = {modality: Survey(modality) for modality in FILES}
    with (root / "scenes.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    for line in listed:
        scene, split = line["scene"], line["split"]
        paths = {modality: template.format(scene) for modality, template in FILES.items()}
        pictures = {modality: read_picture(Location(str(root / path))) for modality, path in paths.items()}
        mask = f"mask/{scene}.png"
        sizes = {size_of(picture) for picture in pictures.values()}
        sizes.add(read_mask(Location(str(root / mask))).shape)
        if len(sizes) > 1:
            raise ImageError(f"the images of scene {scene} have different sizes: {sorted(sizes)}")
        if split == "train":
            for modality, picture in pictures.items():
                surveys[modality].add(picture)
        rows.append({"source": SOURCE, "split": split, "group": scene, "mask": mask, **paths})
    statistics = {name: survey.statistics(survey.scaling()) for name, survey in surveys.items()}
    write_index(out, rows, IndexStatistics(sources={SOURCE: statistics}, classes=CLASSES), root)
    splits = [row["split"] for row in rows]
    return {split: splits.count(split) for split in set(splits)}


if __name__ == "__main__":
    sys.exit(main())
