"""The files of an index: ``index.parquet``, ``stats.yaml`` and the memory-mapped copy of the first.

``index.parquet`` is the file that is kept and exchanged. Parquet has to be decoded to be read, once in every
process, so the first opening writes the same rows beside it as ``index.arrow``, which all processes of a node
then share through the page cache.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from codemae.data.images import PathError, check_relative
from codemae.data.statistics import FILE_NAME as STATISTICS_NAME
from codemae.data.statistics import IndexStatistics
from codemae.modality import MODALITY_NAMES

FILE_NAME = "index.parquet"
CACHE_NAME = "index.arrow"
ROOTS_VARIABLE = "CODEMAE_DATA_ROOTS"

_CODED = ("source", "split")
_REQUIRED = (*_CODED, "group")
_PATHS = ("optical", "sar", "mask", "post")
SHARD_COLUMNS = ("optical_offset", "optical_size", "sar_offset", "sar_size")
_WINDOW = ("x", "y", "width", "height")
COLUMNS = (*_REQUIRED, *_PATHS, *SHARD_COLUMNS, *_WINDOW, "label")
_CHUNK = 16_384
_HOW = (
    "make one with\n"
    "  python datasets/prepare.py pairs --optical DIR --sar DIR --out {folder}\n"
    "or, for a folder per class,\n"
    "  python datasets/prepare.py folder --root DIR --modality optical|sar --out {folder}"
)


class IndexFileError(ValueError):
    """An index is missing, damaged or does not fit what is asked of it."""


def schema(multi_label: bool = False) -> pa.Schema:
    """The columns of ``index.parquet``; all but source, split and group may be null."""
    code = pa.dictionary(pa.int32(), pa.string())
    label = pa.list_(pa.int32()) if multi_label else pa.int32()
    return pa.schema(
        [pa.field(name, code, nullable=False) for name in _CODED]
        + [pa.field("group", pa.string(), nullable=False)]
        + [(name, pa.string()) for name in _PATHS]
        + [(name, pa.int64()) for name in SHARD_COLUMNS]
        + [(name, pa.int32()) for name in _WINDOW]
        + [("label", label)]
    )


def write_index(
    folder: str | os.PathLike[str],
    rows: pa.Table | Iterable[pa.RecordBatch] | Iterable[Mapping[str, Any]],
    statistics: IndexStatistics,
    root: str | os.PathLike[str],
) -> Path:
    """Writes ``index.parquet`` and ``stats.yaml``, all or nothing.

    Args:
        folder: Where to; made if missing. What is there stays until the new files are complete.
        rows: A table, batches of one, or a mapping per row; columns that are absent are null. Batches are
            written as they come, so that an index of any length passes through little memory.
        statistics: Statistics of every source and modality the rows name.
        root: Folder that the rows' paths are relative to.

    Raises:
        IndexFileError: The rows contradict the format: no image, a group in two splits, a source without
            statistics.
        PathError: A path leaves the root.
    """
    target = Path(folder)
    made = not target.exists()
    target.mkdir(parents=True, exist_ok=True)
    metadata = {"codemae.format": "1", "codemae.root": str(Path(root).resolve())}
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=target) as staging:
            staged = Path(staging)
            _write_rows(staged / FILE_NAME, _record_batches(rows), statistics, metadata)
            (staged / STATISTICS_NAME).write_text(
                yaml.safe_dump(statistics.to_dict(), sort_keys=False, default_flow_style=None, width=110)
            )
            for name in (STATISTICS_NAME, FILE_NAME):
                with open(staged / name, "rb") as written:
                    os.fsync(written.fileno())
            for name in (STATISTICS_NAME, FILE_NAME):
                os.replace(staged / name, target / name)
    except BaseException:
        if made:
            with suppress(OSError):
                target.rmdir()
        raise
    map_index(target)
    return target / FILE_NAME


def _record_batches(
    rows: pa.Table | Iterable[pa.RecordBatch] | Iterable[Mapping[str, Any]],
) -> Iterator[pa.RecordBatch]:
    if isinstance(rows, pa.Table):
        yield from rows.to_batches(max_chunksize=_CHUNK)
        return
    remaining = iter(rows)
    first = next(remaining, None)
    if isinstance(first, pa.RecordBatch):
        yield first
        yield from remaining
    elif first is not None:
        listed = [first, *remaining]
        unknown = {name for row in listed for name in row} - set(COLUMNS)
        if unknown:
            raise _unknown_columns(unknown)
        multi = any(isinstance(row.get("label"), (list, tuple)) for row in listed)
        types = {field.name: field.type for field in schema(multi)} | dict.fromkeys(_CODED, pa.string())
        columns = {name: pa.array([row.get(name) for row in listed], types[name]) for name in COLUMNS}
        yield pa.record_batch(columns)


def _write_rows(
    path: Path, batches: Iterator[pa.RecordBatch], statistics: IndexStatistics, metadata: dict[str, str]
) -> None:
    """Checks batch by batch and writes row groups of ``_CHUNK`` rows."""
    wanted: pa.Schema | None = None
    waiting: list[pa.RecordBatch] = []
    groups = _Groups()

    def write_waiting() -> None:
        writer.write_table(pa.Table.from_batches(waiting).unify_dictionaries(), row_group_size=_CHUNK)
        waiting.clear()

    with ExitStack() as opened:
        for batch in batches:
            if not batch.num_rows:
                continue
            if wanted is None:
                wanted = schema(_is_multi_label(batch)).with_metadata(metadata)
                writer = opened.enter_context(pq.ParquetWriter(path, wanted, compression="none"))
            conformed = _conform(batch, wanted)
            _check(conformed, statistics)
            groups.add(conformed)
            waiting.append(conformed)
            if sum(part.num_rows for part in waiting) >= _CHUNK:
                write_waiting()
        if waiting:
            write_waiting()
    if wanted is None:
        raise IndexFileError("not a single sample is left to index")
    groups.check(path)


def _is_multi_label(batch: pa.RecordBatch) -> bool:
    return "label" in batch.schema.names and pa.types.is_list(batch.schema.field("label").type)


def _unknown_columns(names: set[str]) -> IndexFileError:
    return IndexFileError(f"unknown columns {sorted(names)}; an index has {', '.join(COLUMNS)}")


def _conform(batch: pa.RecordBatch, wanted: pa.Schema) -> pa.RecordBatch:
    """The columns of an index in their order and types, those that are absent null."""
    unknown = set(batch.schema.names) - set(COLUMNS)
    if unknown:
        raise _unknown_columns(unknown)
    arrays = []
    for field in wanted:
        if field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        elif field.name in _CODED:
            arrays.append(batch.column(field.name).cast(pa.string()).dictionary_encode())
        else:
            arrays.append(batch.column(field.name).cast(field.type))
    return pa.record_batch(arrays, schema=wanted)


def _check(batch: pa.RecordBatch, statistics: IndexStatistics) -> None:
    for name in _REQUIRED:
        if batch.column(name).null_count:
            raise IndexFileError(
                f"column {name!r} has empty cells; every row needs a source, a split and a group"
            )
    imageless = pc.and_(batch.column("optical").is_null(), batch.column("sar").is_null())
    if pc.any(imageless).as_py():
        raise IndexFileError("a row has neither an optical nor a SAR image")
    _check_paths(batch)
    _check_sources(batch, statistics)


class _Groups:
    """Refuses a split that cuts a group, with 9 bytes held a row.

    What is held is a hash of source and group, and the split. Where one hash has two splits the rows are read
    once more, so that neither a hit nor a miss rests on hashes alone.
    """

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._splits: list[np.ndarray] = []
        self._number: dict[str, int] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Notes the rows of a batch."""
        self._hashes.append(_group_hashes(batch))
        split = batch.column("split")
        codes = [self._number.setdefault(name, len(self._number)) for name in split.dictionary.to_pylist()]
        self._splits.append(np.array(codes, dtype=np.int32)[split.indices.to_numpy()])

    def check(self, path: Path) -> None:
        """Looks for cut groups among all rows noted.

        Args:
            path: The rows as written.

        Raises:
            IndexFileError: There is one.
        """
        hashes, splits = np.concatenate(self._hashes), np.concatenate(self._splits)
        order = np.argsort(hashes)
        hashes, splits = hashes[order], splits[order]
        same = hashes[1:] == hashes[:-1]
        suspicious = np.unique(hashes[1:][same & (splits[1:] != splits[:-1])])
        if not len(suspicious):
            return
        met: dict[tuple[str, str], set[str]] = {}
        for batch in pq.ParquetFile(path).iter_batches(columns=["source", "group", "split"]):
            part = batch.filter(pa.array(np.isin(_group_hashes(batch), suspicious)))
            for row in part.to_pylist():
                met.setdefault((row["source"], row["group"]), set()).add(row["split"])
        torn = [name for name, found in met.items() if len(found) > 1]
        if torn:
            source, group = torn[0]
            raise IndexFileError(
                f"{len(torn)} groups lie in more than one split, such as {group!r} of {source!r}; a split "
                "must not cut a group (scene or place)"
            )


