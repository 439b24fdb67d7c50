import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from data_makers import ROOT, load_script, make_labelled

from codemae import checkpoint
from codemae.config import build_config, read_yaml
from codemae.evaluation.card import Card
from codemae.models.factory import create_encoder

FOLDER = ROOT / "classification"
CONFIGS = sorted((FOLDER / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("classification/main.py")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_labelled(tmp_path / "toy")


def words(index: Path, output: Path, *more: str, encoder: str = "random:hivit_tiny") -> list[str]:
    named: dict[str, Any] = {"encoder": encoder, "data.index": index, "output_dir": output, "size": 32}
    named |= {"device": "cpu", "seeds": 2, "optim.epochs": 4, "optim.warmup_epochs": 1, "optim.lr": 1e-3}
    named |= {"optim.batch_size": 6, "evaluate_every": 1, "val_fraction": 0.3}
    return [f"--{key}={value}" for key, value in named.items()] + list(more)


def test_the_command_ends_with_the_figure_and_writes_the_card(index: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "main.py"), *words(index, tmp_path / "out", "--optim.epochs=12")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = Card.load(tmp_path / "out")
    assert done.stdout.splitlines()[-1] == card.sentence()
    assert card.values == [100.0, 100.0]  # brightness, colour and stripes: any training tells these apart
    assert (card.task, card.protocol, card.selected_by) == ("classification", "clean", "val")
    assert card.metrics["weighted_f1"] == [100.0, 100.0] and "top3" not in card.metrics
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["epoch"]) for line in lines] == [
        (seed, epoch) for seed in (0, 1) for epoch in range(1, 13)
    ]
    assert lines[11]["loss"] < lines[0]["loss"]
    assert (tmp_path / "out" / "config.yaml").exists()


STRONG = (
    "--augmentation.scale=0.3,1.0",
    "--augmentation.horizontal_flip=0.5",
    "--augmentation.rand_augment=rand-m9-mstd0.5-inc1",
    "--augmentation.erasing=0.5",
    "--augmentation.mixup=0.8",
    "--augmentation.cutmix=1.0",
    "--augmentation.smoothing=0.1",
    "--drop_path=0.2",
)


def test_the_same_command_twice_writes_the_same_card(script: ModuleType, index: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(len(name) * 7 + ord(name))
        script.main(words(index, tmp_path / name, *STRONG, "--seeds=1", "--modality=both"))
    a, b = ((tmp_path / name / "results.json").read_bytes() for name in "ab")
    assert a == b
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in "ab"
    ]
    assert losses[0] == losses[1]


