"""Figures that stand beside the ranked one of a classification, in percent."""

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
    multilabel_f1_score,
)


def class_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-3 accuracy and weighted precision, recall and F1; micro F1 at 0.5 for several labels an image.

    Classes weigh by their images in ``labels``, as in Fus-MAE's tables. Top-3 is left out below four classes.

    Args:
        logits: (B, K).
        labels: (B,) class numbers, or (B, K) of zeros and ones.
    """
    classes = logits.shape[1]
    if labels.ndim == 2:
        scores = torch.sigmoid(logits.double())
        return {
            "micro_f1": 100.0 * float(multilabel_f1_score(scores, labels.long(), classes, average="micro"))
        }
    metrics = {
        "weighted_precision": multiclass_precision(logits, labels, classes, average="weighted"),
        "weighted_recall": multiclass_recall(logits, labels, classes, average="weighted"),
        "weighted_f1": multiclass_f1_score(logits, labels, classes, average="weighted"),
    }
    if classes > 3:
        metrics["top3"] = multiclass_accuracy(logits, labels, classes, average="micro", top_k=3)
    return {name: 100.0 * float(value) for name, value in metrics.items()}
