"""A run: everything built from its config, where it stands, and how it is saved and resumed."""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from codemae import checkpoint
from codemae.config import diff_configs, read_yaml, save_config, to_dict
from codemae.data.batch import Batch
from codemae.data.dataset import PairDataset
from codemae.data.index import open_index
from codemae.data.loader import make_loader
from codemae.data.sampler import PretrainSampler
from codemae.distributed import broadcast_object, is_main, rank, world_size
from codemae.engine.allocator import keep_freed_memory
from codemae.engine.export import export_encoders
from codemae.engine.named_files import initial_weights, named_files, without_initial_weights
from codemae.engine.randomness import rng_state, set_rng_state
from codemae.engine.runlog import RunLog
from codemae.engine.schedule import learning_rate, peak_rate
from codemae.engine.sentinel import Sentinel
from codemae.engine.settings import (
    HARMLESS_KEYS,
    MOVABLE_KEYS,
    BatchPlan,
    PretrainConfig,
    plan_batches,
)
from codemae.engine.step import Learner
from codemae.engine.window import Window
from codemae.methods.base import METHODS, Method, Progress

CONFIG = "config.yaml"


class Run:
    """A pretraining run, new or resumed.

    Args:
        config: As the user gave it.
        device: Of this process.

    Attributes:
        start: Where its weights come from, in words.

    Raises:
        ValueError: Data, batch sizes or the run folder do not fit the config; the message says what to do.
    """

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.plan: BatchPlan = plan_batches(config.optim, world_size())
        optim = dataclasses.replace(config.optim, global_batch=self.plan.global_batch)
        self.config = dataclasses.replace(config, optim=optim)
        self.folder = Path(config.output_dir)
        self.device = device
        state = broadcast_object(_check_folder(self.config, self.folder) if is_main() else None)

        self.index = open_index(config.data.index, config.data.split)
        torch.manual_seed(config.seed)
        # The run state holds the weights: what the run once began from need not be there any more.
        method = config.method if state is None else without_initial_weights(config.method)
        self.start = f"the state in {state}" if state else initial_weights(config) or "random weights"
        self.method: Method = METHODS.get(config.method.name)(method).to(device)
        self.method.check_index(self.index)
        views = self.method.views
        self.dataset = PairDataset(self.index, views, config.seed)
        self.sampler = PretrainSampler(
            self.index,
            self.plan.global_batch,
            config.seed,
            use=config.data.samples,
            modalities=views.modalities,
            repeats=config.data.repeats,
        )
        self.total_steps = max(1, round(optim.epochs * self.sampler.steps_per_epoch))
        self.total_steps = min(self.total_steps, optim.max_steps or self.total_steps)
        if device.type == "cpu":
            keep_freed_memory()
        self.learner = Learner(self.method, optim, device, config.seed)
        self.window = Window()
        self.step = 0
        self.skipped_in_row = 0
        self.bad_in_epoch = 0
        self._streak_start: dict[str, Any] = {}
        self._saved_step = -1
        self._data = broadcast_object(
            {"index": self.index.hash(), "statistics": self.index.statistics_hash()} if is_main() else None
        )
        self._files = broadcast_object(named_files(self.config) if is_main() else {})
        if state is not None:
            self._restore(checkpoint.load_run_state(state))
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(self.config, self.folder / CONFIG)
        self.log = RunLog(
            self.folder, step=self.step, total_steps=self.total_steps, tensorboard=config.log.tensorboard
        )
        self.sentinel: Sentinel | None = None
        if config.log.sentinel_every or config.log.pictures_every:
            self.sentinel = Sentinel(self.dataset, self.sampler, config.log.sentinel_samples)

    @property
    def progress(self) -> Progress:
        """The clock as methods see it."""
        epoch = self.step // self.sampler.steps_per_epoch
        return Progress(step=self.step, total_steps=self.total_steps, epoch=epoch)

    @property
    def rate(self) -> float:
        """Learning rate of the coming step."""
        optim = self.config.optim
        return learning_rate(
            self.step,
            total_steps=self.total_steps,
            warmup_steps=min(round(optim.warmup_epochs * self.sampler.steps_per_epoch), self.total_steps),
            peak=peak_rate(optim.base_lr, optim.lr, self.plan.global_batch),
            minimum=optim.min_lr,
        )

    def steps(self) -> Iterator[tuple[list[Batch], float]]:
        """The micro-batches of each step that is left, and the seconds they were waited for."""
        loader = make_loader(
            self.dataset,
            self.sampler,
            rank=rank(),
            world_size=world_size(),
            batch_per_rank=self.plan.per_rank,
            start_step=self.step,
            total_steps=self.total_steps,
            num_workers=self.config.data.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        batches = iter(loader)
        while self.step < self.total_steps:
            started = time.perf_counter()
            micro_batches = [next(batches) for _ in range(self.plan.accumulation)]
            yield micro_batches, time.perf_counter() - started

    def is_due(self, every: int | None) -> bool:
        """Whether the step just done is one of every so many."""
        return bool(every) and self.step % (every or 1) == 0

    def save_is_due(self) -> bool:
        """Whether a checkpoint belongs after the step just done."""
        wanted = self.config.checkpoint
        in_epochs = wanted.every_epochs and wanted.every_epochs * self.sampler.steps_per_epoch
        return self.is_due(wanted.every_steps) or self.is_due(in_epochs)

    def save(self) -> None:
        """Writes ``last.pt`` and the encoder files, on the main process.

        Raises:
            codemae.checkpoint.CheckpointError: It could not be written; raised on every process.
        """
        if self._saved_step == self.step:
            return
        self.log.sync()
        problem = None
        if is_main():
            try:
                checkpoint.save_run_state(self.folder, self._state())
                export_encoders(
                    self.folder,
                    self.method,
                    self.index,
                    method_name=self.config.method.name,
                    steps=self.step,
                )
            except checkpoint.CheckpointError as error:
                problem = str(error)
        problem = broadcast_object(problem)
        if problem:
            raise checkpoint.CheckpointError(problem)
        self._saved_step = self.step

    def remember_streak_start(self) -> None:
        """Notes where the run stands before a first skipped step; none moves a weight."""
        self._streak_start = {"step": self.step, "window": self.window.state_dict(), "bad": self.bad_in_epoch}

    def save_streak_start(self) -> None:
        """Goes back to where skipping began and saves that."""
        self.step = self._streak_start["step"]
        self.window.load_state_dict(self._streak_start["window"])
        self.bad_in_epoch = self._streak_start["bad"]
        self.skipped_in_row = 0
        self.save()

    def _state(self) -> dict[str, Any]:
        return {
            **self.learner.state_dict(),
            "step": self.step,
            "skipped_in_row": self.skipped_in_row,
            "streak_start": self._streak_start,
            "bad_in_epoch": self.bad_in_epoch,
            "window": self.window.state_dict(),
            "rng": rng_state(),
            "config": to_dict(self.config),
            "data": self._data,
            "files": self._files,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        _refuse_other_run(state["config"], self.config, self.folder)
        if state["data"] != self._data:
            raise ValueError(
                f"{', '.join(self.config.data.index)}: these are not the samples or statistics that the run "
                f"in {self.folder} was trained on; resume with the same index, or start another --output_dir"
            )
        known = state.get("files", {})
        for key, identity in self._files.items():
            if known.get(key, identity) != identity:
                raise ValueError(
                    f"{key} does not hold what it held for the run in {self.folder} ({identity}, not "
                    f"{known[key]}); name the same content, or start another --output_dir"
                )
        self._files = {**known, **self._files}
        self.learner.load_state_dict(state)
        set_rng_state(state["rng"])
        self.step = self._saved_step = state["step"]
        self.skipped_in_row = state["skipped_in_row"]
        self._streak_start = state["streak_start"]
        self.bad_in_epoch = state["bad_in_epoch"]
        self.window.load_state_dict(state["window"])


def _check_folder(config: PretrainConfig, folder: Path) -> Path | None:
    """What to resume from, if anything.

    Raises:
        ValueError: The folder or file does not go with ``config.resume`` or with the config.
    """
    is_empty = not folder.exists() or not any(folder.iterdir())
    if config.resume == "never":
        if not is_empty:
            raise ValueError(
                f"{folder} is not empty and --resume never starts anew; choose another --output_dir, "
                "delete this one yourself, or resume with --resume auto"
            )
        return None
    if config.resume != "auto":
        source = Path(config.resume)
        if not source.is_file():
            raise ValueError(
                f"--resume {source}: no such file; it takes auto, never or the path of a last.pt"
            )
        if checkpoint.has_run_state(folder) and source.resolve().parent != folder.resolve():
            raise ValueError(
                f"{folder} already holds a run and --resume names a file of another; "
                "choose another --output_dir"
            )
        return source
    if checkpoint.has_run_state(folder):
        return folder
    if (folder / CONFIG).is_file():
        _refuse_other_run(read_yaml(folder / CONFIG), config, folder)
    return None


def _refuse_other_run(before: dict[str, Any], config: PretrainConfig, folder: Path) -> None:
    differences = [
        f"{key} was {old!r}, is {new!r}"
        for key, old, new in diff_configs(before, to_dict(config))
        if not any(key == known or (known[-1] == "." and key.startswith(known)) for known in HARMLESS_KEYS)
        and not (key in MOVABLE_KEYS and old and new)
    ]
    if differences:
        raise ValueError(
            f"{folder} holds a run of another config; choose another --output_dir, or set back:\n  "
            + "\n  ".join(differences)
        )
