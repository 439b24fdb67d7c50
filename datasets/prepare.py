"""Makes an index of images on disk: python datasets/prepare.py pairs|folder|ospretrain ... --out DIR."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import shards
from recipes import bands, folder, images, ospretrain, pairs, pool
from recipes.bands import selections
from recipes.candidates import Candidate
from recipes.card import card_names
from recipes.catalogued import Catalogued
from recipes.left_out import FILE_NAME as LEFT_OUT_NAME
from recipes.plan import Plan, PrepareError, write_whole
from recipes.progress import Advance, phase
from recipes.rows import RowCounts, Rows, rows_in
from recipes.scan import Scan, scan
from recipes.stacking import stack
from recipes.torchgeo_download import download
from recipes.windows import Exclusion, Tiling

from codemae.data.images import PathError
from codemae.data.index import IndexFileError, write_index
from codemae.data.statistics import IndexStatistics, StatisticsError
from codemae.modality import MODALITY_NAMES

_LISTED = 1000
"""Samples left out that the report itself lists."""


class Recipe(Protocol):
    """A layout of files this script knows."""

    @property
    def HELP(self) -> str:  # noqa: N802  (a constant of the modules)
        """One line for ``--help``."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the recipe's options."""

    def plan(self, args: argparse.Namespace) -> Plan:
        """Finds the samples."""


RECIPES: dict[str, Recipe] = {"pairs": pairs, "folder": folder, "images": images, "ospretrain": ospretrain}


def parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line.

    Args:
        words: What will be parsed; of the catalogue only the card it names is read.
    """
    top = argparse.ArgumentParser(prog="python datasets/prepare.py", description=__doc__)
    metavar = "|".join([*RECIPES, "pool", "NAME of a card"])
    commands = top.add_subparsers(dest="recipe", required=True, metavar=metavar)
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, help=recipe.HELP, description=recipe.HELP)
        recipe.add_arguments(command)
        add_common_options(command)
    command = commands.add_parser("pool", help=pool.HELP, description=pool.HELP)
    pool.add_arguments(command)
    add_shard_options(command)
    for name in card_names():
        if name in RECIPES:
            continue
        help_line = f"the dataset of cards/{name}.yaml"
        if name not in words[:1]:
            commands.add_parser(name, help=help_line, add_help=False)
            continue
        recipe = Catalogued(name)
        command = commands.add_parser(name, help=help_line, description=recipe.HELP)
        recipe.add_arguments(command)
        add_common_options(command)
        command.add_argument(
            "--download", action="store_true", help="fetch the files to --root first, through torchgeo"
        )
    return top


def add_common_options(command: argparse.ArgumentParser) -> None:
    """Declares the options of every recipe."""
    command.add_argument("--out", type=Path, required=True, metavar="INDEX_DIR", help="folder of the index")
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
            help="uint8, linear (also decibels), db (intensity), amplitude, the last three also with "
            ":LOW:HIGH; default: auto (see README)",
        )
    command.add_argument("--bands", nargs="+", default=[], metavar="MODALITY=BANDS", help=bands.HELP)
    add_shard_options(command)


def add_shard_options(command: argparse.ArgumentParser) -> None:
    """Declares ``--shards`` and how large they are."""
    command.add_argument("--shards", action="store_true", help="pack the images into tar files afterwards")
    shards.add_arguments(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        args = parser(words).parse_args(words)
        report = pool.merge(args) if args.recipe == "pool" else prepare(args)
        if args.shards:
            print(shards.describe(shards.packed(args.out, args.out, args.shard_size)), file=sys.stderr)
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
    recipe = RECIPES.get(args.recipe) or Catalogued(args.recipe)
    if getattr(args, "download", False) and isinstance(recipe, Catalogued):
        if getattr(args, "root", None) is None:
            raise PrepareError("--download needs --root DIR, the folder to download to")
        print(download(args.recipe, recipe.card.torchgeo, args.root, recipe.card.get), file=sys.stderr)
    with phase("listing files", ""):
        plan = recipe.plan(args)
    exclusion = Exclusion(args.exclude)
    if exclusion:
        plan.candidates.update(lambda candidate: None if exclusion.covers(candidate) else candidate)
    if plan.stacks:
        stack(plan, plan.stacks, args.out, args.workers)
        if exclusion:
            plan.candidates.update(lambda candidate: None if exclusion.covers(candidate) else candidate)
    scalings = {modality: _scaling(plan, modality, args) for modality in MODALITY_NAMES}
    channels = selections(plan, args.bands)
    tile = getattr(args, "tile", None)
    stride = getattr(args, "stride", None)
    if tile is None and plan.tile is not None:
        tile, stride = plan.tile, plan.stride if stride is None else stride
    tiling = None if tile is None else Tiling(tile, tile if stride is None else stride)
    found = scan(plan, scalings, args.workers, tile or 0, channels)
    left_out = plan.left_out
    if left_out and args.strict:
        listed = "\n".join(f"  {entry.sample}: {entry.reason}" for entry in left_out.first(10))
        more = f"\n  and {len(left_out) - 10} more" if len(left_out) > 10 else ""
        raise PrepareError(f"{len(left_out)} samples would be left out (--strict):\n{listed}{more}")
    counts = RowCounts()
    batches = counts.counted(Rows(plan, found, tiling, exclusion, args.workers).batches())
    first = next(batches, None)
    if first is None:
        reasons = "; ".join(f"{entry.sample}: {entry.reason}" for entry in left_out.first(3))
        raise PrepareError(f"no sample is left to index. {reasons}")
    statistics = IndexStatistics(sources=found.statistics, classes=plan.classes)
    total = rows_in(found, tiling)
    with phase("writing rows", "wrote {} rows", total) as advance:
        write_index(args.out, _told(chain([first], batches), advance), statistics, plan.root)
    report = {
        "recipe": args.recipe,
        "root": str(plan.root),
        **counts.to_dict(),
        **({"rows_expected": plan.expected} if plan.expected else {}),
        "samples_read": int(found.usable.sum()),
        "pixels_outside_windows": tiling.uncovered if tiling else 0,
        "excluded": exclusion.count,
        "exclude_names_that_match_nothing": exclusion.unmatched(),
        "statistics": statistics.to_dict()["sources"],
        **plan.notes,
        "left_out_by_kind": dict(sorted(left_out.by_kind.items())),
        "left_out": [asdict(entry) for entry in left_out.first(_LISTED)],
    }
    if len(left_out) > _LISTED:
        report["left_out_in_full"] = LEFT_OUT_NAME
    left_out.write(args.out)
    for write in plan.write_beside:
        report |= write(args.out, _kept(plan, found))
    write_whole(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    return report


def _kept(plan: Plan, found: Scan) -> Iterator[tuple[Candidate, tuple[int, int]]]:
    """The samples that are indexed, with height and width."""
    for candidate, (height, width) in zip(plan.candidates, found.sizes, strict=True):
        if height >= 0:
            yield candidate, (int(height), int(width))


def _told(batches: Iterable[pa.RecordBatch], advance: Advance) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        advance(batch.num_rows)


def _scaling(plan: Plan, modality: str, args: argparse.Namespace) -> str:
    """The rule of the command line, else of the card, else ``auto``."""
    asked: str = getattr(args, f"{modality}_scaling")
    return plan.scaling.get(modality, asked) if asked == "auto" else asked


def summary(out: Path, report: dict[str, Any]) -> str:
    """What a person wants to know of a report."""
    lines = [f"{report['rows']} rows ({report['paired']} paired) in {out}, root {report['root']}"]
    expected = report.get("rows_expected", {})
    for split in sorted({*report["rows_by_split"], *expected}):
        count = report["rows_by_split"].get(split, 0)
        told = f", {expected[split]} in a complete copy" if split in expected else ""
        lines.append(f"  split {split}: {count}{told}")
    for source, sides in report["statistics"].items():
        for modality, numbers in sides.items():
            mean, std = (" ".join(f"{value:.4f}" for value in numbers[key]) for key in ("mean", "std"))
            lines.append(
                f"  {source} {modality}: {numbers['channels']} channels, {numbers['scaling']}, mean {mean}, "
                f"std {std} ({numbers['computed']})"
            )
            if "reason" in numbers:
                lines.append(f"    {numbers['reason']}")
    for kind, count in report["left_out_by_kind"].items():
        lines.append(f"  left out, {kind}: {count}")
    for name in report["exclude_names_that_match_nothing"][:5]:
        lines.append(f"  --exclude names {name!r}, which is no sample here")
    return "\n".join([*lines, f"  all of it in {out / 'report.json'}"])


if __name__ == "__main__":
    sys.exit(main())