def _group_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """(rows,) int64: a hash of source and group, of this process."""
    names = zip(batch.column("source").to_pylist(), batch.column("group").to_pylist(), strict=True)
    return np.fromiter(map(hash, names), dtype=np.int64, count=batch.num_rows)


def _check_paths(table: pa.Table | pa.RecordBatch) -> None:
    for name in set(_PATHS) & set(table.schema.names):
        column = table.column(name)
        if column.null_count == len(column):
            continue
        suspicious = pc.match_substring_regex(column, r"(^/)|(^\\)|(^.:)|((^|[/\\])\.\.([/\\]|$))")
        for path in column.filter(pc.fill_null(suspicious, False)).slice(0, 1).to_pylist():
            check_relative(path)
            raise PathError(f"{path!r} is not a path inside the root")


def _check_sources(batch: pa.RecordBatch, statistics: IndexStatistics) -> None:
    for modality in MODALITY_NAMES:
        used = pc.unique(batch.column("source").filter(batch.column(modality).is_valid())).to_pylist()
        for source in used:
            if modality not in statistics.sources.get(source, {}):
                raise IndexFileError(
                    f"{STATISTICS_NAME} has no entry for the {modality} images of source {source!r}; "
                    "run datasets/prepare.py again"
                )


def missing_index(folder: Path) -> IndexFileError:
    """The error for a folder that holds no index: what was looked for and what to run."""
    if not folder.is_dir():
        return IndexFileError(f"no index folder at {folder}; " + _HOW.format(folder=folder))
    inside = sorted(entry.name for entry in folder.iterdir())[:4]
    found = f"it holds {', '.join(inside)}" if inside else "it is empty"
    return IndexFileError(f"no {FILE_NAME} in {folder} ({found}); " + _HOW.format(folder="INDEX_DIR"))


