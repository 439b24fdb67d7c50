import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support, top_k_accuracy_score

from codemae.evaluation.class_metrics import class_metrics


def test_one_label_an_image_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = (
        torch.randn(200, 6, generator=generator),
        torch.randint(0, 6, (200,), generator=generator),
    )
    found = class_metrics(logits, labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, logits.argmax(1), average="weighted", zero_division=0
    )
    top3 = top_k_accuracy_score(labels, logits.numpy(), k=3, labels=np.arange(6))
    expected = {"weighted_precision": precision, "weighted_recall": recall, "weighted_f1": f1, "top3": top3}
    assert found == pytest.approx({name: 100 * value for name, value in expected.items()}, abs=1e-4)


def test_several_labels_an_image_agree_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(100, 5, generator=generator)
    labels = (torch.rand(100, 5, generator=generator) < 0.3).float()
    expected = 100 * f1_score(labels.numpy(), (logits > 0).numpy(), average="micro")
    assert class_metrics(logits, labels) == pytest.approx({"micro_f1": expected}, abs=1e-4)
