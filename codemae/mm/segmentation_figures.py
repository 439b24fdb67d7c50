"""mIoU, mF1 and overall accuracy over all pixels of a test set, as a metric of mmengine."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS

from codemae.data.masks import NO_LABEL
from codemae.evaluation.segmentation_metrics import (
    class_f1,
    class_ious,
    confusion,
    mean_of_known,
    pixel_accuracy,
)
from codemae.evaluation.tables import as_table


@METRICS.register_module()
class SegmentationFigures(BaseMetric):
    """Figures in percent from one confusion matrix of the whole set.

    ``mean_iou`` and ``mean_f1`` are means over the classes that are labelled or predicted anywhere;
    ``overall_accuracy`` is the share of labelled pixels that are right; ``iou_<class>`` and ``f1_<class>``
    are those of the classes. Pixels without label do not count.

    Args:
        ignore_index: Stands for no label.
        collect_device: Where results of several processes are gathered.
        prefix: Stands before the names.

    Attributes:
        by_row: Index row and mean IoU of each image, once the figures are computed.
    """

    def __init__(
        self, ignore_index: int = NO_LABEL, collect_device: str = "cpu", prefix: str | None = None
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.ignore_index = ignore_index
        self.by_row: list[tuple[int, float]] = []

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Counts the pixels of a batch of predictions."""
        count = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted = sample["pred_sem_seg"]["data"].squeeze(0).cpu()
            target = sample["gt_sem_seg"]["data"].squeeze(0).cpu()
            row = int(sample.get("row", -1))
            self.results.append((row, confusion(predicted, target, count, self.ignore_index)))

    def compute_metrics(self, results: list[tuple[int, torch.Tensor]]) -> dict[str, float]:
        """The figures; the log has a table of the classes."""
        matrix = torch.stack([found for _, found in results]).sum(dim=0)
        self.by_row = [(row, mean_of_known(class_ious(found))) for row, found in results]
        classes = self.dataset_meta["classes"]
        ious, f1 = class_ious(matrix), class_f1(matrix)
        figures = {
            "mean_iou": mean_of_known(ious),
            "mean_f1": mean_of_known(f1),
            "overall_accuracy": pixel_accuracy(matrix),
        }
        rows = [["class", "IoU", "F1"]]
        for name, iou, score in zip(classes, ious, f1, strict=True):
            figures |= {f"iou_{name}": iou, f"f1_{name}": score}
            rows.append([name, f"{iou:.2f}", f"{score:.2f}"])
        MMLogger.get_current_instance().info(f"figures in percent\n{as_table(rows, False)}")
        return figures
