from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from codemae.config import diff_configs, load_config, read_yaml, save_config, to_dict


@dataclass(kw_only=True)
class Teacher:
    name: str = "none"
    size: int = 224


@dataclass(kw_only=True)
class Painter:
    name: str = "painter"
    brush: float = 0.5
    kind: Literal["oil", "ink"] = "oil"
    teacher: Teacher | None = None
    channels: dict[str, int] = field(default_factory=lambda: {"optical": 3})

    def __post_init__(self) -> None:
        if self.brush > 1:
            raise ValueError("method.brush is at most 1")


@dataclass(kw_only=True)
class Potter:
    wheel: bool = False


@dataclass(kw_only=True)
class Optim:
    epochs: int = 3
    lr: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])


@dataclass(kw_only=True)
class Schema:
    output_dir: str
    method: Any
    optim: Optim = field(default_factory=Optim)
    index: list[str] = field(default_factory=list)
    scale: tuple[float, float] = (0.2, 1.0)


METHODS = {"painter": Painter, "potter": Potter}


def lookup(name: str) -> type:
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}; did you mean 'painter'?")
    return METHODS[name]


def load(*argv: str) -> Schema:
    return load_config(Schema, argv, variants={"method": lookup})


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        load(*argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


GOOD = ("--output_dir", "out", "--method", "painter")


def test_command_line_over_yaml_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "optim: {epochs: 10, lr: 1e-4}\nmethod: {name: painter, brush: 0.1}\n"
    )
    child = tmp_path / "sub" / "child.yaml"
    child.parent.mkdir()
    child.write_text("base: ../base.yaml\noptim: {epochs: 20}\noutput_dir: here\n")

    config = load("--config", str(child), "--method.brush=0.3", "--index", "a,b")

    assert (config.optim.epochs, config.optim.lr, config.method.brush) == (20, 1e-4, 0.3)
    assert config.index == ["a", "b"]
    assert config.output_dir == "here"
    assert isinstance(config.method, Painter)
    assert read_yaml(child) == {
        "optim": {"epochs": 20, "lr": 1e-4},
        "method": {"name": "painter", "brush": 0.1},
        "output_dir": "here",
    }


def test_the_name_decides_the_type_and_which_keys_there_are(capsys):
    assert load("--output_dir", "x", "--method", "potter", "--method.wheel").method.wheel is True
    assert "method.brush" in refused(capsys, "--output_dir", "x", "--method.name=potter", "--method.brush=1")


def test_a_variant_without_a_name_field_still_remembers_its_name():
    assert to_dict(load("--output_dir", "x", "--method=potter"))["method"] == {
        "wheel": False,
        "name": "potter",
    }


def test_values_take_the_types_of_the_schema():
    words = ("--optim.lr", "1e-3", "--scale", "0.5,1", "--optim.betas=[0.8, 0.9]", "--method.teacher.size=64")
    config = load(*GOOD, *words, "--method.channels.sar", "1")
    assert config.optim.lr == 1e-3 and config.optim.betas == [0.8, 0.9] and config.scale == (0.5, 1.0)
    assert config.method.teacher == Teacher(size=64)
    assert config.method.channels["sar"] == 1
    assert load(*GOOD, "--optim.lr", "null").optim.lr is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--optim.epoch", "5"), "unknown key 'optim.epoch'; did you mean 'optim.epochs'?"),
        (("--epochs", "5"), "unknown key 'epochs'; did you mean 'optim.epochs'?"),
        (("--method.brsh", "5"), "unknown key 'method.brsh'; did you mean 'method.brush'?"),
        (("--method.teacher.sise", "5"), "did you mean 'method.teacher.size'?"),
        (("--optim.epochs", "three"), "optim.epochs: Expected int. Got value: three"),
        (("--optim.epochs", "2.5"), "optim.epochs: Expected int"),
        (("--method.kind", "pastel"), "method.kind: Expected a Literal['oil', 'ink']. Got value: pastel"),
        (("--method.brush", "2"), "method.brush is at most 1"),
        (("--method", "paintr"), "unknown method 'paintr'; did you mean 'painter'?"),
        (("--optim", "5"), "optim in --optim takes keys (epochs, lr, betas), not '5'"),
        (("--config", "nowhere.yaml"), "no config file at nowhere.yaml"),
        (("epochs=5",), "unexpected word 'epochs=5'"),
    ],
)
def test_a_mistake_ends_with_code_2_naming_the_key_and_what_to_write(capsys, words, named):
    assert named in refused(capsys, *GOOD, *words)


def test_a_mistake_in_a_file_names_the_file(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("optim: {epoch: 5}\n")
    error = refused(capsys, *GOOD, "--config", str(path))
    assert f"unknown key 'optim.epoch' in {path}; did you mean 'optim.epochs'?" in error


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [1", "not valid YAML"), ("- a\n- b\n", "must hold"), ("base: run.yaml\n", "own base")],
)
def test_a_file_that_is_no_config_is_refused(capsys, tmp_path, text, reason):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert reason in refused(capsys, *GOOD, "--config", str(path))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("optim:\n  lr: 1.0\n  epochs: 2\n  lr: 2.0\n", "has the key 'lr' twice (line 2 and line 4)"),
        ("method: {brush: 1, brush: 1}\n", "has the key 'brush' twice (line 1)"),
        ("output_dir: a\n'output_dir': b\n", "has the key 'output_dir' twice (line 1 and line 2)"),
    ],
)
def test_a_key_that_stands_twice_is_refused(capsys, tmp_path, text, reason):
    path, child = tmp_path / "run.yaml", tmp_path / "child.yaml"
    path.write_text(text)
    child.write_text("base: run.yaml\n")
    for file in (path, child):
        assert f"{path} {reason}; keep one" in refused(capsys, *GOOD, "--config", str(file))


def test_a_key_may_stand_in_several_mappings_and_override_a_merged_one(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}


def test_required_keys_are_required(capsys):
    assert "output_dir" in refused(capsys, "--method", "painter")
    assert "method.name is missing" in refused(capsys, "--output_dir", "x")


def test_the_saved_config_loads_as_the_same_config(tmp_path):
    config = load(*GOOD, "--index", "a,b", "--optim.lr=1e-4", "--method.teacher.name=t")
    path = tmp_path / "config.yaml"
    save_config(config, path)
    assert to_dict(load("--config", str(path))) == to_dict(config)
    assert yaml.safe_load(path.read_text())["method"]["teacher"] == {"name": "t", "size": 224}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]


def test_differences_are_listed_by_dotted_key():
    a = to_dict(load(*GOOD))
    b = to_dict(load(*GOOD, "--optim.epochs=9", "--method.teacher.size=1"))
    assert sorted(diff_configs(a, b)) == [
        ("method.teacher.name", None, "none"),
        ("method.teacher.size", None, 1),
        ("optim.epochs", 3, 9),
    ]
    assert diff_configs(a, a) == []


def test_help_lists_keys_with_types_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        load("--method", "painter", "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--method.brush float (default: 0.5)" in shown
    assert "--output_dir str (required)" in shown


def test_every_shipped_pretraining_config_fills_its_schema():
    from codemae.engine.settings import PretrainConfig
    from codemae.methods.base import METHODS as KNOWN

    files = sorted((Path(__file__).parents[1] / "pretrain" / "configs").rglob("*.yaml"))
    assert files
    for path in files:
        argv = ["--config", str(path), "--output_dir", "x"]
        config = load_config(PretrainConfig, argv, variants={"method": KNOWN.config})
        assert config.method.name in KNOWN
