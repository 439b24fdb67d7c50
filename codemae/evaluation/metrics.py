"""The figures of the field, in percent."""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multilabel_average_precision

Metric = Literal["overall_accuracy", "micro_average_precision"]


def metric_of(labels: Tensor) -> Metric:
    """The metric that goes with labels: (B,) class numbers, or (B, K) zeros and ones."""
    return "overall_accuracy" if labels.ndim == 1 else "micro_average_precision"


def overall_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of the samples whose largest logit is their class; logits (B, K), labels (B,)."""
    return 100.0 * float(multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro"))


def micro_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Average precision over all (sample, class) decisions of the whole set at once, in percent.

    Averaging the value of each batch instead, as some published code does, gives another number.

    Args:
        logits: (B, K).
        labels: (B, K) of zeros and ones.
    """
    # A float32 sigmoid rounds confident logits to 1 and ties what the classifier ranked.
    scores = torch.sigmoid(logits.double())
    value = multilabel_average_precision(
        scores, labels.long(), num_labels=labels.shape[1], average="micro", thresholds=None
    )
    return 100.0 * float(value)


def score(logits: Tensor, labels: Tensor) -> float:
    """The figure of ``metric_of(labels)``."""
    if metric_of(labels) == "overall_accuracy":
        return overall_accuracy(logits, labels)
    return micro_average_precision(logits, labels)
