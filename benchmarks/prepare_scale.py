"""What indexing a million pairs costs: time and memory of `datasets/prepare.py pairs`, all processes.

    python benchmarks/prepare_scale.py [--rows 1000000] [--workers 2] [--where DIR]

The listing has a name of its own for both sides of every pair, but only a distinct file a thousand names, the
others being hard links, so that it fits on any disk. Each name is opened, decoded and counted as in real use.
Memory is the largest sum over prepare and its workers, pages they share counted once. The last line is one
JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

PREPARE = Path(__file__).resolve().parents[1] / "datasets" / "prepare.py"

# A process begins with the peak of the one that started it, so a small one stands between.
_STARTER = (
    "import resource, subprocess, sys\n"
    "code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(code)\n"
)
_LINKS = 1000
_EVERY = 0.5


def make_listing(folder: Path, rows: int) -> None:
    """Writes folder/optical/scene_<number>.ppm and folder/sar/scene_<number>.pgm, 8 x 8 pixels of noise."""
    rng = np.random.default_rng(0)
    for side, shape, suffix in (("optical", (8, 8, 3), "ppm"), ("sar", (8, 8), "pgm")):
        (folder / side).mkdir(parents=True)
        for start in range(0, rows, _LINKS):
            first = folder / side / f"scene_{start:09d}.{suffix}"
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(first)
            for number in range(start + 1, min(start + _LINKS, rows)):
                os.link(first, first.with_name(f"scene_{number:09d}.{suffix}"))


def memory_below(pid: int) -> float:
    """Megabytes of the descendants of a process, shared pages divided among those who share them."""
    total = 0.0
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += _proportional(int(child)) / 1024 + memory_below(int(child))
    except OSError:
        return total
    return total


def _proportional(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def measure(folder: Path, workers: int, more: Sequence[str] = ()) -> dict[str, Any]:
    """Runs prepare over a listing; returns rows, seconds and memory.

    Args:
        folder: Holds optical, sar and afterwards index.
        workers: Processes that read.
        more: Further words of the command line.

    Raises:
        RuntimeError: It failed.
    """
    out = folder / "index"
    sides = ["--optical", str(folder / "optical"), "--sar", str(folder / "sar")]
    words = [sys.executable, str(PREPARE), "pairs", *sides, "--out", str(out), "--workers", str(workers)]
    words += more
    begun = time.perf_counter()
    peak = 0.0
    starter = [sys.executable, "-c", _STARTER, *words]
    with subprocess.Popen(starter, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, memory_below(process.pid))
            time.sleep(_EVERY)
        told = process.communicate()[0]
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise RuntimeError(f"prepare ended with exit code {process.returncode}")
    largest = int(told) / 1024
    rows = pq.ParquetFile(out / "index.parquet").metadata.num_rows
    return {
        "rows": rows,
        "workers": workers,
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds, 1),
        "peak_memory_mb": round(max(peak, largest), 1),
        "largest_process_mb": round(largest, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="pairs in the listing")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    parser.add_argument("--where", type=Path, help="folder to write the listing to; default: a temporary one")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.where, prefix="prepare-scale-") as base:
        folder = Path(base)
        begun = time.perf_counter()
        make_listing(folder, args.rows)
        print(f"a listing of {args.rows:,} pairs in {time.perf_counter() - begun:.0f} s", flush=True)
        result = measure(folder, args.workers)
    print(
        f"{result['rows']:,} rows in {result['seconds']:,.0f} s ({result['rows_per_second']:,.0f} a second) "
        f"with {result['workers']} workers; at most {result['peak_memory_mb']:.0f} MB"
    )
    print(json.dumps({"benchmark": "prepare_scale", **result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
