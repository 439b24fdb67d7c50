import numpy as np
import pytest
import torch

from codemae.evaluation.few_shot import FewShotError, few_shot_rows, label_fraction_rows


def test_per_class_shots_are_balanced_and_differ_by_seed() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    rows = few_shot_rows(labels, 3, 10, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [10, 10, 10]
    assert len(set(rows.tolist())) == 30
    assert torch.equal(rows, few_shot_rows(labels, 3, 10, seed=0))
    assert not torch.equal(rows, few_shot_rows(labels, 3, 10, seed=1))


def test_official_shots_ignore_the_class() -> None:
    labels = torch.tensor([0] * 990 + [1] * 10)
    rows = few_shot_rows(labels, 2, 10, seed=2, rule="official")
    expected = np.random.RandomState(731).permutation(1000)[:20]
    assert rows.tolist() == expected.tolist()


def test_multi_label_shots_show_each_class_at_least_that_often() -> None:
    labels = (torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) < 0.4).to(torch.uint8)
    rows = few_shot_rows(labels, 4, 5, seed=0)
    assert (labels[rows].sum(0) >= 5).all()
    assert 5 <= len(rows) <= 20
    assert len(few_shot_rows(labels, 4, None, seed=0)) == 200


def test_too_few_images_are_named() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3)
    with pytest.raises(FewShotError, match="class 1 has only 3 training images; lower --shots"):
        few_shot_rows(labels, 2, 10, seed=0)
    with pytest.raises(FewShotError, match="draws 40 images, the training split has 23"):
        few_shot_rows(labels, 2, 20, seed=0, rule="official")
    with pytest.raises(FewShotError, match="class 2 has only 0 training images"):
        few_shot_rows(labels, 3, 2, seed=0)
    with pytest.raises(FewShotError, match="at least 1"):
        few_shot_rows(labels, 2, 0, seed=0)


def test_a_fraction_keeps_the_shares_of_the_classes() -> None:
    labels = torch.tensor([0] * 200 + [1] * 100 + [2] * 4)
    rows = label_fraction_rows(labels, 3, 0.1, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [20, 10, 1]  # a tenth of 4 is none: one all the same
    assert len(set(rows.tolist())) == 31
    assert torch.equal(rows, label_fraction_rows(labels, 3, 0.1, seed=0))
    assert not torch.equal(rows, label_fraction_rows(labels, 3, 0.1, seed=1))
    assert len(label_fraction_rows(labels, 3, 1.0, seed=0)) == 304


def test_of_lists_of_labels_a_fraction_is_of_the_rows() -> None:
    labels = (torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    rows = label_fraction_rows(labels, 4, 0.01, seed=0)
    assert len(rows) == 3 and rows.max() < 300


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, 0.001])
def test_an_impossible_fraction_is_an_error(fraction: float) -> None:
    with pytest.raises(FewShotError, match="--fraction"):
        label_fraction_rows(torch.zeros(100, 3), 3, fraction, seed=0)
