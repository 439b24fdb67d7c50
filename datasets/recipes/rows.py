"""The rows of an index out of the samples that could be read."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from codemae.data.images import Window, resolve_inside
from recipes.labels import LabelError, MaskClasses
from recipes.plan import Candidate, Plan, PrepareError
from recipes.scan import Scan
from recipes.windows import Exclusion, Tiling

_WORDS = ("source", "split", "group", "optical", "sar", "mask", "post")
_NUMBERS = ("x", "y", "width", "height")
_CHUNK = 65_536

_Job = tuple[str, list[Window | None]]


class Rows:
    """A row for each sample, or for each window of it.

    Args:
        plan: The samples.
        found: Which of them could be read, and their sizes.
        tiling: Windows to cut; None: whole images.
        exclusion: Windows to leave out.
        workers: Processes that read masks for labels.
    """

    def __init__(
        self, plan: Plan, found: Scan, tiling: Tiling | None, exclusion: Exclusion, workers: int
    ) -> None:
        self._plan = plan
        self._found = found
        self._tiling = tiling
        self._exclusion = exclusion
        self._workers = workers

    def table(self) -> pa.Table:
        """The rows in the order of the plan, gathered in chunks so that a million of them stay small.

        Raises:
            PrepareError: A mask that labels come from cannot be read.
        """
        several = self._plan.mask_classes is not None or any(
            isinstance(candidate.label, list) for candidate in self._plan.candidates
        )
        label = pa.list_(pa.int32()) if several else pa.int32()
        schema = pa.schema(
            [(name, pa.string()) for name in _WORDS]
            + [(name, pa.int32()) for name in _NUMBERS]
            + [("label", label)]
        )
        batches: list[pa.RecordBatch] = []
        rows = self._rows()
        while chunk := list(islice(rows, _CHUNK)):
            columns = zip(*chunk, strict=True)
            arrays = [
                pa.array(list(column), kind) for column, kind in zip(columns, schema.types, strict=True)
            ]
            batches.append(pa.record_batch(arrays, schema=schema))
        return pa.Table.from_batches(batches, schema)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        for candidate, windows, labels in self._labelled():
            words = tuple(getattr(candidate, name) for name in _WORDS)
            for window, label in zip(windows, labels, strict=True):
                yield (*words, *(window or (None,) * 4), label)

    def _samples(self) -> Iterator[tuple[Candidate, list[Window | None]]]:
        for place, (height, width) in sorted(self._found.sizes.items()):
            candidate = self._plan.candidates[place]
            if self._tiling is None:
                yield candidate, [None]
                continue
            side = self._tiling.tile
            yield (
                candidate,
                [
                    (left, top, side, side)
                    for left, top in self._tiling.windows(height, width)
                    if not self._exclusion.covers_window(candidate, left, top)
                ],
            )

    def _labelled(self) -> Iterator[tuple[Candidate, list[Window | None], list[Any]]]:
        rule = self._plan.mask_classes
        if rule is None:
            for candidate, windows in self._samples():
                yield candidate, windows, [candidate.label] * len(windows)
            return
        samples = list(self._samples())
        root = str(self._plan.root)
        jobs = [(resolve_inside(root, candidate.mask or ""), windows) for candidate, windows in samples]
        try:
            for (candidate, windows), labels in zip(samples, self._read(rule, jobs), strict=True):
                yield candidate, windows, labels
        except LabelError as error:
            raise PrepareError(str(error)) from None

    def _read(self, rule: MaskClasses, jobs: list[_Job]) -> Iterator[list[list[int]]]:
        paths, windows = [path for path, _ in jobs], [window for _, window in jobs]
        if self._workers < 2:
            yield from map(rule.of, paths, windows)
            return
        with ProcessPoolExecutor(self._workers) as pool:
            yield from pool.map(rule.of, paths, windows, chunksize=32)


def row_counts(table: pa.Table) -> dict[str, Any]:
    """Rows in all, with both sides, by split and by source."""
    paired = pc.and_(table.column("optical").is_valid(), table.column("sar").is_valid())

    def by(name: str) -> dict[str, int]:
        counts = pc.value_counts(table.column(name).cast(pa.string())).to_pylist()
        return dict(sorted((entry["values"], entry["counts"]) for entry in counts))

    return {
        "rows": table.num_rows,
        "paired": pc.sum(paired.cast(pa.int64())).as_py() or 0,
        "rows_by_split": by("split"),
        "rows_by_source": by("source"),
    }