def map_index(folder: Path) -> pa.Table:
    """The rows of an index, memory-mapped; columns without a value are left out.

    ``source`` and ``split`` come as int16 codes into the lists that ``vocabulary`` reads from the table.

    Raises:
        IndexFileError: There is no index, or it is damaged.
        PathError: A path leaves the root.
    """
    parquet = folder / FILE_NAME
    if not parquet.is_file():
        raise missing_index(folder)
    status = parquet.stat()
    stamp = f"{status.st_size}:{status.st_mtime_ns}"
    digest = hashlib.sha256(f"{parquet.resolve()}:{stamp}".encode()).hexdigest()[:24]
    elsewhere = Path(tempfile.gettempdir()) / f"codemae-index-{os.getuid()}-{digest}.arrow"
    for place in (folder / CACHE_NAME, elsewhere):
        table = _map_cache(place, stamp)
        if table is not None:
            return table
        try:
            _write_cache(parquet, place, stamp)
        except OSError:
            continue  # a read-only index folder; the next place is writable
        table = _map_cache(place, stamp)
        if table is not None:
            return table
    raise IndexFileError(
        f"neither {folder} nor {elsewhere.parent} can hold {CACHE_NAME}; make one of them writable"
    )


def vocabulary(table: pa.Table, column: str) -> tuple[str, ...]:
    """The words behind the codes of ``source`` or ``split``."""
    return tuple(json.loads(table.schema.metadata[f"codemae.{column}s".encode()]))


