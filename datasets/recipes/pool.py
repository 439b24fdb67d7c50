"""Merges indexes of different folders into one, without reading an image."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codemae.data.index_file import FILE_NAME, missing_index, write_index
from codemae.data.statistics import IndexStatistics, read_statistics
from codemae.modality import MODALITY_NAMES
from recipes.plan import PrepareError, write_whole
from recipes.rows import row_counts

HELP = "one index out of several; --balance draws the larger unpaired modality down to the smaller"

_PATHS = ("optical", "sar", "mask", "post")


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
        PrepareError: Two indexes disagree about a source, or their roots share no folder.
    """
    tables, roots, statistics = [], [], []
    for folder in args.index:
        if not (folder / FILE_NAME).is_file():
            raise missing_index(folder)
        table = pq.read_table(folder / FILE_NAME)
        root = (table.schema.metadata or {}).get(b"codemae.root", b"").decode()
        tables.append(table)
        roots.append(root)
        statistics.append(read_statistics(folder))
    try:
        above = os.path.commonpath(roots)
    except ValueError:
        raise PrepareError(
            f"the roots {', '.join(roots)} share no folder; prepare the indexes again"
        ) from None
    merged = _statistics(args.index, statistics)
    labels = {part.classes for part in statistics}
    keep_labels = len(labels) == 1 and len({t.schema.field("label").type for t in tables}) == 1
    parts = [
        _moved(table, os.path.relpath(root, above), keep_labels)
        for table, root in zip(tables, roots, strict=True)
    ]
    whole = pa.concat_tables(parts)
    report: dict[str, Any] = {
        "recipe": "pool",
        "root": above,
        "indexes": [str(folder) for folder in args.index],
    }
    if not keep_labels:
        report["labels"] = "dropped: the indexes have different classes"
    if args.balance:
        whole, report["balance"] = _balanced(whole, args.seed)
    merged.classes = next(iter(labels)) if keep_labels else ()
    write_index(args.out, whole, merged, above)
    report |= row_counts(whole)
    report |= {"statistics": merged.to_dict()["sources"], "left_out_by_kind": {}}
    report["exclude_names_that_match_nothing"] = []
    write_whole(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


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


def _moved(table: pa.Table, folder: str, keep_labels: bool) -> pa.Table:
    """Plain columns whose paths begin at the new root."""
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if name in ("source", "split"):
            column = column.cast(pa.string())
        if name in _PATHS and folder != ".":
            column = pc.binary_join_element_wise(pa.scalar(folder), column, "/")
        if name == "label" and not keep_labels:
            column = pa.nulls(table.num_rows, pa.int32())
        columns[name] = column
    return pa.table(columns)


def _balanced(table: pa.Table, seed: int) -> tuple[pa.Table, dict[str, Any]]:
    train = pc.equal(table.column("split"), "train")
    places = {}
    for modality, other in zip(MODALITY_NAMES, reversed(MODALITY_NAMES), strict=True):
        alone = pc.and_(table.column(modality).is_valid(), table.column(other).is_null())
        places[modality] = np.flatnonzero(pc.and_(alone, train).to_numpy(zero_copy_only=False))
    larger = max(places, key=lambda modality: len(places[modality]))
    wanted = min(map(len, places.values()))
    if not wanted:
        raise PrepareError("--balance needs unpaired training rows of both modalities; one has none")
    order = np.random.default_rng(seed).permutation(len(places[larger]))
    keep = np.ones(table.num_rows, dtype=bool)
    keep[places[larger][order[wanted:]]] = False
    facts = {
        "seed": seed,
        "unpaired before": {modality: len(found) for modality, found in places.items()},
        "unpaired after": wanted,
        "drawn down": larger,
    }
    return table.filter(pa.array(keep)), facts
