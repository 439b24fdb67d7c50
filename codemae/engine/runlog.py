"""What a run writes for people: metrics.jsonl, bad_samples.txt, TensorBoard and the terminal."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from codemae.distributed import is_main

METRICS = "metrics.jsonl"
BAD_SAMPLES = "bad_samples.txt"
_SHOWN_APART = {"step", "epoch", "loss", "lr", "grad_norm"}
_TIMES = {"samples_per_second", "seconds_per_step", "data_wait"}


class RunLog:
    """The log of a run; on any but the main process it does nothing.

    Args:
        folder: The run folder.
        step: Steps done; what an earlier attempt wrote after that step is cut off.
        total_steps: Steps of the run.
        tensorboard: Whether to write ``tensorboard/``.
    """

    def __init__(self, folder: Path, *, step: int, total_steps: int, tensorboard: bool) -> None:
        self._total = total_steps
        self._files: dict[str, IO[str]] = {}
        self._board: Any = None
        self._bar: Progress | None = None
        self._step = step
        if not is_main():
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, step_of in ((METRICS, _step_of_line), (BAD_SAMPLES, _step_of_record)):
            path = folder / name
            if path.exists():
                _cut_after(path, step, step_of)
            if path.exists() or name == METRICS:
                self._files[name] = path.open("a", encoding="utf-8")
        self._folder = folder
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    @contextmanager
    def open(self) -> Iterator["RunLog"]:
        """Shows a progress bar on a terminal; closes all files at the end."""
        if is_main() and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[pace]}"),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[loss]}"),
                console=Console(),
            )
            self._bar.add_task("", total=self._total, completed=self._step, pace="", loss="")
            self._bar.start()
        try:
            yield self
        finally:
            if self._bar is not None:
                self._bar.stop()
            for file in self._files.values():
                file.close()
            if self._board is not None:
                self._board.close()

    def say(self, text: str) -> None:
        """One line for whoever watches."""
        if not is_main():
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def advance(self) -> None:
        """One more step is done."""
        self._step += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1)

    def line(self, values: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``, the same as curves, and on the terminal."""
        if not is_main():
            return
        self._files[METRICS].write(json.dumps(values) + "\n")
        self._files[METRICS].flush()
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        if self._board is not None:
            for key, value in numbers.items():
                if key != "step":
                    self._board.add_scalar(key, value, values["step"])
        pace = values["samples_per_second"]
        loss = "all steps skipped" if values["loss"] is None else f"loss {values['loss']:.4f}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], pace=f"{pace:.1f} pairs/s", loss=loss)
            return
        terms = [f"{k} {v:.4f}" for k, v in numbers.items() if k not in _SHOWN_APART | _TIMES and v != 0]
        print(
            f"step {values['step']}/{self._total}  epoch {values['epoch']}  {loss}  {'  '.join(terms)}  "
            f"lr {values['lr']:.3g}  {pace:.1f} pairs/s  {self._eta(values)}",
            flush=True,
        )

    def _eta(self, values: Mapping[str, Any]) -> str:
        seconds = (self._total - values["step"]) * values["seconds_per_step"]
        return f"eta {timedelta(seconds=round(seconds))}"

    def bad_samples(self, step: int, sentences: Sequence[str]) -> None:
        """Lines of ``bad_samples.txt``: the step, a tab, and what was wrong with which image."""
        if not is_main() or not sentences:
            return
        if BAD_SAMPLES not in self._files:
            self._files[BAD_SAMPLES] = (self._folder / BAD_SAMPLES).open("a", encoding="utf-8")
        for sentence in sentences:
            self._files[BAD_SAMPLES].write(f"{step}\t{' '.join(sentence.split())}\n")
        self._files[BAD_SAMPLES].flush()

    def pictures(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Pictures (3, H, W) in [0, 1], for TensorBoard."""
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(name, picture.detach().float().cpu().clamp(0, 1), step)

    def sync(self) -> None:
        """Brings all lines to the disk, so that none is older than a checkpoint that follows."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())


def _step_of_line(line: str) -> int:
    return int(json.loads(line)["step"])


def _step_of_record(line: str) -> int:
    return int(line.partition("\t")[0])


def _cut_after(path: Path, step: int, step_of: Any) -> None:
    """Keeps the whole lines up to a step."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if step_of(line) > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)
