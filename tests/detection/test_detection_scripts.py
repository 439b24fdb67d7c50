import os
import subprocess
from pathlib import Path

import pytest
from data_makers import ROOT

CONFIG = "faster-rcnn_hivit-base_itpn_8xb2-1x_dior_paper"
LAUNCHER = {"1gpu": "PYTHON", "8gpu": "TORCHRUN"}
COUNT = {"1gpu": "BATCH", "8gpu": "GPUS"}


def launched(tmp_path: Path, script: str, *words: str, **variables: str) -> tuple[int, list[str], str]:
    """Exit code, what would have been run, and the errors."""
    stub = tmp_path / "stub"
    stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    done = subprocess.run(
        ["bash", f"detection/scripts/{script}.sh", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **variables, LAUNCHER[script]: str(stub)},
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(("batch", "calls"), [("1", "16"), ("4", "4"), ("16", "1")])
def test_one_gpu_accumulates_to_sixteen_images(tmp_path: Path, batch: str, calls: str) -> None:
    code, words, _ = launched(tmp_path, "1gpu", CONFIG, "e.safetensors", "runs/x", "a.b=1", BATCH=batch)
    assert (
        code == 0
        and words[1] == "train"
        and Path(words[2]).samefile(ROOT / "detection" / "configs" / f"{CONFIG}.py")
    )
    assert words[3:] == [
        *("--encoder", "e.safetensors", "--work-dir", "runs/x", "--cfg-options"),
        *(f"train_dataloader.batch_size={batch}", f"optim_wrapper.accumulative_counts={calls}", "a.b=1"),
    ]


@pytest.mark.parametrize(("gpus", "each"), [("8", "2"), ("2", "8"), ("16", "1")])
def test_gpus_share_sixteen_images(tmp_path: Path, gpus: str, each: str) -> None:
    code, words, _ = launched(tmp_path, "8gpu", CONFIG, "e.safetensors", GPUS=gpus)
    assert code == 0 and words[0] == f"--nproc_per_node={gpus}" and words[-1].endswith(f"batch_size={each}")
    assert words[words.index("--work-dir") + 1] == f"runs/detection/{CONFIG}"


@pytest.mark.parametrize("script", ["1gpu", "8gpu"])
@pytest.mark.parametrize("value", ["3", "32", "0", "-4", "four"])
def test_what_does_not_divide_sixteen_is_refused(tmp_path: Path, script: str, value: str) -> None:
    code, words, error = launched(tmp_path, script, CONFIG, "e.safetensors", **{COUNT[script]: value})
    assert (
        code == 2 and not words and f"{COUNT[script]} is '{value}'" in error and "1, 2, 4, 8 or 16" in error
    )
