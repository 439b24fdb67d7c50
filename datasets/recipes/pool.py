"""Merges indexes of different folders into one, without reading an image."""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codemae.data.index_file import FILE_NAME, SHARD_COLUMNS, current_root, map_index, write_index
from codemae.data.statistics import IndexStatistics, read_statistics
from codemae.modality import MODALITY_NAMES
from recipes.plan import PrepareError, write_whole
from recipes.rows import RowCounts

HELP = "one index out of several; --balance draws the larger unpaired modality down to the smaller"

_PATHS = ("optical", "sar", "mask", "post")
_BATCH = 65_536


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares this command's options."""
    parser.add_argument(
        "--index",
        type=lambda text: [Path(part) for part in text.split(",") if part],
        required=True,
        metavar="A,B,C",
        help="folders of the indexes",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new index")
    parser.add_argument(
        "--balance",
        action="store_true",
        help="as many unpaired optical as unpaired SAR training rows: the larger side is drawn down",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of that draw; default: 0")


def merge(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the merged index; returns its report.

    The root is the folder above all roots. A balancing draw takes, of the training rows with the larger
    single modality in their order, the first n of ``numpy.random.default_rng(seed).permutation``.

    Raises:
        PrepareError: Two indexes disagree about a source, their roots share no folder, or one is packed and
            ``--shards`` asks to pack it again.
    """
    roots, statistics, files = [], [], []
    for folder in args.index:
        roots.append(current_root(map_index(folder)))
        statistics.append(read_statistics(folder))
        files.append(pq.ParquetFile(folder / FILE_NAME))
    try:
        above = os.path.commonpath(roots)
    except ValueError:
        raise PrepareError(
            f"the roots {', '.join(roots)} share no folder; prepare the indexes again"
        ) from None
    merged = _statistics(args.index, statistics)
    labels = {part.classes for part in statistics}
    keep_labels = len(labels) == 1 and len({file.schema_arrow.field("label").type for file in files}) == 1
    report: dict[str, Any] = {
        "recipe": "pool",
        "root": above,
        "indexes": [str(folder) for folder in args.index],
    }
    if args.shards:
        _refuse_packed(args.index, files)
    if not keep_labels:
        report["labels"] = "dropped: the indexes have different classes"
    kept = None
    if args.balance:
        kept, report["balance"] = _balanced(files, args.seed)
    merged.classes = next(iter(labels)) if keep_labels else ()
    counts = RowCounts()
    below = [os.path.relpath(root, above) for root in roots]
    rows = _kept_rows(_moved_rows(files, below, keep_labels), kept)
    write_index(args.out, counts.counted(rows), merged, above)
    report |= counts.to_dict()
    report |= {"statistics": merged.to_dict()["sources"], "left_out_by_kind": {}}
    report["exclude_names_that_match_nothing"] = []
    write_whole(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _refuse_packed(folders: list[Path], files: list[pq.ParquetFile]) -> None:
    for folder, file in zip(folders, files, strict=True):
        for batch in file.iter_batches(columns=list(SHARD_COLUMNS)):
            if any(column.null_count < len(column) for column in batch.columns):
                raise PrepareError(f"{folder} is packed already, so the pool cannot be; leave --shards away")


def _statistics(folders: list[Path], parts: list[IndexStatistics]) -> IndexStatistics:
    merged = IndexStatistics()
    for folder, part in zip(folders, parts, strict=True):
        for source, sides in part.sources.items():
            for modality, numbers in sides.items():
                if merged.sources.setdefault(source, {}).setdefault(modality, numbers) != numbers:
                    raise PrepareError(
                        f"{folder} and an index before it have different statistics of the {modality} images "
                        f"of source {source!r}; prepare one of them with another --source NAME"
                    )
    return merged


def _moved_rows(files: list[pq.ParquetFile], below: list[str], keep_labels: bool) -> Iterator[pa.RecordBatch]:
    for file, folder in zip(files, below, strict=True):
        for batch in file.iter_batches(batch_size=_BATCH):
            yield _moved(batch, folder, keep_labels)


def _moved(batch: pa.RecordBatch, folder: str, keep_labels: bool) -> pa.RecordBatch:
    """Plain columns whose paths begin at the new root."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in ("source", "split"):
            column = column.cast(pa.string())
        if name in _PATHS and folder != ".":
            column = pc.binary_join_element_wise(pa.scalar(folder), column, "/")
        if name == "label" and not keep_labels:
            column = pa.nulls(batch.num_rows, pa.int32())
        columns[name] = column
    return pa.record_batch(columns)


def _kept_rows(batches: Iterator[pa.RecordBatch], kept: np.ndarray | None) -> Iterator[pa.RecordBatch]:
    start = 0
    for batch in batches:
        yield batch if kept is None else batch.filter(pa.array(kept[start : start + batch.num_rows]))
        start += batch.num_rows


def _balanced(files: list[pq.ParquetFile], seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """(rows,) bool: the rows to keep; and facts for the report."""
    alone: dict[str, list[np.ndarray]] = {modality: [] for modality in MODALITY_NAMES}
    for file in files:
        for batch in file.iter_batches(batch_size=_BATCH, columns=["split", *MODALITY_NAMES]):
            train = pc.equal(batch.column("split").cast(pa.string()), "train")
            for modality, other in zip(MODALITY_NAMES, reversed(MODALITY_NAMES), strict=True):
                single = pc.and_(batch.column(modality).is_valid(), batch.column(other).is_null())
                alone[modality].append(pc.and_(single, train).to_numpy(zero_copy_only=False))
    places = {modality: np.flatnonzero(np.concatenate(masks)) for modality, masks in alone.items()}
    larger = max(places, key=lambda modality: len(places[modality]))
    wanted = min(map(len, places.values()))
    if not wanted:
        raise PrepareError("--balance needs unpaired training rows of both modalities; one has none")
    order = np.random.default_rng(seed).permutation(len(places[larger]))
    keep = np.ones(sum(map(len, alone[larger])), dtype=bool)
    keep[places[larger][order[wanted:]]] = False
    facts = {
        "seed": seed,
        "unpaired before": {modality: len(found) for modality, found in places.items()},
        "unpaired after": wanted,
        "drawn down": larger,
    }
    return keep, facts
