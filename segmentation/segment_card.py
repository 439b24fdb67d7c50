"""The result card of a segmentation run and its table of the classes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from codemae.evaluation.card import Card, CardError, joint_hash, write_atomically
from codemae.evaluation.features import rows_hash
from codemae.evaluation.tables import as_table
from codemae.mm.segmentation import IndexSegmentation

METRIC = "mean_iou"
TABLE = "classes.md"


def card_of(
    config: Config,
    figures: Mapping[str, float],
    train: IndexSegmentation,
    test: IndexSegmentation,
    source: Mapping[str, str],
    batch: int | None,
    selected_by: Any,
) -> Card:
    """The card. Runs of different modality may be ranked if everything else agrees.

    Args:
        config: With the keys ``dataset_name`` and ``protocol`` of ours.
        figures: Of the test rows, in percent.
        train: The rows trained on.
        test: The rows measured.
        source: Name and hash of the encoder that training started from.
        batch: Images that a training step learnt from, over all processes; None where nothing says.
        selected_by: ``last``, ``val`` or ``test``.

    Raises:
        CardError: No pixel of the test rows has a label.
    """
    if not math.isfinite(figures[METRIC]):
        raise CardError("no pixel of the test rows has a label, so there is nothing to measure")
    optim = config.optim_wrapper
    return Card(
        task="segmentation",
        dataset=config.dataset_name,
        split_hash=joint_hash([rows_hash(rows.index, rows.rows) for rows in (train, test)]),
        statistics_hash=train.index.statistics_hash(),
        encoder=source["encoder"],
        checkpoint_hash=source["checkpoint_hash"],
        modality=test.modality,
        protocol=config.protocol,
        selected_by=selected_by,
        metric=METRIC,
        seeds=[config.randomness.seed],
        values=[figures[METRIC]],
        settings={
            "head": config.model.decode_head.type,
            "head_channels": config.model.decode_head.get("channels"),
            "length": config.train_cfg.get("max_iters") or f"{config.train_cfg.max_epochs} epochs",
            "batch": batch,
            "optimizer": _plain(optim.optimizer),
            "layer_decay": _plain(optim.get("paramwise_cfg") or {}),
            "drop_path": config.model.backbone.get("drop_path", 0.0),
            "frozen_stages": config.model.backbone.get("frozen_stages", -1),
            "augmentation": [step.type for step in config.train_dataloader.dataset.pipeline],
            "test": _plain(config.model.test_cfg),
        },
        metrics={name: [value] for name, value in figures.items() if name != METRIC and math.isfinite(value)},
    )


def write_table(path: Path, classes: Sequence[str], figures: Mapping[str, float]) -> None:
    """Writes IoU and F1 of each class, their means and the overall accuracy as Markdown, in percent."""
    rows = [["class", "IoU", "F1"]]
    rows += [[name, *(_shown(figures[f"{what}_{name}"]) for what in ("iou", "f1"))] for name in classes]
    rows.append(["mean", _shown(figures["mean_iou"]), _shown(figures["mean_f1"])])
    text = f"{as_table(rows, markdown=True)}\n\nOverall accuracy {_shown(figures['overall_accuracy'])} %.\n"
    write_atomically(path, text.encode())


def _shown(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _plain(value: Any) -> Any:
    """Values that JSON keeps as they are."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items() if not str(key).startswith("_")}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
