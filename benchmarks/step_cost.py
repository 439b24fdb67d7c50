"""What an optimizer step of a pretraining costs: operations, and time where asked, on batches of its own."""

import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from flops import gflop

from codemae.config import load_config
from codemae.data.batch import Batch
from codemae.distributed import select_device
from codemae.engine.interruption import Interruption
from codemae.engine.pretraining import PretrainConfig
from codemae.engine.run import Run
from codemae.methods.base import METHODS


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one optimizer step of a method takes, the mean over the paired and unpaired steps of an epoch.

    Attributes:
        gflop: 10^9 operations.
        seconds: Of computing, without the loader; 0 where it was not timed.
        steps_per_epoch: Steps that pass over the index once.
        images: Images of one modality or the other that a step sees, crops of one image counted once.
        pairs: Samples of a step that show the same ground.
    """

    gflop: float
    seconds: float
    steps_per_epoch: int
    images: float
    pairs: float


def step_cost(words: Sequence[str], timed: bool = False, repeats: int = 5) -> Cost:
    """Counts, and times where asked, the steps of a run on batches of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [*words, f"--output_dir={scratch}", "--log.tensorboard=false", "--data.num_workers=0"]
        config = load_config(PretrainConfig, words, variants={"method": METHODS.config})
        run = Run(replace(config, output_dir=scratch), select_device(config.device))
        sampler, size = run.sampler, run.plan.per_rank
        kinds: list[tuple[list[Batch], float]] = []
        gflops = seconds = images = pairs = 0.0
        for step, steps in example_steps(sampler):
            draws = sampler.batch(0, step)
            parts = [draws[start : start + size] for start in range(0, len(draws), size)]
            batches = [run.dataset.collate([run.dataset[draw] for draw in part]) for part in parts]
            share = steps / sampler.steps_per_epoch
            gflops += share * sum(gflop(lambda batch=batch: backward(run, batch)) for batch in batches)
            distinct = len(draws) / sampler.repeats
            images += share * distinct * len(sampler.modalities)
            pairs += share * distinct * batches[0].paired
            kinds.append((batches, share))
        if timed:
            # Steps that move weights come last: those counted are of a run that has not begun.
            seconds = sum(share * median_seconds(run, batches, repeats) for batches, share in kinds)
        return Cost(
            gflop=gflops, seconds=seconds, steps_per_epoch=sampler.steps_per_epoch, images=images, pairs=pairs
        )


def example_steps(sampler: Any) -> Iterator[tuple[int, int]]:
    """A step of each kind in the first epoch, and how many of its kind an epoch has."""
    kinds = [sampler.is_paired(0, step) for step in range(sampler.steps_per_epoch)]
    for kind in (True, False):
        if kind in kinds:
            yield kinds.index(kind), kinds.count(kind)


def backward(run: Run, batch: Batch) -> None:
    """Forward and backward pass of a batch, without moving a weight."""
    run.method.train()
    with run.learner.autocast():
        terms = run.method(batch.to(run.device), run.progress)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
    loss.backward()
    run.learner.optimizer.zero_grad(set_to_none=True)
    run.method.zero_grad(set_to_none=True)


def median_seconds(run: Run, micro_batches: Sequence[Batch], repeats: int) -> float:
    """Median time of a whole step, after one to warm up; the run's weights move."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run.learner.step(micro_batches, run.progress, rate=run.rate, waited=0.0, interruption=Interruption())
        run.method.after_step(run.progress)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
