"""The index: which images there are, what belongs together and how to standardise it."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from codemae.data.images import Location, Window, resolve_inside, split_member
from codemae.data.index_file import (
    COLUMNS,
    FILE_NAME,
    ROOTS_VARIABLE,
    SHARD_COLUMNS,
    IndexFileError,
    current_root,
    map_index,
    schema,
    vocabulary,
    write_index,
)
from codemae.data.statistics import IndexStatistics, SourceStatistics, mixture, read_statistics
from codemae.modality import get_modality

__all__ = ["FILE_NAME", "Index", "IndexFileError", "open_index", "schema", "write_index"]


PathLike: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True)
class _Part:
    """One index folder."""

    folder: str
    root: str
    table: pa.Table
    columns: dict[str, pa.ChunkedArray]
    sources: tuple[str, ...]
    splits: tuple[str, ...]
    statistics: IndexStatistics


class Index:
    """Rows of one or several index folders.

    A row is named by its place among *all* rows of all folders, whatever split is selected, so row ids mean
    the same in every process and after a resume. ``rows`` lists the selected ones.

    Args:
        parts: The folders, opened.
        splits: Splits to select; None selects every row.
    """

    def __init__(self, parts: Sequence[_Part], splits: tuple[str, ...] | None = None) -> None:
        self._parts = tuple(parts)
        self.splits = splits
        self._starts = np.cumsum([0, *(part.table.num_rows for part in parts)])
        self._check_statistics()
        self.rows = self._select()

    def _check_statistics(self) -> None:
        seen: dict[tuple[str, str], tuple[SourceStatistics, str]] = {}
        for part in self._parts:
            for source in part.sources:
                for modality, statistics in part.statistics.sources.get(source, {}).items():
                    known, folder = seen.setdefault((source, modality), (statistics, part.folder))
                    if known != statistics:
                        raise IndexFileError(
                            f"{folder} and {part.folder} both have a source {source!r} but with different "
                            f"{modality} statistics; prepare one of them again with another --source NAME"
                        )

    def _select(self) -> np.ndarray:
        """Selected rows, int32, ascending."""
        if self.splits is None:
            return np.arange(self._starts[-1], dtype=np.int32)
        chosen = []
        for part, start in zip(self._parts, self._starts[:-1], strict=True):
            wanted = [code for code, name in enumerate(part.splits) if name in self.splits]
            if not wanted:
                raise IndexFileError(
                    f"{part.folder} has no split {' or '.join(map(repr, self.splits))}; "
                    f"it has {', '.join(map(repr, part.splits))}"
                )
            codes = part.columns["split"].to_numpy()
            chosen.append(np.flatnonzero(np.isin(codes, wanted)).astype(np.int32) + np.int32(start))
        return np.concatenate(chosen)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def total_rows(self) -> int:
        """Rows of all splits."""
        return int(self._starts[-1])

    @property
    def folders(self) -> tuple[str, ...]:
        """The index folders."""
        return tuple(part.folder for part in self._parts)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in all folders that have any.

        Raises:
            IndexFileError: Folders disagree.
        """
        known = {part.statistics.classes for part in self._parts if part.statistics.classes}
        if len(known) > 1:
            raise IndexFileError(f"index folders have different classes: {sorted(known)}")
        return known.pop() if known else ()

    @classmethod
    def merge(cls, indexes: Sequence["Index"]) -> "Index":
        """One index of the folders of several, with the same splits selected.

        Raises:
            IndexFileError: They select different splits.
        """
        if len({index.splits for index in indexes}) != 1:
            raise IndexFileError(f"cannot merge selections of {[index.splits for index in indexes]}")
        return cls([part for index in indexes for part in index._parts], indexes[0].splits)

    def _locate(self, row: int) -> tuple[_Part, int]:
        if not 0 <= row < self._starts[-1]:
            raise IndexError(f"row {row} is not among the {self._starts[-1]} rows of the index")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._parts[number], int(row - self._starts[number])

    def cell(self, row: int, column: str) -> Any:
        """One value, None where there is none.

        Raises:
            KeyError: There is no such column.
        """
        if column not in COLUMNS:
            raise KeyError(f"an index has no column {column!r}; it has {', '.join(COLUMNS)}")
        part, place = self._locate(int(row))
        cells = part.columns.get(column)
        if cells is None:
            return None
        value = cells[place].as_py()
        if column == "source":
            return part.sources[value]
        return part.splits[value] if column == "split" else value

    def has(self, modality: str) -> np.ndarray:
        """For each selected row whether it has an image of this modality."""
        present = [
            part.columns[modality].is_valid().to_numpy()
            if modality in part.columns
            else np.zeros(part.table.num_rows, dtype=bool)
            for part in self._parts
        ]
        return np.concatenate(present)[self.rows]

    def _where(self, mask: np.ndarray) -> np.ndarray:
        """Selected rows of a mask; all of them without a copy, which counts at a million rows."""
        return self.rows if mask.all() else self.rows[mask]

    @cached_property
    def paired_rows(self) -> np.ndarray:
        """Selected rows with both sides, int32."""
        return self._where(self.has("optical") & self.has("sar"))

    @cached_property
    def optical_only_rows(self) -> np.ndarray:
        """Selected rows with an optical image alone, int32."""
        return self._where(self.has("optical") & ~self.has("sar"))

    @cached_property
    def sar_only_rows(self) -> np.ndarray:
        """Selected rows with a SAR image alone, int32."""
        return self._where(~self.has("optical") & self.has("sar"))

    def rows_with(self, modality: str) -> np.ndarray:
        """Selected rows that have an image of this modality, int32."""
        return self._where(self.has(get_modality(modality).name))

    def location(self, row: int, modality: str) -> Location:
        """Where the bytes of one image lie; ``mask`` and ``post`` (the second date) are images, too.

        Raises:
            IndexFileError: The row has no such image.
            PathError: The path leaves the root of its index.
        """
        relative = self.cell(row, modality)
        if relative is None:
            raise IndexFileError(f"row {row} has no {modality} image")
        part, _ = self._locate(int(row))
        packed = f"{modality}_offset" in COLUMNS
        offset = self.cell(row, f"{modality}_offset") if packed else None
        if offset is None:
            return Location(resolve_inside(part.root, relative))
        shard, member = split_member(relative)
        return Location(resolve_inside(part.root, shard), offset, self.cell(row, f"{modality}_size"), member)

    def window(self, row: int) -> Window | None:
        """The part of the image that is the sample, None for all of it."""
        x = self.cell(row, "x")
        if x is None:
            return None
        return x, self.cell(row, "y"), self.cell(row, "width"), self.cell(row, "height")

    def source(self, row: int) -> str:
        """The source a row belongs to."""
        return str(self.cell(row, "source"))

    def describe(self, row: int, modality: str) -> str:
        """A row in words, for lists of bad samples."""
        return f"row={row} source={self.source(row)} {modality}={self.cell(row, modality)}"

    def stats(self, source: str, modality: str) -> SourceStatistics:
        """Statistics of one modality of one source.

        Raises:
            IndexFileError: There are none; nothing stands in for them.
        """
        for part in self._parts:
            found = part.statistics.sources.get(source, {}).get(modality)
            if source in part.sources and found:
                return found
        known = sorted({source for part in self._parts for source in part.sources})
        raise IndexFileError(
            f"no {modality} statistics of source {source!r}; the index has {', '.join(known)}"
        )

    def source_counts(self, modality: str) -> dict[str, int]:
        """Source name to number of selected rows with this modality."""
        counts: dict[str, int] = {}
        rows = self.rows_with(modality)
        for part, start in zip(self._parts, self._starts[:-1], strict=True):
            mine = rows[(rows >= start) & (rows < start + part.table.num_rows)] - start
            codes = part.columns["source"].to_numpy()[mine]
            for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
                name = part.sources[code]
                counts[name] = counts.get(name, 0) + int(count)
        return counts

    def pooled_stats(self, modality: str) -> SourceStatistics:
        """Statistics of all selected images of a modality together, sources weighted by their rows.

        Raises:
            IndexFileError: No selected row has this modality.
        """
        counts = self.source_counts(modality)
        if not counts:
            raise IndexFileError(f"no selected row of {', '.join(self.folders)} has a {modality} image")
        parts = [(self.stats(source, modality), float(count)) for source, count in sorted(counts.items())]
        return parts[0][0] if len(parts) == 1 else mixture(parts)

    def labels(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Labels of the selected (or given) rows: (n,) int64, or (n, K) float32 of 0 and 1 for lists.

        Raises:
            IndexFileError: A row has none.
        """
        wanted = self.rows if rows is None else rows
        values = [self.cell(int(row), "label") for row in wanted]
        if any(value is None for value in values):
            without = int(wanted[next(i for i, value in enumerate(values) if value is None)])
            raise IndexFileError(
                f"row {without} of {', '.join(self.folders)} has no label; labels come with "
                "python datasets/prepare.py folder --root DIR --modality optical|sar --out INDEX_DIR"
            )
        if not any(isinstance(value, list) for value in values):
            return np.array(values, dtype=np.int64)
        several = np.zeros((len(values), len(self.classes)), dtype=np.float32)
        for place, value in enumerate(values):
            if not all(0 <= number < len(self.classes) for number in value):
                raise IndexFileError(
                    f"row {wanted[place]} of {', '.join(self.folders)} has the labels {value}, the class "
                    f"list only 0 to {len(self.classes) - 1}; prepare the index again"
                )
            several[place, value] = 1
        return several

    def hash(self) -> str:
        """Split hash: equal for equal selected samples in equal order, wherever they lie, packed or not."""
        digest = hashlib.sha256()
        for part, start in zip(self._parts, self._starts[:-1], strict=True):
            mine = self.rows[(self.rows >= start) & (self.rows < start + part.table.num_rows)] - start
            for column in COLUMNS:
                digest.update(column.encode())
                if column not in part.columns or column in SHARD_COLUMNS:
                    continue
                values = part.columns[column]
                if f"{column}_offset" in part.columns:
                    values = _unpacked(values, part.columns[f"{column}_offset"])
                if column in ("source", "split"):
                    words = np.array(part.sources if column == "source" else part.splits)
                    cells = pa.chunked_array([pa.array(words[values.to_numpy()[mine]])])
                else:
                    cells = values.take(pa.array(mine)) if len(mine) < len(values) else values
                _update(digest, cells)
        return digest.hexdigest()[:16]

    def statistics_hash(self) -> str:
        """Hash of the statistics that standardise the images."""
        merged: dict[str, dict[str, SourceStatistics]] = {}
        for part in self._parts:
            for source in part.sources:
                merged.setdefault(source, {}).update(part.statistics.sources.get(source, {}))
        return IndexStatistics(sources=merged).hash()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles as folders to map again, not as rows."""
        return open_index, (self.folders, self.splits, tuple(part.root for part in self._parts))


def _unpacked(paths: pa.ChunkedArray, offsets: pa.ChunkedArray) -> pa.ChunkedArray:
    """Paths of images as they were before packing."""
    names = [
        path if path is None or offset is None else split_member(path)[1] or path
        for path, offset in zip(paths.to_pylist(), offsets.to_pylist(), strict=True)
    ]
    return pa.chunked_array([pa.array(names, pa.string())])


def _update(digest: Any, cells: pa.ChunkedArray) -> None:
    """Feeds cells into a hash, whatever their chunks."""
    if pa.types.is_list(cells.type):
        digest.update(repr(cells.to_pylist()).encode())
        return
    digest.update(np.packbits(cells.is_valid().to_numpy()).tobytes())
    if pa.types.is_string(cells.type):
        for chunk in filter(len, cells.chunks):
            digest.update("\0".join(value or "" for value in chunk.to_pylist()).encode() + b"\0")
    else:
        digest.update(cells.cast(pa.int64()).fill_null(-1).to_numpy().tobytes())


def open_index(
    dirs: PathLike | Sequence[PathLike],
    split: str | Sequence[str] | None = None,
    root: PathLike | Sequence[PathLike | None] | None = None,
) -> Index:
    """Opens index folders as one index.

    Args:
        dirs: One folder or several, as ``datasets/prepare.py`` writes them.
        split: Split or splits to select; None selects all rows.
        root: Where the images are now, if they have moved: one folder for all, or one per index. Without it
            the recorded root holds, after the replacements in the environment variable ``CODEMAE_DATA_ROOTS``
            (``/old/place=/new/place``, several separated by ``:``).

    Raises:
        IndexFileError: An index is missing or damaged, its images' root is gone, or a split does not exist.
        PathError: A path of an index leaves its root.
    """
    folders = [Path(dirs)] if isinstance(dirs, (str, os.PathLike)) else [Path(folder) for folder in dirs]
    if not folders:
        raise IndexFileError("no index folder given")
    if root is None or isinstance(root, (str, os.PathLike)):
        roots: Sequence[PathLike | None] = [root] * len(folders)
    else:
        roots = root
    if len(roots) != len(folders):
        raise IndexFileError(f"{len(folders)} index folders but {len(roots)} roots")
    parts = [_open_part(folder, place) for folder, place in zip(folders, roots, strict=True)]
    splits = None if split is None else (split,) if isinstance(split, str) else tuple(split)
    return Index(parts, splits)


def _open_part(folder: Path, root: PathLike | None) -> _Part:
    table = map_index(folder)
    statistics = read_statistics(folder)
    place = str(root) if root is not None else current_root(table)
    if not os.path.isdir(place):
        raise IndexFileError(
            f"the images of {folder} should lie in {place!r}, which does not exist; if they have moved, set "
            f"{ROOTS_VARIABLE}={place}=NEW_PLACE or pass root=NEW_PLACE to open_index"
        )
    sources = vocabulary(table, "source")
    unknown = [source for source in sources if source not in statistics.sources]
    if unknown:
        raise IndexFileError(f"stats.yaml of {folder} has no source {unknown[0]!r}; prepare the index again")
    return _Part(
        folder=str(folder),
        root=place,
        table=table,
        columns={name: table.column(name) for name in table.schema.names},
        sources=sources,
        splits=vocabulary(table, "split"),
        statistics=statistics,
    )
