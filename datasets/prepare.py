"""Makes an index of images on disk: python datasets/prepare.py pairs|folder|ospretrain ... --out DIR."""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from recipes import folder, ospretrain, pairs
from recipes.plan import Candidate, Plan, PrepareError
from recipes.scan import Advance, Scan, scan
from rich.console import Console
from rich.progress import Progress

from codemae.data.images import PathError
from codemae.data.index import IndexFileError, write_index
from codemae.data.statistics import IndexStatistics, StatisticsError
from codemae.modality import MODALITY_NAMES


class Recipe(Protocol):
    """A layout of files this script knows."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the recipe's options."""

    def plan(self, args: argparse.Namespace) -> Plan:
        """Finds the samples."""


RECIPES: dict[str, Recipe] = {"pairs": pairs, "folder": folder, "ospretrain": ospretrain}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python datasets/prepare.py", description=__doc__)
    commands = top.add_subparsers(dest="recipe", required=True, metavar="|".join(RECIPES))
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.HELP, description=recipe.HELP)
        recipe.add_arguments(command)
        command.add_argument(
            "--out", type=Path, required=True, metavar="INDEX_DIR", help="folder of the index"
        )
        command.add_argument(
            "--exclude",
            type=Path,
            metavar="FILE",
            help="samples to leave out, a name a line as the report gives them; NAME@X,Y means one window",
        )
        command.add_argument("--strict", action="store_true", help="fail where a sample would be left out")
        command.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that read")
        for modality in MODALITY_NAMES:
            command.add_argument(
                f"--{modality}-scaling",
                default="auto",
                metavar="RULE",
                help="uint8, linear, db, linear:LOW:HIGH or db:LOW:HIGH; default: auto (see README)",
            )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    args = parser().parse_args(argv)
    try:
        report = prepare(args)
    except (PrepareError, IndexFileError, StatisticsError, PathError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(args.out, report))
    return 0


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Finds, reads and indexes the samples; returns the report.

    Raises:
        PrepareError: Nothing is left, or something is left out under ``--strict``. What stood in the index
            folder before stays as it was.
    """
    plan = RECIPES[args.recipe].plan(args)
    exclusion = Exclusion(args.exclude)
    plan.candidates = [candidate for candidate in plan.candidates if not exclusion.covers(candidate)]
    scalings = {modality: getattr(args, f"{modality}_scaling") for modality in MODALITY_NAMES}
    tile = getattr(args, "tile", None)
    tiling = None if tile is None else Tiling(tile, tile if args.stride is None else args.stride)
    with _progress(len(plan.candidates)) as advance:
        found = scan(plan, scalings, args.workers, advance, tile or 0)
    left_out = plan.left_out + found.left_out
    columns = _columns(plan, found, tiling, exclusion)
    if left_out and args.strict:
        listed = "\n".join(f"  {entry.sample}: {entry.reason}" for entry in left_out[:10])
        more = f"\n  and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        raise PrepareError(f"{len(left_out)} samples would be left out (--strict):\n{listed}{more}")
    if not columns["source"]:
        reasons = "; ".join(f"{entry.sample}: {entry.reason}" for entry in left_out[:3])
        raise PrepareError(f"no sample is left to index. {reasons}")
    statistics = IndexStatistics(sources=found.statistics, classes=plan.classes)
    report = {
        "recipe": args.recipe,
        "root": str(plan.root),
        "rows": len(columns["source"]),
        "paired": sum(1 for sides in zip(columns["optical"], columns["sar"], strict=True) if all(sides)),
        "rows_by_split": dict(sorted(Counter(columns["split"]).items())),
        "rows_by_source": dict(sorted(Counter(columns["source"]).items())),
        "samples_read": len(found.sizes),
        "pixels_outside_windows": tiling.uncovered if tiling else 0,
        "excluded": exclusion.count,
        "exclude_names_that_match_nothing": exclusion.unmatched(),
        "statistics": statistics.to_dict()["sources"],
        **plan.notes,
        "left_out_by_kind": dict(sorted(Counter(entry.kind for entry in left_out).items())),
        "left_out": [{"sample": e.sample, "kind": e.kind, "reason": e.reason} for e in left_out],
    }
    write_index(args.out, pa.table(columns, schema=_plain_schema(columns)), statistics, plan.root)
    staged = args.out / ".report.json.writing"
    staged.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(staged, args.out / "report.json")
    return report


class Tiling:
    """Windows over a scene; what is left at the right and lower border is counted, not covered."""

    def __init__(self, tile: int, stride: int) -> None:
        if tile < 1 or stride < 1:
            raise PrepareError(f"--tile and --stride are at least 1 pixel, got {tile} and {stride}")
        self.tile = tile
        self.stride = stride
        self.uncovered = 0

    def windows(self, height: int, width: int) -> list[tuple[int, int]]:
        """Left and top of each window, row by row."""
        tops = range(0, height - self.tile + 1, self.stride)
        lefts = range(0, width - self.tile + 1, self.stride)
        step = min(self.tile, self.stride)
        down, across = (step * (len(starts) - 1) + self.tile for starts in (tops, lefts))
        self.uncovered += height * width - down * across
        return [(left, top) for top in tops for left in lefts]


class Exclusion:
    """The names of an ``--exclude`` file."""

    def __init__(self, file: Path | None) -> None:
        self.count = 0
        self._names: set[str] = set()
        self._met: set[str] = set()
        if file is not None:
            try:
                lines = file.read_text().splitlines()
            except OSError as error:
                raise PrepareError(f"--exclude {file}: {error.strerror}") from None
            self._names = {name for line in lines if (name := line.split("#")[0].strip())}

    def covers(self, candidate: Candidate) -> bool:
        """Whether a sample is named, by its key or by one of its paths."""
        return self._hit({candidate.key, *candidate.paths.values()})

    def covers_window(self, key: str, left: int, top: int) -> bool:
        """Whether one window of a sample is named."""
        return self._hit({f"{key}@{left},{top}"})

    def _hit(self, names: set[str]) -> bool:
        met = names & self._names
        self._met |= met
        self.count += bool(met)
        return bool(met)

    def unmatched(self) -> list[str]:
        """Names that no sample has."""
        return sorted(self._names - self._met)


_COLUMNS = ("source", "split", "group", "optical", "sar", "x", "y", "width", "height", "label")


def _columns(plan: Plan, found: Scan, tiling: Tiling | None, exclusion: Exclusion) -> dict[str, list[Any]]:
    """The index's columns."""
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for place, (height, width) in sorted(found.sizes.items()):
        candidate = plan.candidates[place]
        paths = candidate.paths.get("optical"), candidate.paths.get("sar")
        facts = candidate.source, candidate.split, candidate.group, *paths
        windows: list[tuple[int | None, ...]] = [(None, None, None, None)]
        if tiling is not None:
            windows = [
                (left, top, tiling.tile, tiling.tile)
                for left, top in tiling.windows(height, width)
                if not exclusion.covers_window(candidate.key, left, top)
            ]
        for window in windows:
            for name, value in zip(_COLUMNS, (*facts, *window, candidate.label), strict=True):
                columns[name].append(value)
    return columns


