import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from data_makers import ROOT, load_script

from codemae.evaluation.card import Card

words = load_script("tests/bright/conftest.py").words


@pytest.mark.ddp
def test_what_two_processes_trained_and_measured_one_measures_again(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(ROOT / "bright" / "main.py"), "train", *words(index, tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, together = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (trained, tmp_path / "two")
    )
    # Batch norm on the CPU counts the crops of its own process, so the losses agree only roughly.
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    assert together[0]["loss"] == pytest.approx(alone[0]["loss"], rel=0.2)
    again = words(index, tmp_path / "again", f"--trained={tmp_path / 'two'}")
    assert script.main(["evaluate", *again]) == 0
    for name in ("val", "test"):
        assert Card.load(tmp_path / "again" / name) == Card.load(tmp_path / "two" / name)
