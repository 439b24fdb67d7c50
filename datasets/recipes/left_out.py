"""Samples that are not in the index, and why: counted here, listed in a file however many they are."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

FILE_NAME = "left_out.jsonl"

_IN_MEMORY = 1 << 20


@dataclass(slots=True)
class LeftOut:
    """A sample that is not in the index, and why."""

    sample: str
    kind: str
    reason: str


class LeftOuts:
    """A list of samples left out, which grows on disk.

    Attributes:
        by_kind: How many of each kind there are.
    """

    def __init__(self, entries: Iterable[LeftOut] = ()) -> None:
        self.by_kind: Counter[str] = Counter()
        self._lines = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (closed when this list is forgotten)
            max_size=_IN_MEMORY, mode="w+", encoding="utf-8"
        )
        self.extend(entries)

    def append(self, entry: LeftOut) -> None:
        """Adds one at the end."""
        self.by_kind[entry.kind] += 1
        self._lines.write(json.dumps(asdict(entry)) + "\n")

    def extend(self, entries: Iterable[LeftOut]) -> None:
        """Adds several at the end."""
        for entry in entries:
            self.append(entry)

    def __len__(self) -> int:
        return self.by_kind.total()

    def __iter__(self) -> Iterator[LeftOut]:
        self._lines.seek(0)
        try:
            for line in self._lines:
                yield LeftOut(**json.loads(line))
        finally:
            self._lines.seek(0, os.SEEK_END)

    def first(self, number: int) -> list[LeftOut]:
        """The first of them."""
        return list(islice(self, number))

    def write(self, folder: Path) -> None:
        """Writes all of them to ``left_out.jsonl``, a JSON object a line; no file where there are none."""
        path = folder / FILE_NAME
        if not self:
            path.unlink(missing_ok=True)
            return
        staged = path.with_name(f".{path.name}.writing")
        self._lines.seek(0)
        with open(staged, "w", encoding="utf-8") as whole:
            for line in self._lines:
                whole.write(line)
        self._lines.seek(0, os.SEEK_END)
        os.replace(staged, path)
