import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from data_makers import ROOT, load_script, make_labelled
from ddp_helpers import run_on_ranks

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
    script.main(words(index, tmp_path / "out", "--shots=2", "--seeds=1", "--select=val"))
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


def losses(folder: Path) -> list[tuple[int, int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["seed"], line["step"], line["loss"]) for line in lines]


def test_stopped_in_the_second_seed_the_same_command_ends_with_the_same_card(
    script: ModuleType, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*STRONG, "--head=batch_norm", "--select=val"]
    whole = script.main(words(index, tmp_path / "whole", *arguments))
    calls = 0
    loss = script.classification_loss

    def stop(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 11:  # two steps an epoch, four epochs: the third step of the second seed
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*given)

    monkeypatch.setattr(script, "classification_loss", stop)
    with pytest.raises(SystemExit) as stopped:
        script.main(words(index, tmp_path / "out", *arguments))
    assert stopped.value.code == 143
    assert not (tmp_path / "out" / "results.json").exists()
    resumed = script.main(words(index, tmp_path / "out", *arguments))
    assert calls == 16 and resumed == whole  # no step of it was done twice
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "results.json",
    ]


def test_an_unfinished_run_of_other_settings_is_not_gone_on_with(
    script: ModuleType,
    index: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return loss(*given)

    loss = script.classification_loss
    monkeypatch.setattr(script, "classification_loss", stop)
    with pytest.raises(SystemExit) as stopped:
        script.main(words(index, tmp_path / "out", "--seeds=1"))
    assert stopped.value.code == 130
    capsys.readouterr()
    monkeypatch.setattr(script, "classification_loss", loss)
    said = fails(script, words(index, tmp_path / "out", "--seeds=1", "--optim.lr=0.5"), capsys)
    assert "set back: optim.lr was 0.001, is 0.5" in said
    assert script.main(words(index, tmp_path / "out", "--seeds=1")).seeds == [0]


def classify(arguments: list[str]) -> Card:
    """On one of several processes, whose group is there already."""
    module = load_script("classification/main.py")
    config = module.load_config(module.ClassifyConfig, arguments)
    return module.Classification(config, torch.device("cpu")).run()


@pytest.mark.ddp
def test_two_processes_train_and_score_as_one_that_accumulates(
    script: ModuleType, index: Path, tmp_path: Path
) -> None:
    alone = words(
        index, tmp_path / "one", "--seeds=1", "--drop_path=0.2", "--augmentation.horizontal_flip=0.5"
    )
    one = script.main([*alone, "--optim.batch_size=3", "--optim.grad_accum_steps=2"])
    shared = [word for word in alone if not word.startswith("--output_dir")]
    two = run_on_ranks(classify, [*shared, f"--output_dir={tmp_path / 'two'}", "--data.batch_size=5"])
    assert two[0] == two[1] == Card.load(tmp_path / "two")
    assert two[0].values == one.values and two[0].metrics == one.metrics
    for (*place, loss), (*expected_place, expected) in zip(
        losses(tmp_path / "two"), losses(tmp_path / "one"), strict=True
    ):
        assert place == expected_place and loss == pytest.approx(expected, rel=1e-4)


def chosen_state(arguments: list[str]) -> dict[str, torch.Tensor]:
    """What the ranks evaluate, each by itself, at the end of the first seed."""
    module = load_script("classification/main.py")
    config = module.load_config(module.ClassifyConfig, arguments)
    run = module.Classification(config, torch.device("cpu"))
    run.run()
    return run.finished[0].state


@pytest.mark.ddp
def test_two_processes_report_one_model_with_plain_batch_norm(index: Path, tmp_path: Path) -> None:
    arguments = words(index, tmp_path / "out", "--seeds=1", "--head=batch_norm", "--optim.epochs=2")
    main, other = run_on_ranks(chosen_state, arguments)
    assert any("running_mean" in name for name in main)
    assert all(torch.equal(tensor, other[name]) for name, tensor in main.items())


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
        (("--shots=6", "--select=val"), "--select last"),
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
    header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    for word in ("# Data: ", "# Command: ", "# Hardware: ", "# Hours: ", "# Paper: ", "# Ours: "):
        assert sum(line.startswith(word) for line in header) == 1
    shell = FOLDER / "scripts" / f"{path.stem}.sh"
    assert f"scripts/{shell.name} " in "".join(header)
    # The script repeats the header, so that it can be read alone; both must say the same.
    said = [line for line in shell.read_text().splitlines() if line.startswith("# ")]
    assert said == header[: len(said)] and len(said) >= 7
    assert subprocess.run(["bash", "-n", str(shell)]).returncode == 0
    usage = subprocess.run(["bash", str(shell), "ENCODER"], capture_output=True, text=True)
    assert usage.returncode == 2 and f"scripts/{path.stem}.sh ENCODER INDEX_DIR" in usage.stderr
    assert not usage.stdout


def test_a_script_passes_on_what_it_is_given(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    script = FOLDER / "scripts" / "aid.sh"
    for words, output, more in (
        (["out", "--seeds", "3"], "out", ["--seeds", "3"]),
        (["--seeds", "3"], "runs/aid", ["--seeds", "3"]),
        ([], "runs/aid", []),
    ):
        command = ["bash", str(script), "an encoder", "index", *words]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHON": str(python)}
        ).stdout.splitlines()
        assert said[1:3] == ["--config", f"{FOLDER}/scripts/../configs/aid.yaml"]
        assert said[3:] == [
            *("--encoder", "an encoder", "--data.index", "index", "--output_dir", output),
            *more,
        ]


@pytest.mark.parametrize("words", [[], ["no_such", "I", "O", "E"], ["mstar", "I", "O"]])
def test_side_by_side_says_its_usage(words: list[str]) -> None:
    done = subprocess.run(["bash", str(FOLDER / "side_by_side.sh"), *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: bash classification/side_by_side.sh ")


def test_every_script_has_a_config() -> None:
    assert {path.stem for path in (FOLDER / "scripts").glob("*.sh")} == {path.stem for path in CONFIGS}
