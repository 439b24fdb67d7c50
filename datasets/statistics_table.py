"""Prints mean and deviation of each source in Markdown: python datasets/statistics_table.py INDEX_DIR."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from codemae.data.statistics import IndexStatistics, SourceStatistics, StatisticsError, read_statistics

_HEAD = "| source | optical mean | optical std | SAR mean | SAR std |\n|---|---|---|---|---|"


def table(statistics: IndexStatistics) -> str:
    """A row a source, four decimals without the zero before them; a dash where a modality is absent."""
    rows = [_HEAD]
    for source, sides in sorted(statistics.sources.items()):
        cells = [cell for modality in ("optical", "sar") for cell in _cells(sides.get(modality))]
        rows.append("| " + " | ".join([source, *cells]) + " |")
    return "\n".join(rows)


def _cells(numbers: SourceStatistics | None) -> tuple[str, str]:
    if numbers is None:
        return "-", "-"
    return _written(numbers.mean), _written(numbers.std)


def _written(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}".removeprefix("0") for value in values)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python datasets/statistics_table.py", description=__doc__)
    parser.add_argument("index_dirs", type=Path, nargs="+", metavar="INDEX_DIR")
    try:
        found = [read_statistics(folder) for folder in parser.parse_args(argv).index_dirs]
    except StatisticsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(IndexStatistics(sources={k: v for each in found for k, v in each.sources.items()})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
