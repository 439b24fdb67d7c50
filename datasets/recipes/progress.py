"""How far prepare has come: a bar on a terminal, plain lines elsewhere, both on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]

_PATIENCE = 30.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def phase(doing: str, done: str, total: int | None = None, always: bool = False) -> Iterator[Advance]:
    """Shows one phase; gives what is told how many more are done.

    Elsewhere than on a terminal a line is written at every tenth and after half a minute without one.

    Args:
        doing: What is done, such as ``reading images``.
        done: What a line says of it, such as ``read {} samples``; the braces take ``3 of 5``.
        total: How many there are; unknown: no line is written, and the bar shows only the time.
        always: Whether lines are written for a phase that is over within half a minute, too.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=not always) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda number: bar.advance(task, number)
        return
    yield _Lines(done, total, always)


class _Lines:
    def __init__(self, done: str, total: int | None, always: bool) -> None:
        self._done = done
        self._total = total
        self._count = 0
        self._begun = self._told = time.monotonic()
        self._silent_until = self._begun + (0 if always else _PATIENCE)

    def __call__(self, number: int) -> None:
        if self._total is None:
            return
        tenth = self._count * 10 // max(self._total, 1)
        self._count += number
        now = time.monotonic()
        due = self._count * 10 // max(self._total, 1) > tenth or now - self._told > _PATIENCE
        if due and now >= self._silent_until:
            self._told = now
            print(self._line(now - self._begun), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        assert self._total is not None
        line = self._done.format(f"{self._count} of {self._total}")
        line += f", {self._count / max(seconds, 1e-9):,.0f} a second"
        left = seconds / max(self._count, 1) * (self._total - self._count)
        return line + (f", about {left:.0f} s left" if self._count < self._total else "")
