import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from data_makers import ROOT, load_script, make_labelled
from PIL import Image
from safetensors.torch import save_file

from codemae import checkpoint
from codemae.config import ConfigError, build_config, read_yaml
from codemae.data import labelled
from codemae.downloads import file_hash
from codemae.evaluation.card import Card, NotComparableError, compare
from codemae.models.factory import create_encoder, load_encoder

FOLDER = ROOT / "linearprobing"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("linearprobing/main.py")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return make_labelled(tmp_path / "toy")


def words(index: Path, output: Path, *more: str, encoder: str = "random:hivit_tiny") -> list[str]:
    named = {"encoder": encoder, "data.index": index, "output_dir": output, "size": 32, "device": "cpu"}
    named |= {"seeds": 2, "probe.epochs": 10}
    return [f"--{key}={value}" for key, value in named.items()] + list(more)


def test_the_command_ends_with_the_figure_and_writes_the_card(index: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / "main.py"), *words(index, tmp_path / "out", "--shots", "3")]
    done = subprocess.run([*command, "--modality", "optical"], capture_output=True, text=True, check=True)
    card = Card.load(tmp_path / "out")
    assert done.stdout.splitlines()[-1] == card.sentence()
    assert card.values == [100.0, 100.0]  # brightness, colour and stripes: any features tell these apart
    assert (card.protocol, card.selected_by, card.shots, card.few_shot) == ("clean", "last", 3, "per_class")
    assert set(card.also) == {"test"}
    assert card.metrics == {"knn_overall_accuracy": [100.0, 100.0]}
    assert card.dataset == "toy" and card.size == 32
    assert card.versions["torch"] == metadata.version("torch")
    assert (tmp_path / "out" / "config.yaml").exists()


