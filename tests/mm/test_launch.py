import argparse
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("mmengine")

from mmengine.config import Config  # noqa: E402

from codemae.data.statistics import IndexStatistics, Scaling, SourceStatistics, StatisticsError  # noqa: E402
from codemae.mm.launch import (  # noqa: E402
    Command,
    LaunchError,
    described,
    parse,
    parser_of,
    read_config,
    resolve_statistics,
)

pytestmark = pytest.mark.mm
CONFIG = """
model = dict(
    type="X",
    backbone=dict(type="mmengine.CoDeMAEBackbone", encoder="random:hivit_tiny", modality="sar"),
    data_preprocessor=dict(type="P"),
)
optim_wrapper = dict(type="OptimWrapper")
train_dataloader = dict(dataset=dict(pipeline=[dict(type="LoadReadableImage"), dict(type="Other")]))
"""


def command(path: Path, **changes: Any) -> Command:
    values: dict[str, Any] = {"action": "train", "config": path, "encoder": None, "work_dir": Path("runs/x")}
    values |= {"options": {}, "more": argparse.Namespace(launcher="none")}
    return Command(**(values | changes))


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "some.py"
    path.write_text(CONFIG)
    return path


def test_the_command_line_reaches_the_config(config_file: Path) -> None:
    parser, _ = parser_of("detection", "text")
    words = ["train", str(config_file), "--encoder", "a.safetensors", "--cfg-options", "model.depth=3"]
    config = read_config(parse("detection", parser, words))
    assert config.model.backbone.encoder == "a.safetensors" and config.model.depth == 3
    assert config.work_dir == "runs/detection/some" and config.launcher == "none"
    (loader,) = described(config._cfg_dict, "LoadReadableImage")
    assert loader.record == "runs/detection/some/bad_samples.txt"
    assert parse("detection", parser, [*words, "--resume"]).resume == "auto"
    assert parse("detection", parser, [*words, "--resume", "x.pth"]).resume == "x.pth"


def test_an_encoder_needs_a_backbone_to_go_to(tmp_path: Path) -> None:
    path = tmp_path / "none.py"
    path.write_text('model = dict(type="X")\noptim_wrapper = dict(type="OptimWrapper")\n')
    with pytest.raises(LaunchError, match="has no CoDeMAEBackbone"):
        read_config(command(path, encoder="a.safetensors"))
    with pytest.raises(LaunchError, match=r"no config at .*there are none.py"):
        read_config(command(tmp_path / "nine.py"))
    path.write_text("model = dict(")
    with pytest.raises(LaunchError, match="cannot be read"):
        read_config(command(path))


def test_statistics_of_an_index_reach_the_preprocessor_in_levels(tmp_path: Path, config_file: Path) -> None:
    one = SourceStatistics(channels=1, mean=(0.2,), std=(0.1,))
    folder = tmp_path / "index"
    folder.mkdir()

    def write(**sides: SourceStatistics) -> None:
        (folder / "stats.yaml").write_text(yaml.safe_dump(IndexStatistics(sources={"S": sides}).to_dict()))

    def resolved() -> Any:
        config = Config.fromfile(config_file)
        config.statistics = str(folder / "stats.yaml")
        resolve_statistics(config)
        return config

    with pytest.raises(StatisticsError, match="no stats.yaml"):
        resolved()
    write(sar=one)
    config = resolved()
    assert config.model.data_preprocessor.mean == pytest.approx([51.0] * 3)
    assert config.model.data_preprocessor.std == pytest.approx([25.5] * 3)
    assert "statistics" not in config
    write(optical=one)
    with pytest.raises(StatisticsError, match="0 sources of sar bytes"):
        resolved()
    write(sar=SourceStatistics(channels=1, mean=(0.2,), std=(0.1,), scaling=Scaling("db", -25, 5)))
    with pytest.raises(StatisticsError, match="model.data_preprocessor.mean"):
        resolved()