def _plain_schema(columns: dict[str, list[Any]]) -> pa.Schema:
    words = ("source", "split", "group", "optical", "sar")
    return pa.schema([(name, pa.string() if name in words else pa.int32()) for name in columns])


@contextmanager
def _progress(total: int) -> Iterator[Advance]:
    """A bar on a terminal, a line every tenth elsewhere; both on stderr."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console) as bar:
            task = bar.add_task("reading images", total=total)
            yield lambda done: bar.advance(task, done)
        return
    read = 0

    def advance(done: int) -> None:
        nonlocal read
        tenth = read * 10 // max(total, 1)
        read += done
        if read * 10 // max(total, 1) > tenth:
            print(f"read {read} of {total} samples", file=sys.stderr, flush=True)

    yield advance


def summary(out: Path, report: dict[str, Any]) -> str:
    """What a person wants to know of a report."""
    lines = [f"{report['rows']} rows ({report['paired']} paired) in {out}, root {report['root']}"]
    lines += [f"  split {split}: {count}" for split, count in report["rows_by_split"].items()]
    for source, sides in report["statistics"].items():
        for modality, numbers in sides.items():
            mean, std = (" ".join(f"{value:.4f}" for value in numbers[key]) for key in ("mean", "std"))
            lines.append(
                f"  {source} {modality}: {numbers['channels']} channels, {numbers['scaling']}, mean {mean}, "
                f"std {std} ({numbers['computed']})"
            )
    for kind, count in report["left_out_by_kind"].items():
        lines.append(f"  left out, {kind}: {count}")
    for name in report["exclude_names_that_match_nothing"][:5]:
        lines.append(f"  --exclude names {name!r}, which is no sample here")
    return "\n".join([*lines, f"  all of it in {out / 'report.json'}"])


if __name__ == "__main__":
    sys.exit(main())
