"""COCO annotations whose faults are counted and said, for training and for scoring alike."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmengine.logging import print_log
from mmengine.registry import DATASETS, METRICS

NO_NUMBER = "with a coordinate that is no finite number"
ZERO_SIZE = "of zero size"
OUTSIDE = "wholly outside their image"
NO_CATEGORY = "of a category that the file does not name"
NO_IMAGE = "of an image that the file does not name"
CLIPPED = "partly outside their image"
_LEAST_SIDE = 1.0


class AnnotationError(ValueError):
    """An annotation file cannot be used; the message says what is wrong with it."""


@dataclass(kw_only=True)
class Faults:
    """What was found in an annotation file.

    Attributes:
        boxes: How many it has.
        dropped: Reason to how many boxes were left out.
        clipped: Boxes that were cut at the border of their image.
        other: Name of categories that are not trained to how many boxes they have.
    """

    boxes: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    clipped: int = 0
    other: Counter[str] = field(default_factory=Counter)

    def sentences(self) -> list[str]:
        """A line each for what was dropped, clipped and ignored; empty where all was well."""
        lines = []
        if self.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
            lines.append(f"{self.dropped.total()} of {self.boxes} boxes dropped: {reasons}")
        if self.clipped:
            lines.append(f"{self.clipped} of {self.boxes} boxes {CLIPPED}: cut at its border")
        if self.other:
            listed = ", ".join(f"{name} ({count})" for name, count in sorted(self.other.items()))
            lines.append(f"categories that the config does not train: {listed}")
        return lines


def cleaned(
    content: dict[str, Any], classes: Sequence[str], path: str | Path
) -> tuple[dict[str, Any], Faults]:
    """A COCO file's content without boxes that cannot be found, and a count of what was wrong.

    A box of a side below one pixel, wholly outside its image, or of an unknown category or image is dropped;
    one that reaches over the border is cut there, and its area counted anew. Boxes marked ``iscrowd`` or
    ``ignore`` are held to the same rules.

    Args:
        content: ``images``, ``annotations``, ``categories``.
        classes: Names the model has classes for.
        path: For messages.

    Raises:
        AnnotationError: It is no COCO file, or has no category of one of the names.
    """
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in content["images"]}
        given = list(content["annotations"])
    except (KeyError, TypeError) as error:
        raise AnnotationError(f"{path} is no COCO file of boxes: no {error}") from None
    if missing := [name for name in classes if name not in names.values()]:
        raise AnnotationError(
            f"{path} has no category {', '.join(map(repr, missing))}; it has "
            f"{', '.join(sorted(names.values()))}. Set metainfo.classes of the config to names of the file"
        )
    faults, kept = Faults(boxes=len(given)), []
    for entry in given:
        if entry["image_id"] not in sizes:
            faults.dropped[NO_IMAGE] += 1
        elif entry["category_id"] not in names:
            faults.dropped[NO_CATEGORY] += 1
        else:
            box = _inside(entry["bbox"], *sizes[entry["image_id"]])
            if isinstance(box, str):
                faults.dropped[box] += 1
                continue
            if names[entry["category_id"]] not in classes:
                faults.other[names[entry["category_id"]]] += 1
            changed = box != [float(value) for value in entry["bbox"]]
            faults.clipped += changed
            area = {"area": box[2] * box[3]} if changed or entry.get("area", 0) <= 0 else {}
            kept.append({"iscrowd": 0, **entry, "bbox": box, **area})
    # The frameworks number classes in the order of the file, whatever the order of the config.
    order = {name: number for number, name in enumerate(classes)}
    categories = sorted(content["categories"], key=lambda entry: order.get(str(entry["name"]), len(order)))
    return {**content, "annotations": kept, "categories": categories}, faults


def _inside(bbox: Iterable[float], width: int, height: int) -> list[float] | str:
    """The part of x, y, width, height that lies in the image, or why there is none."""
    x, y, w, h = map(float, bbox)
    if not all(map(math.isfinite, (x, y, w, h))):
        return NO_NUMBER
    if w < _LEAST_SIDE or h < _LEAST_SIDE:
        return ZERO_SIZE
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return OUTSIDE
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return [x, y, w, h]
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    if right - left < _LEAST_SIDE or bottom - top < _LEAST_SIDE:
        return OUTSIDE
    return [left, top, right - left, bottom - top]


def _clean(api: Any, classes: Sequence[str], path: str | Path) -> Faults:
    """Cleans an opened COCO file in place."""
    api.dataset, faults = cleaned(api.dataset, classes, path)
    api.anns, api.imgs, api.cats = {}, {}, {}
    api.createIndex()
    if hasattr(api, "img_ann_map"):
        api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
    return faults


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """mmdet's COCO dataset over a cleaned file; what was wrong with it is logged once.

    Raises:
        AnnotationError: The file is missing, is no COCO file, or lacks a class of the config.
    """

    faults: Faults

    def load_data_list(self) -> list[dict[str, Any]]:
        """The frameworks' records, a dictionary an image."""
        self._check_file()
        open_file: Any = CocoDataset.COCOAPI

        def open_cleaned(path: str) -> Any:
            api = open_file(path)
            self.faults = _clean(api, self.metainfo["classes"], self.ann_file)
            return api

        self.COCOAPI = open_cleaned
        try:
            records: list[dict[str, Any]] = super().load_data_list()
        except json.JSONDecodeError as error:
            raise AnnotationError(f"{self.ann_file} is no JSON file ({error})") from None
        finally:
            del self.COCOAPI
        for line in self.faults.sentences():
            print_log(f"{self.ann_file}: {line}", "current", 30)
        return records

    def _check_file(self) -> None:
        if not Path(self.ann_file).is_file():
            raise AnnotationError(
                f"no annotations at {self.ann_file}; the first lines of the dataset's file in "
                "detection/configs/_base_/datasets name the command that writes them and the path's variables"
            )


@METRICS.register_module()
class CheckedCocoMetric(CocoMetric):
    """mmdet's COCO metric against the cleaned file: a box that nobody could find is not missed."""

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """COCO's figures of all results."""
        if self._coco_api is not None:
            _clean(self._coco_api, self.dataset_meta["classes"], "annotations")
        figures: Mapping[str, float] = super().compute_metrics(results)
        return dict(figures)
