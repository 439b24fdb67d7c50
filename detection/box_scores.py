"""COCO's figures of a file of predictions, a table of classes, and the result card."""

import contextlib
import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table

from codemae.downloads import file_hash
from codemae.evaluation.card import Card, joint_hash, library_versions
from codemae.mm.coco import AnnotationError, cleaned

TABLE = "per_class.csv"
METRIC = "box_ap50"
STATS = ("box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ap_medium", "box_ap_large")
RECALLS = ("box_ar_1", "box_ar_10", "box_ar_100")
MM_PACKAGES = ("onedl-mmengine", "onedl-mmcv", "onedl-mmdetection")


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One line of the table, in percent; NaN where no image has a box of the class.

    Attributes:
        name: Of the class.
        boxes: How many are in the annotations.
        ap: Mean over overlaps 0.5 to 0.95.
        ap50: At an overlap of 0.5.
        ap75: At 0.75.
        ar: Mean recall with 100 predictions an image.
    """

    name: str
    boxes: int
    ap: float
    ap50: float
    ap75: float
    ar: float


@dataclass(frozen=True, kw_only=True)
class BoxScores:
    """Figures of one set of images, in percent.

    Attributes:
        figures: Name to value; those of sizes that do not occur are left out.
        classes: A line a class.
    """

    figures: dict[str, float]
    classes: list[ClassScore]


def score(annotations: Path, predictions: Path, classes: Sequence[str]) -> BoxScores:
    """COCO's evaluation of predictions against a cleaned annotation file.

    Args:
        annotations: COCO file.
        predictions: COCO results: image_id, category_id, bbox, score.
        classes: Names of the classes, in the model's order.

    Raises:
        AnnotationError: The file lacks a class.
    """
    content, _ = cleaned(json.loads(annotations.read_text()), classes, annotations)
    found = json.loads(predictions.read_text())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = content
        truth.createIndex()
        # pycocotools cannot read an empty list.
        results = truth.loadRes(found) if found else COCO()
        if not found:
            results.dataset = {**content, "annotations": []}
            results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        numbers = [truth.getCatIds(catNms=[name])[0] for name in classes]
        evaluation.params.catIds = numbers
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # precision: overlaps x recalls x classes x sizes x limits; -1 where there is nothing to find.
    precision, recall = evaluation.eval["precision"][..., 0, -1], evaluation.eval["recall"][..., 0, -1]
    lines = [
        ClassScore(
            name=name,
            boxes=len(truth.getAnnIds(catIds=[number], iscrowd=False)),
            ap=_mean(precision[:, :, place]),
            ap50=_mean(precision[0, :, place]),
            ap75=_mean(precision[5, :, place]),
            ar=_mean(recall[:, place]),
        )
        for place, (name, number) in enumerate(zip(classes, numbers, strict=True))
    ]
    values = dict(zip((*STATS, *RECALLS), map(float, evaluation.stats[:9]), strict=True))
    return BoxScores(figures={k: 100 * v for k, v in values.items() if v >= 0}, classes=lines)


def write_table(scores: BoxScores, path: Path) -> None:
    """Writes the classes as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "boxes", "ap", "ap50", "ap75", "ar"])
        for line in scores.classes:
            numbers = [f"{value:.2f}" for value in (line.ap, line.ap50, line.ap75, line.ar)]
            writer.writerow([line.name, line.boxes, *numbers])


def print_table(scores: BoxScores, console: Console) -> None:
    """Shows the classes and the figures over all of them."""
    table = Table("class")
    for name in ("boxes", "AP", "AP50", "AP75", "AR"):
        table.add_column(name, justify="right")
    for line in scores.classes:
        table.add_row(
            line.name, str(line.boxes), *(f"{v:.1f}" for v in (line.ap, line.ap50, line.ap75, line.ar))
        )
    console.print(table)
    console.print("  ".join(f"{name} {value:.2f}" for name, value in scores.figures.items()))


def card_of(
    config: Any,
    scores: BoxScores,
    source: dict[str, str],
    batch: int | None,
    selected_by: str,
    also: dict[str, Any],
) -> Card:
    """The result card of a run.

    Args:
        config: mmengine's config with the keys ``dataset_name`` and ``protocol`` of ours.
        scores: Of the reported epoch on the test images.
        source: Name and hash of the encoder that training started from.
        batch: Images that a training step learnt from, over all processes; None where nothing says.
        selected_by: ``last`` or ``test``.
        also: The figure of other epochs, by how they were chosen.

    Raises:
        AnnotationError: The test images have no box, so there is no figure.
    """
    if METRIC not in scores.figures:
        raise AnnotationError("the test images have no boxes, so there is nothing to score")
    files = [Path(config.test_evaluator.ann_file), *_annotation_files(config.train_dataloader.dataset)]
    preprocessor = config.model.data_preprocessor
    statistics = json.dumps([list(preprocessor.mean), list(preprocessor.std)])
    optim = config.optim_wrapper
    others = {name: [value] for name, value in scores.figures.items() if name != METRIC}
    per_class = {f"ap50 {c.name}": [c.ap50] for c in scores.classes if not np.isnan(c.ap50)}
    return Card(
        task="detection",
        dataset=config.dataset_name,
        split_hash=joint_hash([file_hash(path) if path.is_file() else "not at hand" for path in files]),
        statistics_hash=hashlib.sha256(statistics.encode()).hexdigest()[:16],
        encoder=source["encoder"],
        checkpoint_hash=source["checkpoint_hash"],
        modality=config.model.backbone.modality,
        protocol=config.protocol,
        selected_by=selected_by,  # type: ignore[arg-type]
        metric=METRIC,
        seeds=[config.randomness.seed],
        values=[scores.figures[METRIC]],
        size=max(_scale(config.test_dataloader.dataset.pipeline)),
        normalisation="dataset",
        settings={
            "config": Path(config.filename).stem if config.filename else "",
            "detector": config.model.type,
            "epochs": config.train_cfg.max_epochs,
            "batch": batch,
            "optimizer": {k: _plain(v) for k, v in optim.optimizer.items()},
            "layer_decay": dict(optim.get("paramwise_cfg") or {}),
            "drop_path": config.model.backbone.get("drop_path", 0.0),
            "frozen_stages": config.model.backbone.get("frozen_stages", -1),
        },
        metrics=others | per_class,
        also=also,
        versions=library_versions() | {name: metadata.version(name) for name in MM_PACKAGES},
    )


def _mean(values: np.ndarray) -> float:
    kept = values[values > -1]
    return float(100 * kept.mean()) if kept.size else float("nan")


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _annotation_files(dataset: Any) -> list[Path]:
    parts = dataset.get("datasets", [dataset])
    return [Path(part.ann_file) for part in parts]


def _scale(pipeline: Any) -> tuple[int, ...]:
    return next((tuple(step.scale) for step in pipeline if step.type == "Resize"), (0,))