def recorded_root(table: pa.Table) -> str:
    """The folder that paths were relative to when the index was written."""
    return (table.schema.metadata or {}).get(b"codemae.root", b"").decode()


def current_root(table: pa.Table) -> str:
    """The recorded root after the replacements in the environment variable ``CODEMAE_DATA_ROOTS``.

    Raises:
        IndexFileError: The variable does not hold ``OLD=NEW`` entries.
    """
    root = recorded_root(table)
    for replacement in filter(None, os.environ.get(ROOTS_VARIABLE, "").split(os.pathsep)):
        old, equals, new = replacement.partition("=")
        if not equals:
            raise IndexFileError(
                f"{ROOTS_VARIABLE} holds {replacement!r}; write OLD=NEW, several separated by ':'"
            )
        if root == old or root.startswith(old.rstrip("/") + "/"):
            return new + root[len(old) :]
    return root


def _map_cache(path: Path, stamp: str) -> pa.Table | None:
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None
    return table if (table.schema.metadata or {}).get(b"codemae.stamp") == stamp.encode() else None


def _write_cache(parquet: Path, target: Path, stamp: str) -> None:
    """Streams the Parquet rows into an Arrow file whose buffers can be mapped as they are."""
    try:
        file = pq.ParquetFile(parquet)
        names = file.schema_arrow.names
        lacking = [name for name in (*_REQUIRED, *MODALITY_NAMES) if name not in names]
        if lacking:
            raise IndexFileError(
                f"{parquet} lacks the columns {lacking}; it is not an index of datasets/prepare.py"
            )
        metadata = dict(file.schema_arrow.metadata or {}) | {b"codemae.stamp": stamp.encode()}
        codes: dict[str, pa.Array] = {}
        for name in _CODED:
            column = pq.read_table(parquet, columns=[name], read_dictionary=[name]).column(name)
            whole = column.unify_dictionaries().combine_chunks()
            whole = whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
            codes[name] = whole.indices.cast(pa.int16())
            metadata[f"codemae.{name}s".encode()] = json.dumps(whole.dictionary.to_pylist()).encode()
        kept = [name for name in COLUMNS if name in names and name not in codes and _has_values(file, name)]
        types = {name: _stored_type(file.schema_arrow.field(name).type) for name in kept}
        fields = [pa.field(name, pa.int16()) for name in codes] + [pa.field(*item) for item in types.items()]
        mapped = pa.schema(fields, metadata)
        handle, staged = tempfile.mkstemp(prefix=".writing-", suffix=".arrow", dir=target.parent)
        os.close(handle)
        try:
            with pa.OSFile(staged, "wb") as sink, pa.ipc.new_file(sink, mapped) as writer:
                start = 0
                for batch in file.iter_batches(batch_size=_CHUNK, columns=kept):
                    arrays = [column.slice(start, batch.num_rows) for column in codes.values()]
                    arrays += [batch.column(name).cast(types[name]) for name in kept]
                    chunk = pa.record_batch(arrays, schema=mapped)
                    _check_paths(chunk)
                    writer.write_batch(chunk)
                    start += batch.num_rows
            os.replace(staged, target)
        finally:
            Path(staged).unlink(missing_ok=True)
    except (pa.ArrowInvalid, pa.ArrowKeyError, EOFError) as error:
        raise IndexFileError(f"{parquet} is damaged ({error}); prepare the index again") from None


def _stored_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _has_values(file: pq.ParquetFile, name: str) -> bool:
    """Whether a column holds anything but nulls, from the footer alone."""
    leaf = next(
        i for i in range(file.metadata.num_columns) if file.schema.column(i).path.split(".")[0] == name
    )
    for group in range(file.metadata.num_row_groups):
        summary = file.metadata.row_group(group).column(leaf).statistics
        if summary is None or not summary.has_null_count:
            return True
        if summary.null_count < file.metadata.row_group(group).column(leaf).num_values:
            return True
    return False
