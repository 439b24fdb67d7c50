"""Examines the pairs of an index: python datasets/pair_doctor.py INDEX_DIR --out DIR."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pair_report
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pair_findings import FLAGS, Duplicate, Finding, brightness, displacements, read_side

from codemae.analysis.displacement import ALIGNED, Displacement
from codemae.analysis.duplicates import Catalogue, Match, content_hash, thumbnail
from codemae.analysis.registration import CONFIDENT, register
from codemae.analysis.sides import side_flags
from codemae.analysis.structure import SCALES, similarity_by_scale
from codemae.data.images import ImageError, PathError, SceneCache
from codemae.data.index import Index, IndexFileError, open_index
from codemae.data.statistics import StatisticsError
from codemae.modality import MODALITY_NAMES

_CHUNK = 16
_REGISTERED_SIDE = 512
_LEAST_SIDE = 24


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python datasets/pair_doctor.py", description=__doc__)
    top.add_argument("index", metavar="INDEX_DIR", help="index to examine, as datasets/prepare.py writes it")
    top.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="INDEX_DIR",
        help="indexes (benchmarks) whose images must not be in this one",
    )
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the findings")
    top.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
    top.add_argument("--pairs", type=int, metavar="N", help="examine N rows, evenly spread; default: all")
    top.add_argument("--pictures", type=int, default=12, metavar="N", help="worst pairs shown; default: 12")
    top.add_argument(
        "--max-offset", type=float, default=4.0, metavar="PIXELS", help="offset that is `shifted`; default: 4"
    )
    top.add_argument(
        "--confidence",
        type=float,
        default=CONFIDENT,
        metavar="Z",
        help=f"confidence below which a pair is `unrelated`; default: {CONFIDENT}",
    )
    top.add_argument(
        "--rotations", action="store_true", help="find duplicates turned by 90, 180 or 270 degrees"
    )
    top.add_argument(
        "--exclude-flags",
        default=",".join(FLAGS),
        metavar="FLAGS",
        help="flags that put a row into exclude.txt; default: all of them",
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        print(diagnose(args))
    except (DoctorError, IndexFileError, StatisticsError, PathError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class DoctorError(Exception):
    """The index cannot be examined as asked; the message says what to change."""


def diagnose(args: argparse.Namespace) -> str:
    """Examines the index, writes the findings and sums them up in words.

    Raises:
        DoctorError: The options ask for nothing that can be done.
    """
    wanted = set(filter(None, args.exclude_flags.split(",")))
    if wanted - set(FLAGS):
        unknown = ", ".join(sorted(wanted - set(FLAGS)))
        raise DoctorError(f"--exclude-flags has no {unknown}; flags are {', '.join(FLAGS)}")
    if args.workers < 1 or (args.pairs is not None and args.pairs < 1):
        raise DoctorError("--workers and --pairs are at least 1")
    index = open_index(args.index)
    if not len(index):
        raise DoctorError(f"{args.index} has no row; prepare it again with python datasets/prepare.py")
    others = [open_index(folder) for folder in args.against]
    findings = examine(index, _spread(len(index), args.pairs), args.workers)
    foreign = [examine(other, range(len(other)), args.workers, pairs=False) for other in others]
    for finding in findings:
        if finding.registration is not None:
            if finding.registration.confidence < args.confidence:
                finding.flags.add("unrelated")
            elif finding.registration.length > args.max_offset or finding.registration.at_edge:
                finding.flags.add("shifted")
    names = exclusion_names(index)
    duplicates = find_duplicates([index, *others], [findings, *foreign], names, rotations=args.rotations)
    by_row = {finding.row: finding for finding in findings}
    for row in superfluous(duplicates, by_row):
        by_row[row].flags.add("duplicate")
    args.out.mkdir(parents=True, exist_ok=True)
    _replace(args.out / "pairs.parquet", partial(pq.write_table, table(index, findings, names)))
    excluded = [finding for finding in findings if finding.flags & wanted]
    lines = [f"{names[finding.row]} # {', '.join(sorted(finding.flags))}\n" for finding in excluded]
    _replace(args.out / "exclude.txt", lambda path: path.write_text("".join(lines)))
    page = pair_report.build(index, findings, duplicates, names, args)
    _replace(args.out / "report.html", lambda path: page.write(path))
    common = displacements(index, findings, args.confidence)
    return summary(findings, duplicates, common, len(excluded), args.out)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside a file and moves it into place, so that a stopped run leaves no half file."""
    staged = path.with_name(f".{path.name}.writing")
    write(staged)
    os.replace(staged, path)


