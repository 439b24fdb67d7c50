"""Which rows train, which choose, which are reported: the lists as given, or one disaster held out."""

import json
import re
from pathlib import Path

import numpy as np
from damage_config import DamageError, DataConfig

from codemae.data.index import Index, open_index
from codemae.data.randomness import counter_rng


class Events:
    """Names the disaster of a row."""

    def __init__(self, index: Index, pattern: str) -> None:
        self._index = index
        self._pattern = re.compile(pattern)

    def of(self, row: int) -> str:
        """The disaster, or the row's group where the pattern does not match."""
        group = str(self._index.cell(row, "group"))
        found = self._pattern.search(group)
        return found.group(1) if found and found.groups() else group


class Splits:
    """Rows by what they are used for.

    Args:
        config: Which splits and which disaster is held out.
        seed: Of the shots that are drawn where no list names them.

    Attributes:
        index: All rows of all splits.
        train: Index rows.
        select: Index rows.

    Raises:
        DamageError: A split has no row, or the held-out disaster has too few.
        IndexFileError: No index, or no such split.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        if not config.index:
            raise DamageError(
                "--data.index names no folder; make one with `python datasets/prepare.py bright`"
            )
        self._config = config
        self.index = open_index(config.index)
        self.events = Events(self.index, config.event)
        self._shots: tuple[set[int], set[int]] = (set(), set())
        if config.held_out_event is not None:
            self._shots = self._draw_shots(config.held_out_event, seed)

    def _rows(self, split: str) -> np.ndarray:
        rows = open_index(self._config.index, split).rows
        if not len(rows):
            raise DamageError(f"split {split!r} of {', '.join(self.index.folders)} has no row")
        return rows

    def _of(self, event: str, rows: np.ndarray) -> list[int]:
        return [row for row in rows.tolist() if self.events.of(row) == event]

    def _draw_shots(self, event: str, seed: int) -> tuple[set[int], set[int]]:
        config = self._config
        tiles = self._of(event, self.index.rows)
        if not tiles:
            known = sorted({self.events.of(row) for row in self.index.rows.tolist()})
            raise DamageError(f"no tile of the disaster {event!r}; the index has {', '.join(known)}")
        if not config.shots:
            return set(), set()
        if config.shot_train is not None and config.shot_select is not None:
            train, select = (self._listed(file, tiles) for file in (config.shot_train, config.shot_select))
        elif len(tiles) > 2:
            order = counter_rng(seed, 0, 0, -1, f"shots:{event}").permutation(len(tiles))
            train, select = {tiles[order[0]]}, {tiles[order[1]]}
        else:
            raise DamageError(f"{event!r} has {len(tiles)} tiles; one shot needs at least 3")
        if train & select:
            raise DamageError("--data.shot_train and --data.shot_select name the same tile")
        return train, select

    def _listed(self, file: str, tiles: list[int]) -> set[int]:
        try:
            names = {line.strip() for line in Path(file).read_text().splitlines() if line.strip()}
        except OSError as error:
            raise DamageError(f"{file}: {error.strerror}") from None
        found = {row for row in tiles if self.key(row) in names}
        if not found:
            raise DamageError(f"{file} names no tile of {self._config.held_out_event!r}")
        return found

    def key(self, row: int) -> str:
        """Name of a tile, as BRIGHT's lists have it."""
        return str(self.index.cell(row, "group"))

    @property
    def train(self) -> np.ndarray:
        """Rows to train on."""
        return self._without(self._config.train_split, self._shots[0])

    @property
    def select(self) -> np.ndarray:
        """Rows that choose the step."""
        return self._without(self._config.select_split, self._shots[1])

    def _without(self, split: str, shots: set[int]) -> np.ndarray:
        rows, event = self._rows(split), self._config.held_out_event
        if event is None:
            return rows
        kept = {row for row in rows.tolist() if self.events.of(row) != event} | shots
        if not kept:
            raise DamageError(
                f"split {split!r} has tiles of {event!r} alone; name another in --data.train_split or "
                "--data.select_split"
            )
        return np.array(sorted(kept), dtype=np.int32)

    def report(self, split: str) -> np.ndarray:
        """Rows of a split that figures are measured on.

        Raises:
            DamageError: None is left.
        """
        config = self._config
        if config.held_out_event is None:
            return self._rows(split)
        pool = self.index.rows if config.cross_event_report == "all" else self._rows(split)
        used = self._shots[0] | self._shots[1]
        rows = [row for row in self._of(config.held_out_event, pool) if row not in used]
        if not rows:
            raise DamageError(f"no tile of {config.held_out_event!r} is left to report on")
        return np.array(rows, dtype=np.int32)

    def report_names(self) -> list[str]:
        """What the reported sets are called; one name where all tiles of a held-out disaster are reported."""
        config = self._config
        if config.held_out_event is not None and config.cross_event_report == "all":
            return [config.held_out_event]
        return list(config.report_splits)

    def rule(self) -> str:
        """How the rows were chosen, in words."""
        config = self._config
        if config.held_out_event is None:
            return "the index's splits"
        kind = "one-shot" if config.shots else "zero-shot"
        return (
            f"cross-event {kind}, {config.held_out_event} held out, reported on {config.cross_event_report}"
        )

    def repeated(self) -> dict[str, str]:
        """Tiles that stood in two of the published lists, as ``prepare.py`` wrote them in its report."""
        found: dict[str, str] = {}
        for folder in self.index.folders:
            report = Path(folder) / "report.json"
            if report.is_file():
                notes = json.loads(report.read_text())
                found |= _find(notes, "names of two lists, kept in the first")
        return found


def _find(tree: object, key: str) -> dict[str, str]:
    """A mapping under a key at whatever depth of a report."""
    if not isinstance(tree, dict):
        return {}
    if isinstance(tree.get(key), dict):
        return dict(tree[key])
    return next((found for value in tree.values() if (found := _find(value, key))), {})
