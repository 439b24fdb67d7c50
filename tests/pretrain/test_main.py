import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from command_lines import CODEMAE_RUN
from ddp_helpers import free_port
from PIL import Image

from codemae import load_encoder
from codemae.checkpoint import read_encoder
from codemae.config import read_yaml
from codemae.data.index import open_index

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "pretrain" / "main.py"), *arguments]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)


def test_a_run_folder_holds_what_the_design_says(run_toy, toy_index, tmp_path, metrics):
    done = run_toy("run", "--optim.epochs=2", "--log.tensorboard=true", "--log.sentinel_every=9")
    assert done.wait() == 0, done.output
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "metrics.jsonl",
        "tensorboard",
        "last.pt",
        "previous.pt",
        "encoder.safetensors",
    }

    lines = metrics(folder)
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert [line["epoch"] for line in lines] == [0] * 9 + [1] * 9
    assert {"loss", "reconstruction", "lr", "grad_norm", "samples", "skipped", "bad_samples"} <= set(lines[0])
    for line in lines:
        terms = [line[name] for name in ("reconstruction", "ccl") if name in line]
        assert line["loss"] == pytest.approx(sum(terms), rel=1e-12)
    raw = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert raw["samples_per_second"] > 0 and 0 <= raw["data_wait"] <= 1
    # base_lr 0.1 per 256 images, 4 pairs a step, warm-up over the first epoch of 9 steps
    assert lines[0]["lr"] == pytest.approx(0.1 * 8 / 256 / 9)
    assert max(line["lr"] for line in lines) == lines[8]["lr"] == pytest.approx(0.1 * 8 / 256)
    assert len({line["samples"] for line in lines}) == 18

    config = read_yaml(folder / "config.yaml")
    assert config["optim"]["global_batch"] == 4 and config["method"]["dropout"] == 0.1
    state, metadata = read_encoder(folder / "encoder.safetensors")
    saved = torch.load(folder / "last.pt", weights_only=True)
    assert all(torch.equal(value, saved["method"][f"encoder.{key}"]) for key, value in state.items())
    assert (metadata.arch, metadata.method, metadata.steps) == ("toy", "toy", 18)
    assert metadata.licence_notes == ["toy teacher: public domain"]
    optical = open_index(toy_index).pooled_stats("optical")
    assert metadata.inputs["optical"].mean == list(optical.mean)
    assert (metadata.inputs["sar"].channels, metadata.inputs["sar"].size) == (1, toy.SIZE)


def test_codemae_under_plain_python_hands_over_an_encoder_that_loads(toy_index, tmp_path):
    where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / 'run'}"]
    done = run(
        command(*CODEMAE_RUN, *where, "--optim.batch_per_gpu=4", "--optim.epochs=1", "--log.sentinel_every=5")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 9
    assert {"reconstruction", "ccl", "cdr"} <= set(lines[4]) | set(lines[8]) | set(lines[2])
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)
    assert {"gradient_cosine_reconstruction_ccl", "gradient_cosine_reconstruction_cdr"} <= set(lines[4])
    encoder = load_encoder(tmp_path / "run" / "encoder.safetensors")
    assert encoder(torch.zeros(1, 3, 32, 32), "optical").shape[:2] == (1, 4)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["method"]
    assert torch.equal(encoder.state_dict()["absolute_pos_embed"], state["encoder.absolute_pos_embed"])


@pytest.mark.ddp
def test_torchrun_on_a_mixed_index(toy_index, tmp_path):
    where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / 'run'}"]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        f"--master_port={free_port()}",
    ]
    teacher = [
        "--method.okd.enabled=true",
        "--method.okd.teacher.name=efficientnet_lite0",
        "--method.okd.teacher.pretrained=false",
    ]
    words = command(*CODEMAE_RUN, *teacher, *where, "--optim.batch_per_gpu=2", "--optim.epochs=1")
    done = run([*launcher, *words[1:]])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and all("okd" in line for line in lines)
    # 24 pairs and 12 unpaired samples in batches of 4
    assert sum({"ccl", "cdr"} <= set(line) for line in lines) == 6
    assert sum(not {"ccl", "cdr"} & set(line) for line in lines) == 3
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert "batch: 4 = 2 x 2 processes x 1 accumulated" in done.stdout
    assert done.stdout.count("step 9/9") == 1, "only the main process talks"


@pytest.mark.parametrize(("processed", "said"), [(4, False), (2, True)])
def test_accumulation_says_how_many_samples_are_compared(run_toy, processed, said):
    done = run_toy(
        "run", "--optim.global_batch=4", f"--optim.batch_per_gpu={processed}", "--optim.max_steps=1"
    )
    assert done.wait() == 0, done.output
    assert "start: random weights" in done.output
    assert ("sees 2 of the 4 pairs at a time" in done.output) == said


def test_a_mistyped_key_ends_before_any_work(run_toy, tmp_path):
    done = run_toy("run", "--optim.epoch=3")
    assert done.wait() == 2
    assert "unknown key 'optim.epoch'; did you mean 'optim.epochs'?" in done.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--data.index=/nonexistent/index"], ["/nonexistent/index", "datasets/prepare.py"]),
        (["--data.split=trian"], ["trian"]),
        (["--optim.batch_per_gpu=1000"], ["do not fill a batch of 1000"]),
        (["--optim.global_batch=6"], ["optim.global_batch 6 is no multiple", "--optim.batch_per_gpu 3"]),
        (["--device=cuda"], ["--device cpu"]),
    ],
)
def test_what_cannot_work_ends_with_code_2_and_a_sentence(run_toy, arguments, named, monkeypatch):
    done = run_toy("run", *arguments, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert done.wait() == 2, done.output
    assert done.output.startswith("error: ") and "Traceback" not in done.output
    assert all(words in done.output for words in named)


def test_a_folder_of_pictures_is_no_index(run_toy, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    done = run_toy("run", index=folder)
    assert done.wait() == 2
    assert (
        "no index.parquet" in done.output and "a.png" in done.output and "datasets/prepare.py" in done.output
    )


def test_max_steps_ends_the_run_and_its_schedule(run_toy, tmp_path, metrics):
    done = run_toy("run", "--optim.max_steps=5", "--optim.warmup_epochs=0", "--log.every=100")
    assert done.wait() == 0
    assert [line["step"] for line in metrics(tmp_path / "run")] == [5]
    longer = run_toy("all", "--optim.max_steps=5", "--optim.warmup_epochs=0")
    assert longer.wait() == 0
    rates = [line["lr"] for line in metrics(tmp_path / "all")]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.15 * rates[0]


def test_logging_less_often_means_the_mean_over_the_steps_between(run_toy, tmp_path, metrics):
    assert run_toy("each", "--optim.epochs=1").wait() == 0
    assert run_toy("some", "--optim.epochs=1", "--log.every=4").wait() == 0
    each, some = metrics(tmp_path / "each"), metrics(tmp_path / "some")
    assert [line["step"] for line in some] == [4, 8, 9]
    for line, part in zip(some, (each[:4], each[4:8], each[8:]), strict=True):
        assert line["loss"] == pytest.approx(sum(one["loss"] for one in part) / len(part), rel=1e-12)