def _spread(rows: int, wanted: int | None) -> Sequence[int]:
    if wanted is None or wanted >= rows:
        return range(rows)
    return np.unique(np.linspace(0, rows - 1, wanted).round().astype(int)).tolist()


def examine(index: Index, rows: Sequence[int], workers: int, *, pairs: bool = True) -> list[Finding]:
    """Reads rows and finds out all that one row alone shows.

    Args:
        index: Where they are.
        rows: Their numbers.
        workers: Processes that read.
        pairs: Whether to measure offset, similarity and flags, or only hash the images.
    """
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    work = partial(_examine_chunk, index, pairs)
    findings: list[Finding] = []
    for part in _mapped(work, chunks, workers):
        findings += part
        before = len(findings) - len(part)
        if len(findings) * 10 // len(rows) > before * 10 // len(rows):
            print(f"examined {len(findings)} of {len(rows)} rows", file=sys.stderr, flush=True)
    return findings


def _mapped(
    work: "partial[list[Finding]]", chunks: Sequence[Sequence[int]], workers: int
) -> Iterator[list[Finding]]:
    if workers == 1 or len(chunks) == 1:
        yield from map(work, chunks)
        return
    # Forked processes would inherit the locks of torch's threads.
    with ProcessPoolExecutor(
        min(workers, len(chunks)), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        yield from pool.map(work, chunks)


def _examine_chunk(index: Index, pairs: bool, rows: Sequence[int]) -> list[Finding]:
    cache = SceneCache(256 << 20)
    return [_examine_row(index, int(row), cache, pairs) for row in rows]


def _examine_row(index: Index, row: int, cache: SceneCache, pairs: bool) -> Finding:
    finding = Finding(row)
    planes = {}
    empty = False
    for modality in MODALITY_NAMES:
        if index.cell(row, modality) is None:
            continue
        try:
            pixels, values = read_side(index, row, modality, cache)
        except ImageError:
            finding.flags.add("unreadable")
            continue
        plane = brightness(values)
        finding.hashes[modality] = content_hash(pixels), thumbnail(values)
        if not pairs:
            continue
        statistics = index.stats(index.source(row), modality)
        flags = side_flags(values, modality, statistics.mean, statistics.std)
        empty |= "empty" in flags
        finding.flags |= set(flags)
        planes[modality] = plane
    if len(planes) == 2 and planes["optical"].shape == planes["sar"].shape and not empty:
        optical, sar = (_central(planes[modality]) for modality in ("optical", "sar"))
        finding.similarity = similarity_by_scale(planes["optical"], planes["sar"])
        if min(optical.shape) >= _LEAST_SIDE:
            finding.registration = register(optical, sar)
    return finding


def _central(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The middle of a large plane: more pixels than this make an offset no surer, only slower."""
    down, across = (max(0, (length - _REGISTERED_SIDE) // 2) for length in plane.shape)
    return plane[down : down + _REGISTERED_SIDE, across : across + _REGISTERED_SIDE]


def exclusion_names(index: Index) -> list[str]:
    """For each row the name by which ``prepare.py --exclude`` leaves out this row and no other.

    That is the path of one side, the optical one where no other row has it, and ``@X,Y`` for a window.
    """
    windows = [index.window(row) for row in range(index.total_rows)]
    places = [f"@{window[0]},{window[1]}" if window else "" for window in windows]
    sides = {
        modality: [index.cell(row, modality) for row in range(index.total_rows)]
        for modality in MODALITY_NAMES
    }
    counts = {modality: Counter(zip(paths, places, strict=True)) for modality, paths in sides.items()}
    names = []
    for row, place in enumerate(places):
        own = [modality for modality in ("optical", "sar") if sides[modality][row] is not None]
        own.sort(key=lambda modality: counts[modality][sides[modality][row], place])
        names.append(f"{sides[own[0]][row]}{place}")
    return names


def find_duplicates(
    indexes: Sequence[Index], findings: Sequence[list[Finding]], names: Sequence[str], *, rotations: bool
) -> list[Duplicate]:
    """Equal images among the rows of the first index, and between it and the others."""
    found: dict[tuple[int, int, int, str], Duplicate] = {}
    other_names = [names, *(exclusion_names(index) for index in indexes[1:])]
    for modality in MODALITY_NAMES:
        catalogue = Catalogue()
        owners: list[tuple[int, int]] = []
        for number, part in enumerate(findings):
            for finding in part:
                if modality in finding.hashes:
                    catalogue.add(*finding.hashes[modality])
                    owners.append((number, finding.row))
        matches = catalogue.matches(rotations=rotations)
        for match in _between_all(matches):
            (kept, kept_row), (number, row) = owners[match.first], owners[match.second]
            if kept and number:
                continue
            if number:
                kept, kept_row, number, row = number, row, kept, kept_row
            elif not kept and _same_file(indexes[0], kept_row, row, modality):
                continue
            reason = "between indexes"
            if not kept:
                splits = [indexes[0].cell(place, "split") for place in (kept_row, row)]
                reason = "within split" if splits[0] == splits[1] else "across splits"
                if reason == "across splits" and splits[0] == "train":
                    kept_row, row = row, kept_row
            folder, other = indexes[kept].folders[0], other_names[kept][kept_row]
            duplicate = Duplicate(row, folder, other, kept_row, modality, match, reason)
            found.setdefault((row, kept, kept_row, modality), duplicate)
    return list(found.values())


def _between_all(matches: Sequence[Match]) -> Iterator[Match]:
    """The matches, and for each near one also those of its exact copies."""
    copies: dict[int, list[int]] = {}
    for match in matches:
        if match.kind == "exact":
            copies.setdefault(match.first, [match.first]).append(match.second)
    for match in matches:
        if match.kind == "exact":
            yield from (
                Match(first, match.second, "exact") for first in copies[match.first] if first < match.second
            )
            continue
        for first in copies.get(match.first, [match.first]):
            for second in copies.get(match.second, [match.second]):
                yield Match(min(first, second), max(first, second), "near", match.bits, match.turn)


def _same_file(index: Index, one: int, other: int, modality: str) -> bool:
    """Whether two rows point to one place on purpose, as two dates against one optical image do."""
    same = index.cell(one, modality) == index.cell(other, modality) and index.window(one) == index.window(
        other
    )
    return same and index.cell(one, "split") == index.cell(other, "split")


def superfluous(duplicates: Sequence[Duplicate], findings: dict[int, Finding]) -> set[int]:
    """Rows to leave out so that no duplicate remains.

    Across splits and between indexes one equal side is enough, and the row outside the test split goes.
    Within a split all sides have to be equal to those of one other row, and the first row stays.
    """
    rows = {duplicate.row for duplicate in duplicates if duplicate.reason != "within split"}
    sides: dict[tuple[int, int], set[str]] = {}
    for duplicate in duplicates:
        if duplicate.reason == "within split":
            sides.setdefault((duplicate.row, duplicate.other_row), set()).add(duplicate.modality)
    return rows | {row for (row, _), equal in sides.items() if equal >= set(findings[row].hashes)}


def table(index: Index, findings: Sequence[Finding], names: Sequence[str]) -> pa.Table:
    """``pairs.parquet``: a row a pair."""
    registrations = [finding.registration for finding in findings]
    columns: dict[str, pa.Array] = {
        "key": pa.array([names[finding.row] for finding in findings], pa.string()),
        "source": pa.array([index.source(finding.row) for finding in findings], pa.string()),
        "split": pa.array([index.cell(finding.row, "split") for finding in findings], pa.string()),
        "group": pa.array([index.cell(finding.row, "group") for finding in findings], pa.string()),
    }
    for name, attribute in (("offset_x", "x"), ("offset_y", "y"), ("confidence", "confidence")):
        values = [None if found is None else getattr(found, attribute) for found in registrations]
        columns[name] = pa.array(values, pa.float32())
    for scale in SCALES:
        values = [finding.similarity.get(scale) for finding in findings]
        columns[f"similarity_{scale}"] = pa.array(values, pa.float32())
    columns["flags"] = pa.array([sorted(finding.flags) for finding in findings], pa.list_(pa.string()))
    return pa.table(columns)


def summary(
    findings: Sequence[Finding],
    duplicates: Sequence[Duplicate],
    common: Mapping[str, Displacement],
    excluded: int,
    out: Path,
) -> str:
    """What a person wants to know, for the terminal."""
    counts = Counter(flag for finding in findings for flag in finding.flags)
    lines = [f"{len(findings)} rows examined, {excluded} of them in {out / 'exclude.txt'}"]
    lines += [f"  {flag}: {counts[flag]}" for flag in FLAGS if counts[flag]]
    for reason, count in sorted(Counter(duplicate.reason for duplicate in duplicates).items()):
        lines.append(f"  equal images {reason}: {count}")
    for source, found in common.items():
        lines.append(
            f"  {source}: {found.aligned:.0%} of {found.pairs} sure offsets within {ALIGNED:g} px, median "
            f"{found.right:+.1f} right, {found.below:+.1f} below; {found.aligned_source:.0%} without it"
        )
        if found.aligned_scene is not None:
            lines[-1] += f", {found.aligned_scene:.0%} without each scene's own"
    return "\n".join([*lines, f"  pictures and figures in {out / 'report.html'}"])


if __name__ == "__main__":
    sys.exit(main())
