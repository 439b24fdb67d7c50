import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from command_lines import TOY_RUN
from ddp_helpers import Launched, launch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs, 8 optical and 12 SAR images of noise."""
    return toy.make_index(tmp_path_factory.mktemp("index"))


@pytest.fixture
def run_toy(toy_index: Path, tmp_path: Path) -> Callable[..., Launched]:
    """Starts a toy run in ``tmp_path / name``; keyword arguments go to ``launch``."""

    def start(name: str, *arguments: str, index: Path = toy_index, **options: Any) -> Launched:
        where = [f"--data.index={index}", f"--output_dir={tmp_path / name}"]
        return launch([*TOY_RUN, *where, *arguments], tmp_path / f"{name}.log", **options)

    return start


TIMES = ("samples_per_second", "seconds_per_step", "data_wait")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    return read_metrics
