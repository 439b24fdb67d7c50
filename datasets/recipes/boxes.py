"""Boxes of detection sets as COCO JSON files beside the index."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from recipes.candidates import Candidate
from recipes.card import Boxes
from recipes.labels import LabelError
from recipes.plan import Kept, PrepareError, write_whole

_Box = dict[str, Any]
_Source = Callable[[Candidate], list[_Box] | None]


def voc_boxes(path: Path, numbers: dict[str, int]) -> list[_Box]:
    """Boxes of a PASCAL VOC file; the corners are taken as they stand: width is xmax - xmin.

    Raises:
        LabelError: There is no such file, it is no XML, or it names something that is no class.
    """
    try:
        tree = ElementTree.parse(path)
        boxes = []
        for entry in tree.iter("object"):
            name = (entry.findtext("name") or "").strip()
            if name not in numbers:
                raise LabelError(f"{path} names {name!r}, which is no class")
            corners = entry.find("bndbox")
            if corners is None:
                raise LabelError(f"{path} has an object without bndbox")
            left, top, right, bottom = (
                float(corners.findtext(key) or "") for key in ("xmin", "ymin", "xmax", "ymax")
            )
            difficult = (entry.findtext("difficult") or "0").strip() == "1"
            boxes.append(_box(numbers[name], (left, top, right - left, bottom - top), difficult))
        return boxes
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise LabelError(f"{path}: {error}") from None


def _box(number: int, bbox: tuple[float, ...], ignored: bool = False) -> _Box:
    x, y, width, height = bbox
    plain = {"category_id": number + 1, "bbox": [x, y, width, height], "area": width * height}
    return plain | {"iscrowd": 0} | ({"ignore": 1} if ignored else {})


class CocoBoxes:
    """Boxes of COCO files by the names of their images."""

    def __init__(self, files: list[Path], numbers: dict[str, int]) -> None:
        self._boxes: dict[str, list[_Box]] = {}
        for file in files:
            try:
                plain = json.loads(file.read_text())
                classes = {entry["id"]: entry["name"] for entry in plain["categories"]}
                by_image: dict[Any, list[_Box]] = defaultdict(list)
                for entry in plain["annotations"]:
                    if len(entry["bbox"]) != 4:
                        raise ValueError(f"a bbox is four numbers, got {entry['bbox']!r}")
                    by_image[entry["image_id"]].append(entry)
                for image in plain["images"]:
                    name = str(image["file_name"]).replace("\\", "/")
                    self._boxes[name] = [
                        {k: v for k, v in entry.items() if k in ("bbox", "area", "iscrowd", "segmentation")}
                        | {"category_id": numbers[classes[entry["category_id"]]] + 1}
                        for entry in by_image[image["id"]]
                        if classes[entry["category_id"]] in numbers
                    ]
            except OSError as error:
                raise PrepareError(f"no annotations {file}: {error.strerror}") from None
            except (ValueError, KeyError, TypeError) as error:
                raise PrepareError(f"{file} is not a COCO file: {error!r}") from None
            if not set(classes.values()) & numbers.keys():
                listed = ", ".join(map(str, classes.values()))
                raise PrepareError(f"{file} has the categories {listed}, none of which is a class")
        self._short = {name.rsplit("/", 1)[-1]: name for name in self._boxes}

    def __call__(self, path: str) -> list[_Box] | None:
        """Boxes of an image; None: no file names it."""
        name = path
        while name not in self._boxes and "/" in name:
            name = name.split("/", 1)[1]
        return self._boxes.get(name if name in self._boxes else self._short.get(name, name))


def box_writer(
    boxes: Boxes, classes: tuple[str, ...], root: Path, voc_files: dict[str, str]
) -> Callable[[Path, Kept], dict[str, object]]:
    """What writes ``annotations/<split>.json`` beside an index.

    Args:
        boxes: Where the boxes stand.
        classes: Class names; the category of class number k has the id k + 1.
        root: Folder of the dataset.
        voc_files: Key to XML file, relative to the root.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    coco = {
        split: CocoBoxes([root / name for name in listed], numbers) for split, listed in boxes.coco.items()
    }

    def find(candidate: Candidate) -> list[_Box] | None:
        if coco:
            own = [coco[candidate.split]] if candidate.split in coco else []
            tried = (file(path) for file in (*own, *coco.values()) for path in candidate.paths.values())
            return next((found for found in tried if found is not None), None)
        return voc_boxes(root / voc_files[candidate.key], numbers)

    def write(out: Path, kept: Kept) -> dict[str, object]:
        images: dict[str, list[dict[str, Any]]] = defaultdict(list)
        annotations: dict[str, list[_Box]] = defaultdict(list)
        unnamed = 0
        for candidate, (height, width) in kept:
            split = candidate.split
            number = len(images[split]) + 1
            path = next(iter(candidate.paths.values()))
            images[split].append({"id": number, "file_name": path, "width": width, "height": height})
            try:
                found = find(candidate)
            except LabelError as error:
                raise PrepareError(str(error)) from None
            unnamed += found is None
            for box in found or []:
                annotations[split].append({"id": len(annotations[split]) + 1, "image_id": number} | box)
        for split in images:
            plain = {
                "images": images[split],
                "annotations": annotations[split],
                "categories": [{"id": number + 1, "name": name} for name, number in numbers.items()],
            }
            write_whole(out / "annotations" / f"{split}.json", json.dumps(plain) + "\n")
        facts: dict[str, object] = {"boxes": {split: len(listed) for split, listed in annotations.items()}}
        return facts | ({"images that no annotation file names": unnamed} if unnamed else {})

    return write
