from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_makers import make_labelled

from codemae.data.index import IndexFileError, open_index
from codemae.evaluation.protocol import (
    EvaluationConfig,
    ProtocolError,
    check_labels,
    count_classes,
    device_of,
    labelled_rows,
    load_named,
    own_inputs,
    usable_rows,
)


def config(**changes: Any) -> EvaluationConfig:
    return replace(EvaluationConfig(encoder="random:hivit_tiny", output_dir="out"), **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "val"),
        ({"select": "last"}, "last"),
        ({"shots": 10}, "last"),
        ({"shots": 10, "select": "val"}, "val"),
        ({"fraction": 0.1}, "val"),
        ({"protocol": "paper"}, "last"),
        ({"protocol": "official"}, "test"),
        ({"protocol": "paper", "select": "val"}, "last"),
    ],
)
def test_only_official_selects_on_the_test_split(changes: dict[str, Any], expected: str) -> None:
    assert config(**changes).selected_by == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "at least 1"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.5}, "at most 1"),
        ({"val_fraction": 1.0}, "between 0 and 1"),
        ({"shots": 5, "fraction": 0.1}, "give one of them"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_rows_need_every_modality_asked_for(tmp_path: Path) -> None:
    index = open_index(make_labelled(tmp_path / "both"), "train")
    assert usable_rows(index, ("optical", "sar")).tolist() == list(range(18))
    optical = open_index(make_labelled(tmp_path / "optical", sides=("optical",)), "train")
    assert usable_rows(optical, ("optical",)).tolist() == list(range(18))
    with pytest.raises(IndexFileError, match="has optical and sar; choose another --modality"):
        usable_rows(optical, ("optical", "sar"))


def test_labels_without_a_logit_are_named_with_their_row(tmp_path: Path) -> None:
    index = open_index(make_labelled(tmp_path / "toy"), "test")
    rows = index.rows
    labels = torch.from_numpy(index.labels(rows))
    assert count_classes(index, labels) == 3
    assert count_classes(index, torch.zeros(2, 7)) == 7
    check_labels(index, rows, labels, 3, ndim=1)
    for wrong in (3, -1):
        labels[5] = wrong
        with pytest.raises(
            ProtocolError, match=f"row 23 of split 'test' has label {wrong}, the classes are 0 to 2"
        ):
            check_labels(index, rows, labels, 3, ndim=1)
    for table, ndim in ((torch.zeros(12, 3), 1), (torch.zeros(12, 2), 2), (labels, 2)):
        with pytest.raises(ProtocolError, match="prepare both alike"):
            check_labels(index, rows, table, 3, ndim=ndim)


def test_validation_rows_are_carved_only_when_asked_for(tmp_path: Path) -> None:
    index = open_index(make_labelled(tmp_path / "toy"), "train")
    rows = usable_rows(index, ("optical",))
    labels = torch.from_numpy(index.labels(rows))
    everything, none = labelled_rows(config(), index, rows, labels, 3, 0, carve=False)
    assert everything.tolist() == list(range(18)) and none is None
    train, val = labelled_rows(config(shots=2), index, rows, labels, 3, 0, carve=True)
    assert val is not None and not set(train.tolist()) & set(val.tolist())
    assert torch.bincount(labels[train]).tolist() == torch.bincount(labels[val]).tolist() == [2, 2, 2]
    half, _ = labelled_rows(config(fraction=0.5), index, rows, labels, 3, 0, carve=False)
    assert torch.bincount(labels[half]).tolist() == [3, 3, 3]


def test_groups_are_never_cut(tmp_path: Path) -> None:
    index = open_index(make_labelled(tmp_path / "toy", group_size=3), "train")
    rows = usable_rows(index, ("optical",))
    labels = torch.from_numpy(index.labels(rows))
    train, val = labelled_rows(config(), index, rows, labels, 3, 0, carve=True)
    assert val is not None
    groups = np.array([index.cell(int(row), "group") for row in rows])
    assert not set(groups[train.numpy()]) & set(groups[val.numpy()])


def test_whose_statistics_standardise_the_images() -> None:
    stated = SimpleNamespace(inputs={"optical": "its own"}, modalities=("optical",))
    bare = SimpleNamespace(modalities=("optical", "sar"))
    assert own_inputs(config(), stated) is None
    assert own_inputs(config(encoder="timm:resnet18"), stated) == stated.inputs
    assert own_inputs(config(encoder="timm:resnet18", normalize="dataset"), stated) is None
    assert own_inputs(config(normalize="encoder"), stated) == stated.inputs
    assert own_inputs(config(encoder="timm:resnet18"), bare) is None
    with pytest.raises(ProtocolError, match="has no sar statistics of its own; use --normalize dataset"):
        own_inputs(config(normalize="encoder", modality="sar"), stated)


def test_an_encoder_must_exist_and_take_the_modality() -> None:
    assert load_named(config(size=32), drop_path=0.1).modalities == ("optical", "sar")
    with pytest.raises(ProtocolError, match="--encoder random:hivit_tyny: .*did you mean 'hivit_tiny'"):
        load_named(config(encoder="random:hivit_tyny"))
    with pytest.raises(ProtocolError, match="--encoder no/file.safetensors: "):
        load_named(config(encoder="no/file.safetensors"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ProtocolError, match="cpu"):
        device_of(config(device="cuda"))
    assert device_of(config(device="cpu")) == torch.device("cpu")
