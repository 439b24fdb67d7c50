from collections import Counter

import numpy as np
import pytest
import torch

from codemae.evaluation.carving import CarvingError, carve_validation
from codemae.evaluation.few_shot import few_shot_rows


def test_a_share_of_each_class_leaves_the_training_rows() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 3 + [3])
    train = torch.arange(len(labels))
    training, validation = carve_validation(labels, train, seed=0)
    # Tenths: 5, 3, 0.3 raised to 1, and nothing of a class with a single row.
    assert Counter(labels[validation].tolist()) == {0: 5, 1: 3, 2: 1}
    assert sorted([*training.tolist(), *validation.tolist()]) == train.tolist()
    again = carve_validation(labels, train, seed=0)
    assert torch.equal(training, again[0]) and torch.equal(validation, again[1])
    assert not torch.equal(validation, carve_validation(labels, train, seed=1)[1])


def test_only_the_training_rows_are_split() -> None:
    labels = torch.arange(40) % 2
    train = torch.arange(10, 30)
    training, validation = carve_validation(labels, train, seed=3, fraction=0.2)
    assert len(validation) == 4 and len(training) == 16
    assert set(training.tolist()) | set(validation.tolist()) == set(train.tolist())


def test_lists_of_labels_keep_a_training_row_of_each_class() -> None:
    labels = (torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    labels[:, 5] = 0
    labels[7, 5] = 1  # one row shows class 5
    training, validation = carve_validation(labels, torch.arange(200), seed=0)
    assert 7 not in validation
    shown, kept = labels[validation].sum(0), labels[training].sum(0)
    total = labels.sum(0)
    for klass in range(5):
        assert shown[klass] >= round(0.1 * float(total[klass]))
        assert kept[klass] >= 1
    assert 20 <= len(validation) <= 40
    assert not set(training.tolist()) & set(validation.tolist())


def test_few_shots_stay_and_as_many_more_validate() -> None:
    labels = torch.tensor([0] * 30 + [1] * 12 + [2] * 10)
    train = few_shot_rows(labels, 3, 10, seed=0)
    training, validation = carve_validation(labels, train, seed=0, shots=10)
    assert torch.equal(training, train)
    assert Counter(labels[validation].tolist()) == {0: 10, 1: 2}  # what is left over: 20, 2 and 0
    assert not set(training.tolist()) & set(validation.tolist())
    assert Counter(labels[torch.cat([training, validation])].tolist())[0] <= 2 * 10


def test_a_group_is_never_cut() -> None:
    labels = torch.arange(120) % 3
    groups = [f"scene{row // 6}" for row in range(120)]  # 20 scenes, two rows of each class in each
    training, validation = carve_validation(labels, torch.arange(120), seed=0, groups=groups)
    sides = [{groups[row] for row in rows.tolist()} for rows in (training, validation)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2  # 4 rows of each class are wanted, a scene has two

    shots = few_shot_rows(labels[:60], 3, 2, seed=0)
    kept, more = carve_validation(labels, shots, seed=0, shots=2, groups=groups)
    assert torch.equal(kept, shots)
    assert not {groups[row] for row in kept.tolist()} & {groups[row] for row in more.tolist()}
    assert np.bincount(labels[more].numpy()).tolist() == [2, 2, 2]


def test_nothing_to_validate_on_is_an_error() -> None:
    with pytest.raises(CarvingError, match="--select last"):
        carve_validation(torch.arange(4), torch.arange(4), seed=0)
    with pytest.raises(CarvingError, match="--select last"):
        carve_validation(torch.tensor([0, 0, 1, 1]), torch.arange(4), seed=0, shots=2)
    with pytest.raises(CarvingError, match="between 0 and 1"):
        carve_validation(torch.tensor([0, 0, 1, 1]), torch.arange(4), seed=0, fraction=1.0)
