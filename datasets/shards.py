"""Packs the images of an index into tar shards: python datasets/shards.py INDEX_DIR --out DIR."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.plan import PrepareError

from codemae.data.images import PathError
from codemae.data.index import IndexFileError
from codemae.data.shards import SHARD_BYTES, Packed, ShardError, pack
from codemae.data.statistics import StatisticsError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(text: str) -> int:
    """Reads ``1GB``, ``500 MB`` or a number of bytes.

    Raises:
        argparse.ArgumentTypeError: It is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    size = float(found[1]) * _UNITS.get(found[2].upper(), 0) if found else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 1GB, 500MB or a number of bytes")
    return int(size)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how large shards are."""
    parser.add_argument(
        "--shard-size", type=size_in_bytes, default=SHARD_BYTES, metavar="SIZE", help="default: 1GB"
    )


def packed(index_dir: Path, out: Path, shard_bytes: int, root: Path | None = None) -> Packed:
    """Packs with a line a shard on stderr.

    Raises:
        PrepareError: It cannot be packed.
    """

    def advance(done: int, total: int) -> None:
        print(f"packed {done / 1e9:.2f} of {total / 1e9:.2f} GB", file=sys.stderr, flush=True)

    try:
        return pack(index_dir, out, shard_bytes, root, advance)
    except ShardError as error:
        raise PrepareError(str(error)) from None


def describe(result: Packed) -> str:
    """What was packed, in a line."""
    beside = f", {result.copied} masks and second dates beside them" if result.copied else ""
    return f"{result.images} images in {result.shards} shards in {result.folder}{beside}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python datasets/shards.py", description=__doc__)
    parser.add_argument("index_dir", type=Path, metavar="INDEX_DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="may be INDEX_DIR itself")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where the images are now, if they have moved"
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        print(describe(packed(args.index_dir, args.out, args.shard_size, args.root)))
    except (PrepareError, IndexFileError, StatisticsError, PathError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
