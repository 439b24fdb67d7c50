"""The files of an index: ``index.parquet``, ``stats.yaml`` and the memory-mapped copy of the first.

``index.parquet`` is the file that is kept and exchanged. Parquet has to be decoded to be read, once in every
process, so the first opening writes the same rows beside it as ``index.arrow``, which all processes of a node
then share through the page cache.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

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

_CODED = ("source", "split")
_REQUIRED = (*_CODED, "group")
_PATHS = ("optical", "sar", "mask", "post")
SHARD_COLUMNS = ("optical_offset", "optical_size", "sar_offset", "sar_size")
_WINDOW = ("x", "y", "width", "height")
COLUMNS = (*_REQUIRED, *_PATHS, *SHARD_COLUMNS, *_WINDOW, "label")
_CHUNK = 65_536
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
    rows: pa.Table | Iterable[Mapping[str, Any]],
    statistics: IndexStatistics,
    root: str | os.PathLike[str],
) -> Path:
    """Writes ``index.parquet`` and ``stats.yaml``, all or nothing.

    Args:
        folder: Where to; made if missing. What is there stays until the new files are complete.
        rows: A table, or a mapping per row; columns that are absent are null.
        statistics: Statistics of every source and modality the rows name.
        root: Folder that the rows' paths are relative to.

    Raises:
        IndexFileError: The rows contradict the format: no image, a group in two splits, a source without
            statistics.
        PathError: A path leaves the root.
    """
    table = _conform(rows)
    _check(table, statistics)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    metadata = {"codemae.format": "1", "codemae.root": str(Path(root).resolve())}
    table = table.replace_schema_metadata(metadata)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=target) as staging:
        staged = Path(staging)
        pq.write_table(table, staged / FILE_NAME, compression="none", row_group_size=_CHUNK)
        (staged / STATISTICS_NAME).write_text(
            yaml.safe_dump(statistics.to_dict(), sort_keys=False, default_flow_style=None, width=110)
        )
        for name in (STATISTICS_NAME, FILE_NAME):
            with open(staged / name, "rb") as written:
                os.fsync(written.fileno())
        for name in (STATISTICS_NAME, FILE_NAME):
            os.replace(staged / name, target / name)
    map_index(target)
    return target / FILE_NAME


def _conform(rows: pa.Table | Iterable[Mapping[str, Any]]) -> pa.Table:
    if isinstance(rows, pa.Table):
        unknown = set(rows.column_names) - set(COLUMNS)
        multi = "label" in rows.column_names and pa.types.is_list(rows.schema.field("label").type)
        columns = {name: rows.column(name) for name in rows.column_names}
    else:
        listed = list(rows)
        unknown = {name for row in listed for name in row} - set(COLUMNS)
        multi = any(isinstance(row.get("label"), (list, tuple)) for row in listed)
        columns = {name: [row.get(name) for row in listed] for name in COLUMNS}
    if unknown:
        raise IndexFileError(f"unknown columns {sorted(unknown)}; an index has {', '.join(COLUMNS)}")
    wanted = schema(multi)
    count = len(next(iter(columns.values())))
    arrays = []
    for field in wanted:
        values = columns.get(field.name)
        if values is None:
            arrays.append(pa.nulls(count, field.type))
        elif isinstance(values, list):
            coded = field.name in _CODED
            array = pa.array(values, pa.string() if coded else field.type)
            arrays.append(array.dictionary_encode() if coded else array)
        else:
            arrays.append(values.cast(field.type))
    return pa.table(arrays, schema=wanted).unify_dictionaries()


def _check(table: pa.Table, statistics: IndexStatistics) -> None:
    if table.num_rows == 0:
        raise IndexFileError("not a single sample is left to index")
    for name in _REQUIRED:
        if table.column(name).null_count:
            raise IndexFileError(
                f"column {name!r} has empty cells; every row needs a source, a split and a group"
            )
    imageless = pc.and_(table.column("optical").is_null(), table.column("sar").is_null())
    if pc.any(imageless).as_py():
        raise IndexFileError("a row has neither an optical nor a SAR image")
    _check_paths(table)
    groups = table.select(["source", "group", "split"]).group_by(["source", "group"])
    cut = groups.aggregate([("split", "count_distinct")])
    torn = cut.filter(pc.greater(cut.column("split_count_distinct"), 1))
    if torn.num_rows:
        first = torn.slice(0, 1).to_pylist()[0]
        raise IndexFileError(
            f"{torn.num_rows} groups lie in more than one split, such as {first['group']!r} of "
            f"{first['source']!r}; a split must not cut a group (scene or place)"
        )
    _check_sources(table, statistics)


def _check_paths(table: pa.Table | pa.RecordBatch) -> None:
    for name in set(_PATHS) & set(table.schema.names):
        column = table.column(name)
        if column.null_count == len(column):
            continue
        suspicious = pc.match_substring_regex(column, r"(^/)|(^\\)|(^.:)|((^|[/\\])\.\.([/\\]|$))")
        for path in column.filter(pc.fill_null(suspicious, False)).slice(0, 1).to_pylist():
            check_relative(path)
            raise PathError(f"{path!r} is not a path inside the root")


def _check_sources(table: pa.Table, statistics: IndexStatistics) -> None:
    for modality in MODALITY_NAMES:
        used = pc.unique(table.column("source").filter(table.column(modality).is_valid())).to_pylist()
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
