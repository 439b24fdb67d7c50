"""Splits one COCO file of boxes into training and validation images, by a stated rule and seed."""

import argparse
import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codemae.evaluation.card import write_atomically


class SplitError(ValueError):
    """The file cannot be split as asked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes ``annotations/train.json`` and ``annotations/val.json`` and says what is in them."""
    parser = argparse.ArgumentParser(prog="detection/split_coco.py", description=__doc__)
    parser.add_argument("annotations", type=Path, metavar="COCO_JSON", help="file of all boxes")
    parser.add_argument("--images", default="", help="folder of the images, relative to the dataset's root")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="annotations/ is made inside")
    parser.add_argument("--val", type=float, default=0.25, help="share of the images (0.25)")
    parser.add_argument("--block", type=int, default=10, help="neighbours that stay together (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    words = parser.parse_args(argv)
    try:
        content = json.loads(words.annotations.read_text())
        parts = split(content, share=words.val, block=words.block, seed=words.seed, folder=words.images)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"error: {words.annotations}: {error}", file=sys.stderr)
        return 2
    for name, part in parts.items():
        path = words.out / "annotations" / f"{name}.json"
        write_atomically(path, (json.dumps(part) + "\n").encode())
        print(f"{path}: {len(part['images'])} images, {len(part['annotations'])} boxes")
    return 0


def split(
    content: dict[str, Any], *, share: float, block: int, seed: int, folder: str = ""
) -> dict[str, dict[str, Any]]:
    """Training and validation part of a COCO file.

    Images are put in the natural order of their names (2 before 10) and cut into blocks of ``block``
    neighbours, since neighbouring numbers are often tiles of one scene. Blocks are drawn by
    ``random.Random(seed)`` and go to validation until it has ``share`` of the images.

    Args:
        content: The file.
        share: Of the images that validation gets, in (0, 1).
        block: Images that are never parted.
        seed: Of the draw.
        folder: Put before every file name.

    Raises:
        SplitError: A part would be empty.
    """
    if not 0 < share < 1 or block < 1:
        raise SplitError(f"--val {share} must lie between 0 and 1 and --block {block} be at least 1")
    images = sorted(content["images"], key=lambda image: _natural(image["file_name"]))
    blocks = [images[first : first + block] for first in range(0, len(images), block)]
    random.Random(seed).shuffle(blocks)
    val: set[Any] = set()
    for one in blocks:
        if len(val) >= share * len(images):
            break
        val |= {image["id"] for image in one}
    if not val or len(val) == len(images):
        raise SplitError(
            f"{len(images)} images in blocks of {block} leave one part empty; take smaller blocks"
        )
    parts = {}
    for name, wanted in (("train", False), ("val", True)):
        own = [image for image in content["images"] if (image["id"] in val) == wanted]
        ids = {image["id"] for image in own}
        parts[name] = {
            "images": [{**image, "file_name": str(Path(folder) / image["file_name"])} for image in own],
            "annotations": [entry for entry in content["annotations"] if entry["image_id"] in ids],
            "categories": content["categories"],
        }
    return parts


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers in a name by their value."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


if __name__ == "__main__":
    sys.exit(main())
