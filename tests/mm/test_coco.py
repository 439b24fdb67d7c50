import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mmdet")

from mmengine.registry import init_default_scope  # noqa: E402

from codemae.mm.coco import (  # noqa: E402
    NO_CATEGORY,
    NO_IMAGE,
    NO_NUMBER,
    OUTSIDE,
    ZERO_SIZE,
    AnnotationError,
    CheckedCocoDataset,
    CheckedCocoMetric,
    cleaned,
)

pytestmark = pytest.mark.mm
GOOD = [10, 20, 30, 40]


def content(*boxes: list[float], **more: Any) -> dict[str, Any]:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes, start=1)
    ]
    return {
        "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 80}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "ship"}, {"id": 2, "name": "harbor"}],
    } | more


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 10, 0, 5], ZERO_SIZE),
        ([10, 10, 5, -1], ZERO_SIZE),
        ([10, 10, 0.5, 5], ZERO_SIZE),
        ([100, 10, 5, 5], OUTSIDE),
        ([-20, 10, 20, 5], OUTSIDE),
        ([99.5, 10, 20, 5], OUTSIDE),
        ([float("nan"), 10, 20, 5], NO_NUMBER),
    ],
)
def test_boxes_that_cannot_be_found_are_dropped_and_counted(box: list[float], reason: str) -> None:
    kept, faults = cleaned(content(GOOD, box), ["ship"], "a.json")
    assert [entry["bbox"] for entry in kept["annotations"]] == [GOOD]
    assert dict(faults.dropped) == {reason: 1} and faults.boxes == 2
    assert faults.sentences() == [f"1 of 2 boxes dropped: 1 {reason}"]


def test_a_box_over_the_border_is_cut_there() -> None:
    kept, faults = cleaned(content([90, -5, 30, 20], GOOD), ["ship"], "a.json")
    assert kept["annotations"][0]["bbox"] == [90, 0, 10, 15] and kept["annotations"][0]["area"] == 150
    assert kept["annotations"][1]["area"] == 1200
    assert faults.clipped == 1 and faults.dropped.total() == 0


def test_unknown_images_and_categories_are_dropped_and_untrained_ones_counted() -> None:
    strange = content(GOOD, GOOD, GOOD, GOOD)
    strange["annotations"][1]["image_id"] = 9
    strange["annotations"][2]["category_id"] = 9
    strange["annotations"][3]["category_id"] = 2
    kept, faults = cleaned(strange, ["ship"], "a.json")
    assert dict(faults.dropped) == {NO_IMAGE: 1, NO_CATEGORY: 1}
    assert dict(faults.other) == {"harbor": 1} and len(kept["annotations"]) == 2
    assert "categories that the config does not train: harbor (1)" in faults.sentences()


def test_a_missing_category_is_named_with_those_there_are() -> None:
    with pytest.raises(AnnotationError, match="no category 'plane'; it has harbor, ship"):
        cleaned(content(GOOD), ["ship", "plane"], "a.json")
    with pytest.raises(AnnotationError, match="is no COCO file"):
        cleaned({"images": []}, ["ship"], "a.json")


def test_classes_are_numbered_by_the_config_and_not_by_the_file(tmp_path: Path) -> None:
    init_default_scope("mmdet")
    both = content(GOOD, [1, 1, 9, 9], [5, 5, 0, 9])
    both["annotations"][1]["category_id"] = 2
    path = tmp_path / "a.json"
    path.write_text(json.dumps(both))
    dataset = CheckedCocoDataset(
        ann_file=str(path), metainfo={"classes": ("harbor", "ship")}, data_prefix={"img": ""}, pipeline=[]
    )
    instances = dataset.get_data_info(0)["instances"]
    assert [(entry["bbox"], entry["bbox_label"]) for entry in instances] == [
        ([10, 20, 40, 60], 1),
        ([1, 1, 10, 10], 0),
    ]
    assert dataset.faults.dropped.total() == 1


def test_scoring_does_not_count_a_box_that_cannot_be_found(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(GOOD, [10, 10, 0.2, 5])))
    metric = CheckedCocoMetric(ann_file=str(path))
    metric.dataset_meta = {"classes": ("ship",)}
    found = {"bboxes": np.array([[10.0, 20, 40, 60]]), "scores": np.array([0.9]), "labels": np.array([0])}
    truth = {"width": 100, "height": 80, "img_id": 1}
    figures = metric.compute_metrics([(truth, {"img_id": 1, **found})])
    assert figures["bbox_mAP"] == 1.0


def test_a_missing_or_broken_file_is_said(tmp_path: Path) -> None:
    init_default_scope("mmdet")
    with pytest.raises(AnnotationError, match="no annotations at"):
        CheckedCocoDataset(ann_file=str(tmp_path / "no.json"), metainfo={"classes": ("ship",)}, pipeline=[])
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(AnnotationError, match="no JSON file"):
        CheckedCocoDataset(
            ann_file=str(tmp_path / "broken.json"), metainfo={"classes": ("ship",)}, pipeline=[]
        )