def test_workers_do_not_change_the_card(script: ModuleType, index: Path, tmp_path: Path) -> None:
    one = script.main(words(index, tmp_path / "a", *STRONG, "--seeds=1", "--optim.epochs=2"))
    two = script.main(
        words(index, tmp_path / "b", *STRONG, "--seeds=1", "--optim.epochs=2", "--data.num_workers=1")
    )
    assert one == two


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_training_needs_no_test_image_and_no_test_row(
    script: ModuleType, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    images = index.parent / "images"
    hidden = images.parent / "hidden"
    (images / "test").rename(hidden)
    opened: list[str] = []
    open_index, train = script.open_index, script.Classification._train

    def spy(folders: Any, split: str) -> Any:
        opened.append(split)
        return open_index(folders, split)

    trained: list[int] = []

    def trained_spy(self: Any, seed: int, *parts: Any) -> Any:
        outcome = train(self, seed, *parts)
        assert "test" not in opened
        trained.append(seed)
        if seed == 1:
            hidden.rename(images / "test")
        return outcome

    monkeypatch.setattr(script, "open_index", spy)
    monkeypatch.setattr(script.Classification, "_train", trained_spy)
    card = script.main(words(index, tmp_path / "out", f"--protocol={protocol}"))
    assert trained == [0, 1] and opened == ["train", "test"]
    assert card.selected_by == ("val" if protocol == "clean" else "last")


def test_official_reports_the_best_epoch_on_the_test_split(
    script: ModuleType, index: Path, tmp_path: Path
) -> None:
    card = script.main(words(index, tmp_path / "out", "--protocol=official"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    by_seed = [[line["test"] for line in lines if line["seed"] == seed] for seed in (0, 1)]
    assert card.values == [max(figures) for figures in by_seed]
    assert card.also["paper"]["values"] == [figures[-1] for figures in by_seed]
    assert card.selected_by == "test"


def test_clean_reports_the_epoch_that_validates_best(
    script: ModuleType, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(words(index, tmp_path / "out", "--shots=2", "--seeds=1"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    figures = [line["val"] for line in lines]
    said = capsys.readouterr().out
    assert f"seed 0: 6 images, epoch {figures.index(max(figures)) + 1} reported" in said
    assert "on 6 held-out images" in said


def test_lists_of_labels_are_scored_by_micro_average_precision(script: ModuleType, tmp_path: Path) -> None:
    index = make_labelled(tmp_path / "toy", labels="many")
    plain = script.main(words(index, tmp_path / "a", "--seeds=1", "--head=batch_norm", "--modality=both"))
    assert plain.metric == "micro_average_precision" and plain.values[0] > 40
    assert list(plain.metrics) == ["micro_f1"]
    mixed = script.main(words(index, tmp_path / "b", "--seeds=1", "--augmentation.mixup=0.8"))
    assert mixed.metric == "micro_average_precision"


def fails(script: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said.splitlines()) == 1
    return said


def test_an_encoder_of_the_wrong_modality_is_refused(
    script: ModuleType, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs = {"channels": {"sar": 1}, "img_size": 32}
    metadata = checkpoint.EncoderMetadata(
        arch="hivit_tiny", arch_kwargs=kwargs, inputs={}, method="none", steps=0
    )
    checkpoint.save_encoder(
        tmp_path / "sar.safetensors", create_encoder("hivit_tiny", **kwargs).state_dict(), metadata
    )
    arguments = words(index, tmp_path / "out", encoder=str(tmp_path / "sar.safetensors"))
    assert "takes only sar images" in fails(script, arguments, capsys)


@pytest.mark.parametrize(("wrong", "split"), [(2, "train"), (-1, "test")])
def test_a_label_outside_the_class_list_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: int, split: str
) -> None:
    index = make_labelled(tmp_path / "toy", wrong=wrong)
    said = fails(script, words(index, tmp_path / "out", "--optim.epochs=1", "--seeds=1"), capsys)
    assert f"of split {split!r} has label 3, the classes are 0 to 2" in said


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--shots=7",), "class 0 has only 6 training images; lower --shots"),
        (("--shots=6",), "--select last"),
        (("--encoder=random:hivit_tyny",), "hivit_tiny"),
        (("--layer_decay.decay=1.5",), "at most 1"),
        (("--data.test_split=train",), "are both 'train'"),
        (("--data.test_split=holdout", "--optim.epochs=1", "--seeds=1"), "no split 'holdout'"),
        (("--normalize=encoder",), "has no optical statistics of its own"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(
    script: ModuleType,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    reason: str,
) -> None:
    assert reason in fails(script, words(index, tmp_path / "out", *more), capsys)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fills_the_schema_and_says_what_it_costs(script: ModuleType, path: Path) -> None:
    needed = {"encoder": "E", "data": {"index": ["I"]}, "output_dir": "O"}
    config = build_config(script.ClassifyConfig, [("needed", needed), (str(path), read_yaml(path))])
    assert config.optim.warmup_epochs < config.optim.epochs
    header = path.read_text().split("modality:")[0]
    for word in ("# Data: ", "# Command: ", "# Hardware: ", "# Hours: ", "# Paper: ", "# Ours: "):
        assert word in header
    shell = FOLDER / "scripts" / f"{path.stem}.sh"
    assert f"scripts/{shell.name}" in header
    assert subprocess.run(["bash", "-n", str(shell)]).returncode == 0
    assert f"--config classification/configs/{path.name}" in shell.read_text()
    usage = subprocess.run(["bash", str(shell)], capture_output=True, text=True)
    assert usage.returncode == 2 and "Usage: " in usage.stderr


def test_every_script_has_a_config() -> None:
    assert {path.stem for path in (FOLDER / "scripts").glob("*.sh")} == {path.stem for path in CONFIGS}
