import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import equal_cost
import pytest
import twin_factors
from data_makers import make_labelled

from codemae.data.synthetic.factors import FACTOR_SIDES

SMALL = [
    "method.encoder.img_size=32",
    "method.decoder.dim=48",
    "method.decoder.depth=1",
    "method.decoder.num_heads=3",
    "method.okd.enabled=false",
    "optim.batch_per_gpu=4",
    "optim.amp=float32",
    "data.num_workers=0",
    "log.every=1",
    "log.sentinel_samples=4",
    "device=cpu",
]
CONFIG = "codemae_hivit_tiny_cpu"


@pytest.fixture
def words(toy_index: Path, tmp_path: Path) -> list[str]:
    labelled = make_labelled(tmp_path / "labelled")
    return [
        *(
            f"--index={toy_index}",
            f"--optical={labelled}",
            f"--sar={labelled}",
            f"--out={tmp_path / 'queue'}",
        ),
        *("--seeds=1", "--probe-size=32", "--shots=3", "--configs", CONFIG, "--set", *SMALL),
    ]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, equal_cost.__file__, *words], capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_a_budget_becomes_steps_and_the_queue_is_not_run_twice(words: list[str], tmp_path: Path) -> None:
    first = run([*words, "--tflop=0.01"])
    result = json.loads(first.stdout.splitlines()[-1])[CONFIG]
    queue = tmp_path / "queue" / CONFIG
    cost = json.loads((queue / "step_cost.json").read_text())
    assert result["steps"] == round(0.01 / (cost["gflop"] / 1e3)) >= 2
    assert result["tflop"] == pytest.approx(0.01, rel=1 / result["steps"])
    metrics = [json.loads(line) for line in (queue / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == result["steps"]
    assert result["effective_rank_optical"] == metrics[-1]["effective_rank_optical"]
    assert result["seconds"] == pytest.approx(sum(line["seconds_per_step"] for line in metrics))
    assert {"probe_optical", "probe_sar", "random_optical", "random_sar"} <= set(result)
    table = (tmp_path / "queue" / "table.md").read_text()
    assert table in first.stdout and "random weights" in table
    fresh = sorted(path.name for path in (tmp_path / "queue" / "random_weights").glob("hivit_tiny_*/*"))
    assert fresh == ["seed_0_optical", "seed_0_sar"]
    stamp = (queue / "seed_0" / "encoder.safetensors").stat().st_mtime_ns
    again = run([*words, "--tflop=0.01"])
    assert (queue / "seed_0" / "encoder.safetensors").stat().st_mtime_ns == stamp
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    other = subprocess.run(
        [sys.executable, equal_cost.__file__, *words, "--tflop=0.02"], capture_output=True, text=True
    )
    assert other.returncode and "another --out" in other.stderr
    assert (queue / "seed_0" / "encoder.safetensors").stat().st_mtime_ns == stamp


def test_the_mean_step_weighs_paired_and_unpaired_steps_as_an_epoch_has_them(toy_index: Path) -> None:
    def cost(*more: str) -> Any:
        return equal_cost.step_cost(
            ["--config", str(equal_cost.yaml_of(CONFIG)), f"--data.index={toy_index}"]
            + [f"--{word}" for word in (*SMALL, *more)]
        )

    paired, unpaired, both = (cost(f"data.samples={kind}") for kind in ("paired", "unpaired", "both"))
    assert unpaired.gflop < paired.gflop
    steps = paired.steps_per_epoch + unpaired.steps_per_epoch
    assert both.steps_per_epoch == steps
    weighted = (paired.gflop * paired.steps_per_epoch + unpaired.gflop * unpaired.steps_per_epoch) / steps
    assert both.gflop == pytest.approx(weighted)
    assert (both.images, paired.pairs, unpaired.pairs) == (8, 4, 0)


def test_nothing_to_probe_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="give --optical INDEX_DIR"):
        equal_cost.main(["--index=x", "--tflop=1"])


@pytest.mark.slow
def test_factors_are_read_from_each_modality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tflop=0.01", "--seeds=1", "--train=16", "--test=60", "--size=32", f"--out={tmp_path}"]
    result = twin_factors.main([*words, "--configs", CONFIG, "--set", *SMALL])
    assert set(result) == {CONFIG, equal_cost.RANDOM}
    for scores in result.values():
        assert set(scores) == {"optical", "sar"} and set(scores["optical"]) == set(FACTOR_SIDES)
        assert all(0 <= mean <= 1 for side in scores.values() for mean, _ in side.values())
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == result
    assert (tmp_path / "table.md").read_text() in printed
