import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_makers import make_index

REPOSITORY = Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", REPOSITORY / "benchmarks" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def last_line(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def index_scale(*words):
    """Runs the script by itself, since its processes import the main module again."""
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "index_scale.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])["results"]


def test_loader_accounts_for_all_of_the_time(capsys, tmp_path):
    index = make_index(tmp_path, paired=12, size=64)
    words = ["--index", str(index), "--size", "32", "--batch", "4", "--workers", "0", "--samples", "24"]
    assert script("loader").main(words) == 0
    found = last_line(capsys)
    shares = [found[f"{stage}_share"] for stage in ("decode", "crop", "copy", "other")]
    assert all(0 < share < 1 for share in shares)
    # Each share is rounded to three digits.
    assert sum(shares) == pytest.approx(1, abs=0.005)
    assert found["samples_per_second"] > 0
    assert (found["rows"], found["size"], found["batch"]) == (12, 32, 4)


def test_timing_leaves_the_pipeline_as_it_was():
    loader = script("loader")
    before = {name: getattr(loader.dataset_module, name) for name in loader._STAGES.values()}
    with loader.timed(loader.dataset_module, loader._STAGES) as spent:
        assert all(getattr(loader.dataset_module, name) is not function for name, function in before.items())
    assert before == {name: getattr(loader.dataset_module, name) for name in before}
    assert spent == {"decode": 0.0, "crop": 0.0}


def test_loader_writes_its_own_pairs(tmp_path):
    from codemae.data.index import open_index

    index = open_index(script("loader").make_pairs(tmp_path, 3, size=32))
    assert len(index.paired_rows) == 3


def test_index_scale_measures_each_number_of_rows():
    small, large = index_scale("--rows", "1000,20000", "--processes", "1")
    assert (small["rows"], large["rows"]) == (1000, 20000)
    for result in (small, large):
        assert 0 < result["open_s"] < 5
        assert result["node_mb"] < 200
    # The mapped rows grow with their number, the cost of a look-up does not.
    assert 10 < large["mapped_mb"] / small["mapped_mb"] < 30
    assert large["lookup_us_per_pair"] < 5 * small["lookup_us_per_pair"]


@pytest.mark.slow
def test_a_million_rows_open_in_five_seconds_and_cost_less_than_200_mb():
    (result,) = index_scale("--rows", "1000000", "--processes", "2")
    assert result["first_open_s"] < 5 and result["open_s"] < 5
    assert result["node_mb"] < 200
    assert np.isfinite(result["epoch_order_s"]) and result["epoch_order_s"] < 5