def test_two_runs_write_the_same_card(script: ModuleType, index: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        script.main(words(index, tmp_path / name, "--shots", "2", "--modality", "sar"))
    a, b = ((tmp_path / name / "results.json").read_bytes() for name in "ab")
    assert a == b


def test_features_are_computed_once_and_again_when_damaged(
    script: ModuleType, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    monkeypatch.setattr(labelled, "read_window", spy(labelled.read_window, reads))
    first = script.main(words(index, tmp_path / "a", "--cache_dir", str(tmp_path / "cache")))
    assert len(reads) == 30
    second = script.main(words(index, tmp_path / "b", "--cache_dir", str(tmp_path / "cache"), "--seeds", "1"))
    assert len(reads) == 30
    assert second.values == pytest.approx(first.values[:1])

    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    third = script.main(words(index, tmp_path / "c", "--cache_dir", str(tmp_path / "cache")))
    assert len(reads) == 60
    assert third == first

    script.main(words(index, tmp_path / "d", "--cache_dir", str(tmp_path / "cache"), "--init_seed", "1"))
    assert len(reads) == 90


def spy(function: Callable[..., Any], reads: list[str]) -> Callable[..., Any]:
    def wrapped(location: Any, *arguments: Any) -> Any:
        reads.append(str(location.path))
        return function(location, *arguments)

    return wrapped


def test_nothing_of_the_test_split_is_read_before_training_ends(
    script: ModuleType, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    open_index, train_probes = script.open_index, script.train_probes

    def opened(folders: Any, split: str) -> Any:
        events.append(f"open {split}")
        return open_index(folders, split)

    def trained(*arguments: Any) -> Any:
        outcome = train_probes(*arguments)
        events.append("trained")
        return outcome

    reads: list[str] = []
    monkeypatch.setattr(labelled, "read_window", spy(labelled.read_window, reads))
    monkeypatch.setattr(script, "open_index", opened)
    monkeypatch.setattr(script, "train_probes", trained)
    for picture in (index.parent / "images" / "test").rglob("*.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(SystemExit) as stop:
        script.main(words(index, tmp_path / "out"))
    assert stop.value.code == 2
    assert events == ["open train", "trained", "open test"]
    assert len(reads) == 19 and all("/train/" in path for path in reads[:18]) and "/test/" in reads[18]
    assert not (tmp_path / "out" / "results.json").exists()


def test_both_modalities_stand_side_by_side(script: ModuleType, index: Path, tmp_path: Path) -> None:
    script.main(words(index, tmp_path / "out", "--modality", "both"))
    encoder = load_encoder("random:hivit_tiny", img_size=32)
    assert len(list((tmp_path / "out" / "features").iterdir())) == 4
    widths = {np.load(f)["values"].shape for f in (tmp_path / "out" / "features").iterdir()}
    assert widths == {(18, encoder.embed_dim), (12, encoder.embed_dim)}
    store = script._feature_store(
        script.load_config(script.ProbeConfig, words(index, tmp_path / "out", "--modality", "both")),
        script.open_index(index, "train"),
        "cpu",
    )
    split = script._split(store, script.open_index(index, "train"), ("optical", "sar"))
    assert split.features.shape == (18, 2 * encoder.embed_dim)
    halves = split.features.split(int(encoder.embed_dim), dim=1)
    for half in halves:
        torch.testing.assert_close(half.mean(1), torch.zeros(18), atol=1e-5, rtol=0)
    assert not torch.equal(*halves)


def test_lists_of_labels_are_scored_by_micro_average_precision(script: ModuleType, tmp_path: Path) -> None:
    index = make_labelled(tmp_path / "toy", labels="many")
    card = script.main(words(index, tmp_path / "out", "--shots", "2"))
    assert card.metric == "micro_average_precision"
    assert 30 < card.mean <= 100


def test_official_takes_the_best_epoch_and_is_not_ranked_against_clean(
    script: ModuleType, index: Path, tmp_path: Path
) -> None:
    shots = ("--shots", "1", "--few_shot", "official")
    clean = script.main(words(index, tmp_path / "clean", *shots, "--select", "last"))
    official = script.main(words(index, tmp_path / "official", *shots, "--protocol", "official"))
    assert (official.protocol, official.selected_by) == ("official", "test")
    assert official.values == clean.also["test"]["values"]
    assert official.also["last"]["values"] == clean.values
    paper = script.main(words(index, tmp_path / "paper", *shots, "--protocol", "paper"))
    assert (paper.protocol, paper.selected_by, paper.values) == ("paper", "last", clean.values)
    assert all(best >= last for best, last in zip(official.values, clean.values, strict=True))
    with pytest.raises(NotComparableError, match="protocol: clean against official"):
        compare(tmp_path / "clean", tmp_path / "official")


def test_an_encoder_file_is_ranked_against_its_own_random_initialisation(
    script: ModuleType, index: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    encoder = create_encoder("hivit_tiny", img_size=32)
    spec = checkpoint.InputSpec(channels=3, mean=[0.5] * 3, std=[0.25] * 3, scaling="uint8", size=32)
    described = checkpoint.EncoderMetadata(
        arch="hivit_tiny",
        arch_kwargs=encoder.arch_kwargs,
        inputs={"optical": spec},
        method="codemae",
        steps=1,
    )
    file = tmp_path / "encoder.safetensors"
    checkpoint.save_encoder(file, encoder, described)
    own = script.main(words(index, tmp_path / "own", encoder=str(file)))
    fresh = script.main(words(index, tmp_path / "fresh", encoder=f"random:{file}"))
    named = script.main(words(index, tmp_path / "named", encoder="random:hivit_tiny"))
    assert own.checkpoint_hash == file_hash(file)
    assert fresh.checkpoint_hash == named.checkpoint_hash
    assert fresh.values == named.values
    assert "the figures are equal" in compare(tmp_path / "fresh", tmp_path / "named")
    assert own.normalisation == "dataset"

    script.main(words(index, tmp_path / "its_own", "--normalize", "encoder", encoder=str(file)))
    assert Card.load(tmp_path / "its_own").normalisation == "encoder"
    (train,) = (f for f in features(tmp_path / "its_own") if len(f["labels"]) == 18)
    first = np.array(Image.open(index.parent / "images" / "train" / "optical" / "0_0.png"))
    image = (torch.from_numpy(first).permute(2, 0, 1) / 255 - 0.5) / 0.25
    expected = encoder.eval().pooled(image.unsqueeze(0).float(), "optical")
    torch.testing.assert_close(torch.from_numpy(train["values"][:1]), expected.detach(), rtol=1e-3, atol=1e-4)


def features(output: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(file)) for file in sorted((output / "features").iterdir())]


@pytest.mark.parametrize(
    ("labels", "sides", "more", "message"),
    [
        ("one", ("optical",), ("--modality", "sar"), "no row of split"),
        ("one", ("optical",), ("--modality", "both"), "has optical and sar"),
        ("none", ("optical",), (), "has no label"),
        ("one", ("optical",), ("--shots", "7"), "class 0 has only 6 training images; lower --shots"),
        ("one", ("optical",), ("--data.test_split", "val"), "has no split 'val'"),
        ("one", ("optical",), ("--data.test_split", "train"), "are both 'train'"),
        ("one", ("optical",), ("--encoder", "random:hivit_tinny"), "did you mean 'hivit_tiny'"),
        ("one", ("optical",), ("--normalize", "encoder"), "use --normalize dataset"),
        ("one", ("optical",), ("--shots", "6", "--select", "val"), "use --select last"),
        ("wrong", ("optical",), (), "of split 'train' has label 3, the classes are 0 to 2"),
    ],
)
def test_a_mistake_is_one_sentence(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    labels: str,
    sides: tuple[str, ...],
    more: tuple[str, ...],
    message: str,
) -> None:
    wrong = 0 if labels == "wrong" else None
    index = make_labelled(
        tmp_path / "toy", labels="none" if labels == "none" else "one", sides=sides, wrong=wrong
    )
    with pytest.raises(SystemExit) as stop:
        script.main(words(index, tmp_path / "out", *more))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shot", "3"), "did you mean 'shots'"),
        (("--modality", "thermal"), "modality"),
        (("--seeds", "0"), "at least 1"),
        (("--hold_out", "1"), "a share below 1"),
        (("--probe.epochs", "0"), "at least 1"),
    ],
)
def test_a_mistyped_word_ends_with_code_2(
    script: ModuleType,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main([*words(index, tmp_path / "out"), *more])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted((FOLDER / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_config_fills_the_schema(script: ModuleType, path: Path) -> None:
    needed = {"encoder": "random:hivit_tiny", "data": {"index": "x"}, "output_dir": "out"}
    config = build_config(script.ProbeConfig, [(str(path), read_yaml(path)), ("needed", needed)])
    assert config.probe == script.ProbeSettings()  # all three follow the published optimisation
    with pytest.raises(ConfigError):
        build_config(script.ProbeConfig, [(str(path), read_yaml(path) | {"shotz": 1}), ("needed", needed)])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.sh")), ids=lambda path: path.stem)
def test_each_script_is_valid_shell_and_says_its_usage(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    bare = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    assert bare.returncode == 2 and bare.stderr.startswith("usage: bash linearprobing/") and not bare.stdout


@pytest.mark.parametrize(
    "name", ["pie_rgb_sar", "ddhr_sk", "whu_opt_sar", "dfc20", "bigearthnet_mm", "eurosat_mm"]
)
def test_each_published_benchmark_has_a_script_with_the_header_of_its_config(name: str) -> None:
    config, shell = (
        (FOLDER / place).read_text().splitlines() for place in (f"configs/{name}.yaml", f"scripts/{name}.sh")
    )
    header = [line for line in config if line.startswith("# ")]
    assert shell[1:-1] == header
    for word in ("# Data: ", "# Command: ", "# Hardware: ", "# Hours: ", "# Paper: ", "# Ours: "):
        assert sum(line.startswith(word) for line in header) == 1


def test_side_by_side_probes_every_encoder_twice_and_tables_the_cards(tmp_path: Path) -> None:
    python = tmp_path / "python"  # stands in for the interpreter and notes what it would run
    python.write_text(f'#!/usr/bin/env bash\nprintf "%s|" "$@" >> {tmp_path}/ran\necho >> {tmp_path}/ran\n')
    python.chmod(0o755)
    script, output = str(FOLDER / "side_by_side.sh"), str(tmp_path / "out")
    (tmp_path / "out").mkdir()
    encoders = ["random:a/b.safetensors", "timm:c d"]
    words = ["index", "sar", output, *encoders, "--size", "96"]
    environment = {**os.environ, "PYTHON": str(python)}
    subprocess.run(["bash", script, *words], check=True, env=environment, capture_output=True)
    ran = [line.split("|")[:-1] for line in (tmp_path / "ran").read_text().splitlines()]
    expected = [
        [
            *(str(FOLDER / "main.py"), "--config", str(FOLDER / "configs" / f"{config}.yaml")),
            *("--encoder", encoder, "--data.index", "index", "--modality", "sar"),
            *("--output_dir", f"{output}/{config}/{re.sub(r'[^a-zA-Z0-9._-]', '_', encoder)}"),
            *("--cache_dir", f"{output}/features", "--size", "96"),
        ]
        for config in ("few_shot_10", "all_images")
        for encoder in encoders
    ]
    assert ran[:-1] == expected
    assert ran[-1] == ["-m", "codemae.cli", "summary", output, "--side-by-side", "--markdown"]


def test_the_card_is_json_without_times(script: ModuleType, index: Path, tmp_path: Path) -> None:
    script.main(words(index, tmp_path / "out"))
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["mean"] == pytest.approx(np.mean(content["values"]))
    assert content["std"] == pytest.approx(np.std(content["values"], ddof=1))
    assert not {"date", "time", "seconds"} & set(content)


def test_a_share_of_the_labels_and_the_lists_of_neighbours(script: ModuleType, tmp_path: Path) -> None:
    index = make_labelled(tmp_path / "toy", labels="many")
    card = script.main(words(index, tmp_path / "out", "--fraction", "0.5", "--modality", "sar"))
    assert card.settings["fraction"] == 0.5 and card.settings["val_fraction"] == 0.1
    (knn,) = card.metrics.items()
    assert knn[0] == "knn_micro_average_precision" and all(20 < value <= 100 for value in knn[1])
    less = script.main(words(index, tmp_path / "less", "--neighbours", "0", "--bands", "repeat"))
    assert not less.metrics and less.bands is None


def test_the_validation_images_never_train(script: ModuleType, index: Path, tmp_path: Path) -> None:
    config = script.load_config(script.ProbeConfig, words(index, tmp_path / "out", "--val_fraction", "0.3"))
    train = script.open_index(index, "train")
    split = script._split(script._feature_store(config, train, "cpu"), train, config.modalities)
    subsets, validations = script._subsets(config, split, 3, [0, 1])
    for rows, held in zip(subsets, validations, strict=True):
        assert sorted([*rows.tolist(), *held.tolist()]) == list(range(18))
        assert torch.bincount(split.labels[held]).tolist() == [2, 2, 2]
    assert not torch.equal(*validations)


def test_held_out_images_take_the_place_of_the_test_split(script: ModuleType, tmp_path: Path) -> None:
    index = make_labelled(tmp_path / "toy", group_size=2, train=8)
    more = ("--hold_out", "0.5", "--shots", "2")
    config = script.load_config(script.ProbeConfig, words(index, tmp_path / "out", *more))
    train = script.open_index(index, "train")
    split = script._split(script._feature_store(config, train, "cpu"), train, config.modalities)
    kept, apart = script._set_apart(split, 0.5)
    assert sorted([*kept.rows, *apart.rows]) == list(range(24))
    for side in (kept, apart):
        assert torch.bincount(side.labels).tolist() == [4, 4, 4]
        torch.testing.assert_close(side.features, split.features[side.rows])
    assert not {train.cell(int(row), "group") for row in kept.rows} & {
        train.cell(int(row), "group") for row in apart.rows
    }

    by_hand = make_labelled(tmp_path / "by_hand", group_size=2, train=8)
    table = pq.read_table(by_hand / "index.parquet")
    splits = ["test" if row in set(apart.rows) else "train" for row in range(24)]
    column = table.column_names.index("split")
    divided = table.slice(0, 24).set_column(
        column, table.field(column), pa.array(splits, table.field(column).type)
    )
    pq.write_table(divided, by_hand / "index.parquet")
    for stale in by_hand.glob("*.arrow"):
        stale.unlink()
    expected = script.main(words(by_hand, tmp_path / "expected", "--shots", "2"))

    for picture in (index.parent / "images" / "test").rglob("*.png"):
        picture.write_bytes(b"no picture")
    card = script.main(words(index, tmp_path / "out", *more))
    assert card.values == expected.values and card.metrics == expected.metrics
    assert card.settings["hold_out"] == 0.5
    with pytest.raises(NotComparableError, match="hold_out"):
        compare(tmp_path / "out", tmp_path / "expected")


def test_an_encoder_of_other_bands_is_fed_by_the_named_rule(
    script: ModuleType, index: Path, tmp_path: Path
) -> None:
    model = timm.create_model("resnet10t", in_chans=13, num_classes=0)
    save_file(model.state_dict(), tmp_path / "peer.safetensors")
    peer = f"timm:resnet10t:{tmp_path / 'peer.safetensors'}"
    card = script.main(words(index, tmp_path / "peer", encoder=peer))
    assert card.bands.startswith("optical rgb_mean for B1 B5 ") and card.normalisation == "dataset"
    assert script.main(words(index, tmp_path / "zero", "--bands", "zero", encoder=peer)).bands != card.bands
