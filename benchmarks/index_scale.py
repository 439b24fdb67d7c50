"""What an index of ten thousand to a million rows costs: time to open, memory, time to draw an epoch's order.

    python benchmarks/index_scale.py [--rows 10000,100000,1000000] [--processes 8]

Each size is opened in several fresh processes at once, as the ranks of a node do. ``own_mb`` is what such a
process holds for itself, as growth over the same process before opening; ``node_mb`` adds up all of them and
the whole mapped file, which they share. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from codemae.data.index import open_index, write_index
from codemae.data.index_file import CACHE_NAME, FILE_NAME
from codemae.data.statistics import IndexStatistics, SourceStatistics

_BATCH = 1024
_LOOKUPS = 20_000


def make(folder: Path, rows: int) -> None:
    """Writes an index of pairs with names as long as those of a real collection; no image exists."""
    number = np.char.zfill(np.arange(rows).astype(str), 8)
    table = pa.table(
        {
            "source": pa.array(np.array([f"source_{i:02d}" for i in range(12)])[np.arange(rows) % 12]),
            "split": pa.array(np.full(rows, "train")),
            "group": pa.array(number),
            "optical": pa.array(np.char.add(np.char.add("collection/source/RGB/", number), ".png")),
            "sar": pa.array(np.char.add(np.char.add("collection/source/SAR/", number), ".png")),
        }
    )
    optical = SourceStatistics(channels=3, mean=(0.4,) * 3, std=(0.2,) * 3)
    sar = SourceStatistics(channels=1, mean=(0.3,), std=(0.2,))
    sources = {f"source_{i:02d}": {"optical": optical, "sar": sar} for i in range(12)}
    write_index(folder, table, IndexStatistics(sources=sources), folder)


def memory() -> dict[str, float]:
    """Megabytes this process holds alone and shares with files and others."""
    fields: dict[str, float] = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        fields[name.rstrip(":")] = int(amount) / 1024
    own = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"own": own, "resident": fields["Rss"], "proportional": fields["Pss"]}


def open_and_draw(folder: str, ready: Any, report: Any) -> None:
    """One rank: opens, draws an epoch, looks rows up; reports times and memory growth."""
    from codemae.data.sampler import PretrainSampler

    open_index(make_small(folder))
    before = memory()
    ready.wait()
    start = time.perf_counter()
    index = open_index(folder)
    opened = time.perf_counter()
    sampler = PretrainSampler(index, min(_BATCH, len(index)), seed=0)
    sampler.batch(0, 0)
    drawn = time.perf_counter()
    wanted = np.random.default_rng(0).integers(0, len(index), _LOOKUPS)
    looked = time.perf_counter()
    for row in wanted:
        index.location(int(row), "optical")
        index.location(int(row), "sar")
    done = time.perf_counter()
    ready.wait()
    after = memory()
    ready.wait()
    report.put(
        {
            "open_s": opened - start,
            "epoch_order_s": drawn - opened,
            "lookup_us_per_pair": (done - looked) / _LOOKUPS * 1e6,
            **{f"{kind}_mb": after[kind] - before[kind] for kind in after},
        }
    )


def make_small(folder: str) -> str:
    """An index of a few rows, opened first so that imports and pools are not counted."""
    return str(Path(folder).parent / "small")


def measure(base: Path, rows: int, processes: int) -> dict[str, float]:
    """Times and memory for one number of rows."""
    folder = base / f"rows_{rows}"
    start = time.perf_counter()
    make(folder, rows)
    written = time.perf_counter() - start
    (folder / CACHE_NAME).unlink()
    start = time.perf_counter()
    open_index(folder)
    first = time.perf_counter() - start
    context = multiprocessing.get_context("spawn")
    ready, report = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=open_and_draw, args=(str(folder), ready, report)) for _ in range(processes)
    ]
    for process in started:
        process.start()
    found = [report.get(timeout=300) for _ in started]
    for process in started:
        process.join()
    worst = {name: max(entry[name] for entry in found) for name in found[0]}
    return {
        "rows": rows,
        "parquet_mb": (folder / FILE_NAME).stat().st_size / 2**20,
        "mapped_mb": (folder / CACHE_NAME).stat().st_size / 2**20,
        "write_s": written,
        "first_open_s": first,
        **worst,
        "node_mb": sum(entry["own_mb"] for entry in found) + (folder / CACHE_NAME).stat().st_size / 2**20,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="10000,100000,1000000", help="numbers of rows, separated by commas")
    parser.add_argument("--processes", type=int, default=8, help="processes that open the index at once")
    args = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory() as base:
        make(Path(base) / "small", 16)
        for rows in map(int, args.rows.split(",")):
            result = measure(Path(base), rows, args.processes)
            results.append({name: round(value, 3) for name, value in result.items()})
            print(
                f"{rows:>9,} rows: first open {result['first_open_s']:.2f} s, then {result['open_s']:.3f} s; "
                f"own {result['own_mb']:.1f} MB a process, node {result['node_mb']:.0f} MB with "
                f"{args.processes} processes; epoch order {result['epoch_order_s']:.3f} s; "
                f"lookup {result['lookup_us_per_pair']:.0f} us a pair",
                flush=True,
            )
    print(json.dumps({"benchmark": "index_scale", "processes": args.processes, "results": results}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
