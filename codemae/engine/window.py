"""Means over the steps since the last logged line, and what of them a checkpoint keeps."""

import time
import zlib
from typing import Any

from codemae.engine.step import StepReport

COUNTS = ("skipped", "bad_samples", "nonfinite_pixels")


class Window:
    """Adds up steps until a line is due.

    Sums, counts and the checksum are part of the run state, so that a resumed run writes the very lines an
    uninterrupted one would; times are not.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Starts over."""
        self.sums: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self.counts = dict.fromkeys(COUNTS, 0)
        self.samples = 0
        self.taken = 0
        self.pairs = 0
        self.waited = 0.0
        self.started = time.perf_counter()

    def add(self, report: StepReport) -> None:
        """Adds a step; the terms of a skipped one are left out."""
        if report.finite:
            for name, value in {"loss": report.loss, **report.terms, "grad_norm": report.grad_norm}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.steps[name] = self.steps.get(name, 0) + 1
        else:
            self.counts["skipped"] += 1
        self.counts["bad_samples"] += report.bad_samples
        self.counts["nonfinite_pixels"] += report.nonfinite_pixels
        self.samples = zlib.crc32(report.samples.to_bytes(4, "little"), self.samples)
        self.taken += 1
        self.pairs += report.pairs
        self.waited += report.waited

    def line(self, step: int, epoch: int, lr: float) -> dict[str, Any]:
        """The line of ``metrics.jsonl``; a mean over steps that were all skipped is null."""
        means = {name: total / self.steps[name] for name, total in self.sums.items()}
        terms = {name: value for name, value in means.items() if name not in ("loss", "grad_norm")}
        seconds = max(time.perf_counter() - self.started, 1e-9)
        return {
            "step": step,
            "epoch": epoch,
            "loss": means.get("loss"),
            **terms,
            "lr": lr,
            "grad_norm": means.get("grad_norm"),
            **self.counts,
            "samples": f"{self.samples:08x}",
            "samples_per_second": self.pairs / seconds,
            "seconds_per_step": seconds / max(1, self.taken),
            "data_wait": min(1.0, self.waited / seconds),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {
            "sums": dict(self.sums),
            "steps": dict(self.steps),
            "counts": dict(self.counts),
            "samples": self.samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``, with times starting now."""
        self.clear()
        self.sums, self.steps, self.counts = dict(state["sums"]), dict(state["steps"]), dict(state["counts"])
        self.samples = state["samples"]
