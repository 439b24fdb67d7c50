"""How fast batches come: samples a second for each core, and where the time goes.

    python benchmarks/loader.py [--index DIR[,DIR]] [--size 224] [--batch 32] [--workers 2] [--samples 512]

Without ``--index`` it writes PNG pairs of 256 pixels first. A sample is both images of a pair (or one of each
kind, unpaired). First one process does everything itself, with the stages timed; then the loader runs with
its workers. The last line is one JSON object.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from codemae.data import dataset as dataset_module
from codemae.data.dataset import PairDataset
from codemae.data.index import Index, open_index, write_index
from codemae.data.loader import make_loader
from codemae.data.sampler import PretrainSampler
from codemae.data.statistics import IndexStatistics, SourceStatistics
from codemae.data.views import View, Views

_STAGES = {"decode": "read_window", "crop": "take_crop"}


def make_pairs(folder: Path, count: int, size: int = 256) -> Path:
    """Writes PNG pairs with the entropy of real images: smooth ground, sensor noise, speckle."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(30, 220, (16, 16, 3), dtype=np.uint8))
        ground = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
        optical = np.clip(ground + rng.normal(0, 6, ground.shape), 0, 255).astype(np.uint8)
        speckle = rng.gamma(4, 0.25, (size, size))
        sar = np.clip(ground.mean(axis=-1) * np.sqrt(speckle), 0, 255).astype(np.uint8)
        row = {"source": "made", "split": "train", "group": str(number)}
        for modality, pixels in (("optical", optical), ("sar", sar)):
            row[modality] = f"{modality}_{number}.png"
            Image.fromarray(pixels).save(folder / row[modality])
        rows.append(row)
    statistics = {
        "optical": SourceStatistics(channels=3, mean=(0.5,) * 3, std=(0.2,) * 3),
        "sar": SourceStatistics(channels=1, mean=(0.5,), std=(0.2,)),
    }
    write_index(folder / "index", rows, IndexStatistics(sources={"made": statistics}), folder)
    return folder / "index"


@contextmanager
def timed(module: ModuleType, names: dict[str, str]) -> Iterator[dict[str, float]]:
    """Adds up the seconds spent in functions of a module while the context lasts."""
    spent = dict.fromkeys(names, 0.0)
    originals = {stage: getattr(module, name) for stage, name in names.items()}

    def watched(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[stage] += time.perf_counter() - start

        return call

    for stage, name in names.items():
        setattr(module, name, watched(stage, originals[stage]))
    try:
        yield spent
    finally:
        for stage, name in names.items():
            setattr(module, name, originals[stage])


def stages(dataset: PairDataset, sampler: PretrainSampler, samples: int) -> dict[str, float]:
    """Samples a second of one core, and the share of each stage."""
    steps = -(-samples // sampler.global_batch)
    copying, done = 0.0, 0
    with timed(dataset_module, _STAGES) as spent:
        start = time.perf_counter()
        for step in range(steps):
            epoch, within = divmod(step, sampler.steps_per_epoch)
            taken = dataset.__getitems__(sampler.batch(epoch, within))
            before = time.perf_counter()
            dataset.collate(taken)
            copying += time.perf_counter() - before
            done += len(taken)
        total = time.perf_counter() - start
    shares = {f"{stage}_share": seconds / total for stage, seconds in spent.items()}
    shares["copy_share"] = copying / total
    shares["other_share"] = 1 - sum(shares.values())
    return {"samples_per_second_per_core": done / total, **shares}


def throughput(dataset: PairDataset, sampler: PretrainSampler, samples: int, workers: int) -> float:
    """Samples a second of the loader with its workers, after the first batch of each has come."""
    warm = max(workers, 1) * 2
    steps = warm + -(-samples // sampler.global_batch)
    stream = iter(make_loader(dataset, sampler, total_steps=steps, num_workers=workers))
    for _ in range(warm):
        next(stream)
    start = time.perf_counter()
    done = sum(len(batch) for batch in stream)
    return done / (time.perf_counter() - start)


def run(index: Index, args: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    views = Views(
        {name: View(modality=name, size=args.size) for name in ("optical", "sar")},
        num_patches=(args.size // 16) ** 2,
    )
    sampler = PretrainSampler(index, min(args.batch, len(index)), seed=0)
    alone = stages(PairDataset(index, views, seed=0), sampler, args.samples)
    together = throughput(PairDataset(index, views, seed=0), sampler, args.samples, args.workers)
    return {
        "benchmark": "loader",
        "rows": len(index),
        "size": args.size,
        "batch": sampler.global_batch,
        "workers": args.workers,
        "cores": len(os.sched_getaffinity(0)),
        "samples_per_second": round(together, 1),
        **{name: round(value, 3) for name, value in alone.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--index", help="index folders, separated by commas; default: pairs written for the run"
    )
    parser.add_argument("--split", help="split of the index; default: all rows")
    parser.add_argument("--size", type=int, default=224, help="side of the crops")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--samples", type=int, default=512, help="samples to time")
    parser.add_argument("--pairs", type=int, default=128, help="pairs to write where no index is given")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(
            args.index.split(",") if args.index else make_pairs(Path(folder), args.pairs), args.split
        )
        result = run(index, args)
    shares = ", ".join(f"{name[:-6]} {result[name]:.0%}" for name in result if name.endswith("_share"))
    print(f"one core: {result['samples_per_second_per_core']:.0f} samples/s ({shares})")
    print(f"{args.workers} workers on {result['cores']} cores: {result['samples_per_second']:.0f} samples/s")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
