"""The samples a recipe found, kept in columns: a million of them take what their names take."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipes.listing import hashed_alike, hashes_of

BATCH = 4096

_WORDS = ("key", "source", "split", "group", "optical", "sar", "mask", "post")
_SCHEMA = pa.schema([(name, pa.string()) for name in _WORDS] + [("label", pa.list_(pa.int32()))])


@dataclass(slots=True)
class Candidate:
    """A sample that will be in the index if its images can be read.

    Attributes:
        key: Name in reports and in ``--exclude`` files.
        source: Source it belongs to.
        split: Its split.
        group: Scene or place; a split never cuts a group.
        optical: Path of the optical image, relative to the plan's root.
        sar: Path of the SAR image.
        mask: Path of the mask.
        post: Path of the image of the second date.
        label: Class number, or numbers of all classes present.
    """

    key: str
    source: str
    split: str
    group: str
    optical: str | None = None
    sar: str | None = None
    mask: str | None = None
    post: str | None = None
    label: int | list[int] | None = None

    @property
    def paths(self) -> dict[str, str]:
        """Modality to path, of the images of the first date."""
        return {name: path for name in ("optical", "sar") if (path := getattr(self, name)) is not None}


class Candidates:
    """Candidates in the order they were found, as Arrow columns.

    Iterating makes ``Candidate`` objects for the moment: changing one changes nothing here, ``update`` does.

    Attributes:
        several: Whether labels are lists of classes.
    """

    def __init__(self, found: Iterable[Candidate] = ()) -> None:
        self.several = False
        self._batches: list[pa.RecordBatch] = []
        self._waiting: list[Candidate] = []
        self._stored = 0
        for candidate in found:
            self.append(candidate)

    def append(self, candidate: Candidate) -> None:
        """Adds one at the end."""
        self.several = self.several or isinstance(candidate.label, list)
        self._waiting.append(candidate)
        if len(self._waiting) >= BATCH:
            self._store()

    def __len__(self) -> int:
        return self._stored + len(self._waiting)

    def __iter__(self) -> Iterator[Candidate]:
        for batch in self.batches():
            yield from self._objects(batch)

    def batches(self) -> list[pa.RecordBatch]:
        """All of them: the fields of ``Candidate`` as columns, a label as a list."""
        self._store()
        return self._batches

    def column(self, name: str) -> pa.ChunkedArray:
        """One field of all of them."""
        batches = self.batches()
        return pa.chunked_array([batch.column(name) for batch in batches], _SCHEMA.field(name).type)

    def replace(self, name: str, values: pa.Array) -> None:
        """Gives one field of all of them new values, in their order."""
        place = _SCHEMA.get_field_index(name)
        start = 0
        for number, batch in enumerate(self.batches()):
            part = values.slice(start, batch.num_rows)
            part = pa.concat_arrays([part.cast(_SCHEMA.field(name).type)])
            columns = [part if i == place else column for i, column in enumerate(batch.columns)]
            self._batches[number] = pa.record_batch(columns, schema=_SCHEMA)
            start += batch.num_rows

    def update(self, change: Callable[[Candidate], Candidate | None]) -> None:
        """Puts what ``change`` returns in the place of each; None drops it."""
        kept: list[pa.RecordBatch] = []
        self._store()
        for number, batch in enumerate(self._batches):
            changed = [new for old in self._objects(batch) if (new := change(old)) is not None]
            self._batches[number] = batch.slice(0, 0)
            if changed:
                kept.append(self._columns(changed))
        self._batches = kept
        self._stored = sum(batch.num_rows for batch in kept)

    def renumber(self, order: dict[int, int]) -> None:
        """Replaces class numbers of single labels by others."""
        numbers = np.zeros(max(order, default=0) + 1, dtype=np.int32)
        for old, new in order.items():
            numbers[old] = new
        for place, batch in enumerate(self.batches()):
            label = batch.column("label")
            changed = pa.array(numbers[label.values.to_numpy()])
            lists = pa.ListArray.from_arrays(label.offsets, changed, mask=label.is_null())
            self._batches[place] = pa.record_batch([*batch.columns[:-1], lists], schema=_SCHEMA)

    def class_numbers(self) -> np.ndarray:
        """(number of candidates,) int64: the single class of each, 0 where there is none."""
        if self.several:
            return np.zeros(len(self), dtype=np.int64)
        numbers = np.zeros(len(self), dtype=np.int64)
        labels = self.column("label")
        numbers[labels.is_valid().to_numpy()] = pc.list_flatten(labels).to_numpy()
        return numbers

    def has_doubled_keys(self) -> bool:
        """Whether two of them have one key."""
        keys = self.column("key")
        hashes = [hashes_of(chunk.to_pylist()) for chunk in keys.chunks]
        alike = hashed_alike(np.concatenate([np.zeros(0, np.int64), *hashes])).tolist()
        return len({keys[place].as_py() for place in alike}) < len(alike)

    def _store(self) -> None:
        if self._waiting:
            batch = self._columns(self._waiting)
            self._batches.append(batch)
            self._stored += batch.num_rows
            self._waiting = []

    def _columns(self, candidates: list[Candidate]) -> pa.RecordBatch:
        words: list[pa.Array] = [
            pa.array([getattr(candidate, name) for candidate in candidates], pa.string()) for name in _WORDS
        ]
        labels = [[label] if isinstance(label := entry.label, int) else label for entry in candidates]
        return pa.record_batch([*words, pa.array(labels, pa.list_(pa.int32()))], schema=_SCHEMA)

    def _objects(self, batch: pa.RecordBatch) -> Iterator[Candidate]:
        columns: list[list[Any]] = [column.to_pylist() for column in batch.columns]
        if not self.several:
            columns[-1] = [label and label[0] for label in columns[-1]]
        yield from map(Candidate, *columns)
