import json
import os
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from data_makers import ROOT, load_script

from codemae.checkpoint import read_weights
from codemae.config import build_config, read_yaml
from codemae.evaluation.card import Card, NotComparableError, compare

conftest = load_script("tests/bright/conftest.py")
words = conftest.words
CONFIGS = sorted((ROOT / "bright" / "configs").glob("*.yaml"))


def test_training_reports_every_split_by_name_and_says_what_was_removed(trained: Path) -> None:
    cards = {name: Card.load(trained / name) for name in ("val", "test")}
    assert [card.dataset for card in cards.values()] == ["BRIGHT val", "BRIGHT test"]
    assert Card.load(trained).dataset == "BRIGHT val"
    for name, card in cards.items():
        assert (card.task, card.protocol, card.selected_by, card.metric) == (
            "damage",
            "clean",
            "val",
            "mean_iou",
        )
        assert card.settings["select_split"] == "holdout"
        assert card.also["removed"] == {"bata-explosion_00000049": "train, not holdout"}
        assert card.also["tiles"] == {"val": 2, "test": 3}[name]
        assert {"overall_accuracy", "localisation_f1", "damage_f1", "iou_destroyed"} <= set(card.metrics)
    assert set(cards["val"].also["events"]) == {"turkey-earthquake", "bata-explosion"}
    table = (trained / "val" / "events.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "bata-explosion",
        "turkey-earthquake",
        "all",
    ]
    with pytest.raises(NotComparableError, match="dataset"):
        compare(trained / "val", trained / "test")


def test_the_log_has_every_term_and_the_chosen_step_is_the_best_on_holdout(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    parts = ["localisation_ce", "damage_ce", "post_localisation"]
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][part] for part in parts), rel=1e-5)
    judged = {line["step"]: line["mean_iou"] for line in lines if "mean_iou" in line}
    assert list(judged) == [2, 4] and lines[1]["split"] == "holdout"
    chosen = max(judged, key=lambda step: judged[step])
    assert Card.load(trained).also["step"] == chosen
    assert json.loads((trained / "damage.json").read_text())["step"] == chosen
    assert lines[3]["lr"] < lines[1]["lr"] <= 1e-3  # poly


