"""The rows of an index out of the samples that could be read, a batch at a time."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from codemae.data.images import Window, resolve_inside
from recipes.candidates import Candidate
from recipes.labels import LabelError, MaskClasses
from recipes.parallel import Workers
from recipes.plan import Plan, PrepareError
from recipes.scan import Scan
from recipes.windows import Exclusion, Tiling

_WORDS = ("source", "split", "group", "optical", "sar", "mask", "post")
_NUMBERS = ("x", "y", "width", "height")
_ROWS = 16_384

_Piece = tuple[int, np.ndarray]
"""Place of a sample in its batch and the (number, 4) windows of it; -1: the whole image."""


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
        self._several = plan.mask_classes is not None or plan.candidates.several

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in the order of the plan, at most 16,384 at a time.

        Raises:
            PrepareError: A mask that labels come from cannot be read.
        """
        whole_images = self._tiling is None and self._plan.mask_classes is None
        start = 0
        with Workers(self._workers if self._plan.mask_classes is not None else 1) as run:
            for batch in self._plan.candidates.batches():
                sizes = self._found.sizes[start : start + batch.num_rows]
                start += batch.num_rows
                if not whole_images:
                    yield from self._cut(batch, sizes, run)
                elif len(places := np.flatnonzero(sizes[:, 0] >= 0)):
                    yield self._batch(batch, places, _whole(len(places)))

    def _cut(self, batch: pa.RecordBatch, sizes: np.ndarray, run: Workers) -> Iterator[pa.RecordBatch]:
        """Rows of the samples of one batch, by windows or with labels of their masks."""
        places: list[np.ndarray] = []
        windows: list[np.ndarray] = []
        labels: list[list[int]] = []
        count = 0

        def joined() -> pa.RecordBatch:
            return self._batch(batch, np.concatenate(places), np.concatenate(windows), labels)

        for (place, cut), found in self._labelled(batch, sizes, run):
            for first in range(0, len(cut), _ROWS):
                part = cut[first : first + _ROWS]
                if count + len(part) > _ROWS:
                    yield joined()
                    places, windows, labels, count = [], [], [], 0
                places.append(np.full(len(part), place))
                windows.append(part)
                labels += found[first : first + _ROWS]
                count += len(part)
        if count:
            yield joined()

    def _batch(
        self,
        batch: pa.RecordBatch,
        places: np.ndarray,
        windows: np.ndarray,
        labels: list[list[int]] | None = None,
    ) -> pa.RecordBatch:
        columns = {name: batch.column(name).take(pa.array(places)) for name in _WORDS}
        for number, name in enumerate(_NUMBERS):
            columns[name] = pa.array(windows[:, number], pa.int32(), mask=windows[:, number] < 0)
        if labels:
            columns["label"] = pa.array(labels, pa.list_(pa.int32()))
        else:
            columns["label"] = self._labels(batch).take(pa.array(places))
        return pa.record_batch(columns)

    def _labels(self, batch: pa.RecordBatch) -> pa.Array:
        """Labels as an index has them: numbers, or lists of them where any sample has a list."""
        column = batch.column("label")
        if self._several:
            return column
        known = column.is_valid().to_numpy(zero_copy_only=False)
        numbers = np.zeros(len(column), dtype=np.int32)
        numbers[known] = column.flatten().to_numpy()
        return pa.array(numbers, mask=~known)

    def _pieces(self, batch: pa.RecordBatch, sizes: np.ndarray) -> Iterator[_Piece]:
        places = np.flatnonzero(sizes[:, 0] >= 0)
        if self._tiling is None:
            for place in places:
                yield int(place), _whole(1)
            return
        for place in places:
            corners = self._tiling.windows(*sizes[place].tolist())
            if self._exclusion:
                sample = Candidate(
                    **{
                        name: batch.column(name)[int(place)].as_py()
                        for name in ("key", "source", "split", "group", "optical", "sar")
                    }
                )
                kept = [not self._exclusion.covers_window(sample, x, y) for x, y in corners.tolist()]
                corners = corners[np.array(kept, dtype=bool)]
            sides = np.full_like(corners, self._tiling.tile)
            yield int(place), np.concatenate([corners, sides], axis=1)

    def _labelled(
        self, batch: pa.RecordBatch, sizes: np.ndarray, run: Workers
    ) -> Iterator[tuple[_Piece, list[list[int]]]]:
        """The pieces, with the labels of each window where masks say them."""
        rule = self._plan.mask_classes
        if rule is None:
            for piece in self._pieces(batch, sizes):
                yield piece, []
            return
        masks = batch.column("mask")
        root = str(self._plan.root)
        jobs = (
            (piece, resolve_inside(root, masks[piece[0]].as_py() or ""))
            for piece in self._pieces(batch, sizes)
        )
        try:
            for (piece, _), labels in run.map(partial(_labels_of_mask, rule), jobs):
                yield piece, labels
        except LabelError as error:
            raise PrepareError(str(error)) from None


def _whole(number: int) -> np.ndarray:
    """What stands for windows where images are whole."""
    return np.full((number, 4), -1, dtype=np.int32)


def _labels_of_mask(rule: MaskClasses, job: tuple[_Piece, str]) -> list[list[int]]:
    (_, cut), path = job
    windows: list[Window | None] = [None if x < 0 else (x, y, w, h) for x, y, w, h in cut.tolist()]
    return rule.of(path, windows)


def rows_in(found: Scan, tiling: Tiling | None) -> int:
    """How many rows there will be, but for excluded windows."""
    sizes = found.sizes[found.usable].astype(np.int64)
    if tiling is None:
        return len(sizes)
    return int(((sizes - tiling.tile) // tiling.stride + 1).prod(axis=1).sum())


class RowCounts:
    """Rows in all, with both sides, by split and by source."""

    def __init__(self) -> None:
        self._rows = 0
        self._paired = 0
        self._by: dict[str, Counter[str]] = {"split": Counter(), "source": Counter()}

    def counted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, counted as they pass."""
        for batch in batches:
            paired = pc.and_(batch.column("optical").is_valid(), batch.column("sar").is_valid())
            self._rows += batch.num_rows
            self._paired += pc.sum(paired.cast(pa.int64())).as_py() or 0
            for name, counts in self._by.items():
                for entry in pc.value_counts(batch.column(name).cast(pa.string())).to_pylist():
                    counts[entry["values"]] += entry["counts"]
            yield batch

    def to_dict(self) -> dict[str, Any]:
        """Facts for the report."""
        return {
            "rows": self._rows,
            "paired": self._paired,
            **{f"rows_by_{name}": dict(sorted(counts.items())) for name, counts in self._by.items()},
        }
