"""Toy ships, and their annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_makers import save

SIDE = 96


def ship_picture(seed: int, boxes: Sequence[Sequence[int]], side: int = SIDE) -> np.ndarray:
    """Dark water with a bright rectangle at each x, y, width, height."""
    pixels = np.random.default_rng(seed).integers(20, 40, (side, side, 3)).astype(np.uint8)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = 220
    return pixels


def coco_content(
    boxes: Sequence[Sequence[Sequence[int]]], classes: Sequence[str] = ("ship",), prefix: str = ""
) -> dict[str, Any]:
    """A COCO file: boxes of each image, classes in turn."""
    annotations: list[dict[str, Any]] = []
    for image, listed in enumerate(boxes, start=1):
        for x, y, w, h in listed:
            category = len(annotations) % len(classes) + 1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": [x, y, w, h]}
                | {"area": w * h, "iscrowd": 0}
            )
    names = [f"{prefix}{number}.png" for number in range(1, len(boxes) + 1)]
    images = [{"id": i, "file_name": n, "width": SIDE, "height": SIDE} for i, n in enumerate(names, start=1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }


def make_ships(folder: Path, classes: Sequence[str] = ("ship",), count: int = 6) -> Path:
    """Images under ``images/`` and ``index/annotations/{train,val,test}.json``; returns the folder."""
    rng = np.random.default_rng(7)
    boxes = np.c_[rng.integers(4, 60, (3 * count, 2)), rng.integers(10, 30, (3 * count, 2))]
    boxes = boxes.reshape(count, 3, 4).tolist()
    for number, listed in enumerate(boxes, start=1):
        save(folder / "images" / f"{number}.png", ship_picture(number, listed))
    (folder / "index" / "annotations").mkdir(parents=True)
    content = json.dumps(coco_content(boxes, classes, "images/"))
    for split in ("train", "val", "test"):
        (folder / "index" / "annotations" / f"{split}.json").write_text(content)
    return folder