def test_evaluate_gives_the_figures_of_training_again(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = words(index, tmp_path / "again", f"--trained={trained}")
    assert script.main(["evaluate", *again]) == 0
    for name in ("val", "test"):
        assert Card.load(tmp_path / "again" / name) == Card.load(trained / name)
    assert capsys.readouterr().out.splitlines()[-1] == Card.load(trained / "test").sentence()


def test_one_date_alone_is_evaluated_on_localisation(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path
) -> None:
    for dates, modality in (("pre", "optical"), ("post", "sar")):
        more = (f"--trained={trained}", f"--dates={dates}", "--split=val")
        assert script.main(["evaluate", *words(index, tmp_path, *more)]) == 0
        card = Card.load(tmp_path / f"val_{dates}")
        assert (card.metric, card.modality) == ("localisation_f1", modality)
        assert "mean_iou" not in card.metrics
    alone, both = Card.load(tmp_path / "val_pre"), Card.load(trained / "val")
    assert alone.values == both.metrics["localisation_f1"]  # that head sees the first date only


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import damage_training

    whole, calls = damage_training.evaluate_tiles, []

    def stopping(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*args, **kwargs)

    monkeypatch.setattr(damage_training, "evaluate_tiles", stopping)
    command = ["train", *words(index, tmp_path / "run")]
    assert script.main(command) == 143
    assert not (tmp_path / "run" / "damage.safetensors").exists()
    assert script.main(command) == 0
    straight, resumed = (
        read_weights(folder / "damage.safetensors") for folder in (trained, tmp_path / "run")
    )
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_run_that_was_cut_off_after_its_last_save_logs_no_step_twice(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import damage_training

    whole, calls = damage_training.evaluate_tiles, []

    class PowerLossError(Exception):
        pass

    def dying(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise PowerLossError
        return whole(*args, **kwargs)

    command = ["train", *words(index, tmp_path, "--optim.save_every=2")]
    with monkeypatch.context() as patch, pytest.raises(PowerLossError):
        patch.setattr(damage_training, "evaluate_tiles", dying)
        script.main(command)
    log = tmp_path / "metrics.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert script.main(command) == 0
    straight, resumed = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (trained / "metrics.jsonl", log)
    )
    for line in (*straight, *resumed):
        del line["seconds"]
    assert resumed == straight


@pytest.mark.parametrize("head", ["upernet", "difference"])
def test_the_other_heads_train_on_the_same_data(
    script: ModuleType, index: Path, tmp_path: Path, head: str
) -> None:
    more = (f"--model.head={head}", "--loss.post_localisation=0", "--optim.max_steps=2", "--protocol=paper")
    assert script.main(["train", *words(index, tmp_path, *more)]) == 0
    card = Card.load(tmp_path)
    assert card.selected_by == "last" and card.settings["model"]["head"] == head and card.also["step"] == 2


def test_official_selects_on_the_split_it_reports(script: ModuleType, index: Path, tmp_path: Path) -> None:
    more = ("--protocol=official", "--loss.damage_lovasz=1", "--loss.localisation_lovasz=0.5")
    assert script.main(["train", *words(index, tmp_path, *more)]) == 0
    card = Card.load(tmp_path)
    assert (card.selected_by, card.settings["select_split"]) == ("test", "val")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert card.values == [max(line["mean_iou"] for line in lines if "mean_iou" in line)]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--encoder=random:hivit_tinny",), "hivit_tiny"),
        (("--data.train_split=nowhere",), "no split 'nowhere'"),
        (("--data.mask_values=0,1,2,9",), "mask_values"),
        (("--data.held_out_event=atlantis-flood",), "atlantis-flood"),
        (("--encoder=",), "--encoder names no encoder"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_sentence(
    script: ModuleType,
    index: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    sentence: str,
) -> None:
    assert script.main(["train", *words(index, tmp_path, *more)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and sentence in err and "Traceback" not in err


def test_a_model_is_not_evaluated_as_another(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = words(index, tmp_path, f"--trained={trained}", "--data.classes=a,b,c,d")
    assert script.main(["evaluate", *other]) == 2 and "intact" in capsys.readouterr().err
    assert script.main(["evaluate", *words(index, tmp_path)]) == 2
    assert "no trained model" in capsys.readouterr().err
    assert script.main(["dance"]) == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_fits_the_schema_and_has_a_script(script: ModuleType, path: Path) -> None:
    needed = {"output_dir": "out", "encoder": "random:hivit_tiny"}
    config = build_config(script.BrightConfig, [(path.name, read_yaml(path)), ("here", needed)])
    assert config.optim.schedule == "poly"
    text = (ROOT / "bright" / "scripts" / f"{path.stem}.sh").read_text()
    assert f"--config bright/configs/{path.name}" in text


TERMS = ("localisation_ce", "damage_ce", "localisation_lovasz", "damage_lovasz", "post_localisation")


def test_presets_have_the_published_numbers(script: ModuleType) -> None:
    def preset(name: str) -> object:
        tree = read_yaml(ROOT / "bright" / "configs" / f"{name}.yaml")
        return build_config(script.BrightConfig, [(name, tree), ("here", {"output_dir": "out"})])

    paper, official = preset("paper"), preset("official")
    assert vars(paper.loss) == dict(zip(TERMS, (1, 1, 0, 0, 0), strict=True))
    assert vars(official.loss) == dict(zip(TERMS, (1, 2, 0.5, 1, 0), strict=True))
    assert (paper.optim.max_steps, official.optim.max_steps) == (30_000, 15_000)
    for config in (paper, official):
        optim = config.optim
        assert (optim.batch_size, optim.lr, optim.weight_decay, optim.warmup_steps) == (8, 1e-4, 0.05, 100)
        assert (config.model.layer_decay, config.model.drop_path, config.seed) == (0.85, 0.15, 729729)
        assert (config.tiling.window, config.tiling.overlap) == (512, 256)
