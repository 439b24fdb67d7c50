import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score

from codemae.evaluation.metrics import metric_of, micro_average_precision, overall_accuracy, score


def test_micro_average_precision_equals_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(400, 7, generator=generator) < 0.3).long()
    logits = torch.randn(400, 7, generator=generator) + labels
    expected = average_precision_score(
        labels.numpy(), torch.sigmoid(logits.double()).numpy(), average="micro"
    )
    assert micro_average_precision(logits, labels) / 100 == pytest.approx(expected, abs=1e-6)


def test_classes_without_positives_do_not_disturb_the_micro_average() -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(300, 9, generator=generator) < 0.2).long()
        labels[:, [2, 7]] = 0
        logits = torch.randn(300, 9, generator=generator)
        expected = average_precision_score(labels.numpy(), logits.numpy(), average="micro")
        assert micro_average_precision(logits, labels) / 100 == pytest.approx(expected, abs=1e-6)


def test_micro_average_precision_keeps_the_order_of_confident_logits() -> None:
    # In float32 the sigmoids of 30 and 25 are exactly 1, a tie that would lower the figure.
    logits = torch.tensor([[30.0, -9.0], [25.0, -9.0], [-5.0, -9.0]])
    labels = torch.tensor([[1, 0], [0, 0], [0, 0]])
    assert micro_average_precision(logits, labels) == pytest.approx(100.0)


def test_micro_average_precision_is_of_the_whole_set_not_a_mean_of_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(64, 3, generator=generator) < torch.linspace(0.3, 0.9, 64).unsqueeze(1)).long()
    logits = torch.randn(64, 3, generator=generator) + labels
    halves = [micro_average_precision(logits[i::32], labels[i::32]) for i in range(32)]
    expected = 100 * average_precision_score(labels.numpy(), logits.numpy(), average="micro")
    assert micro_average_precision(logits, labels) == pytest.approx(expected, abs=1e-4)
    assert abs(np.mean(halves) - expected) > 1


def test_overall_accuracy_equals_sklearn_on_unbalanced_classes() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.multinomial(torch.tensor([0.8, 0.15, 0.05]), 300, replacement=True, generator=generator)
    logits = torch.randn(300, 3, generator=generator) + torch.nn.functional.one_hot(labels, 3)
    expected = accuracy_score(labels.numpy(), logits.argmax(1).numpy())
    assert overall_accuracy(logits, labels) / 100 == pytest.approx(expected, abs=1e-6)


def test_the_labels_choose_the_metric() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    assert metric_of(torch.tensor([0, 0])) == "overall_accuracy"
    assert score(logits, torch.tensor([0, 0])) == pytest.approx(50.0)
    assert metric_of(torch.tensor([[1, 0], [0, 1]])) == "micro_average_precision"
    assert score(logits, torch.tensor([[1, 0], [0, 1]])) == pytest.approx(100.0)
