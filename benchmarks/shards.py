"""Random reads of single images: plain files against members of tar shards, in one run.

    python benchmarks/shards.py [--root DIR] [--reads 3000] [--rounds 5] [--cold]

Without ``--root`` it writes small JPEG files first. Both forms hold the same images and are read in the same
random order, in turns, so that a busy machine slows both. ``--cold`` asks the system to forget the pages of
all files before each turn. Figures are the fastest turn of each; the last line is one JSON object.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from codemae.data.images import Location, read_picture
from codemae.data.index import open_index, write_index
from codemae.data.shards import pack
from codemae.data.statistics import IndexStatistics, SourceStatistics

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")


def make_images(folder: Path, count: int) -> Path:
    """Writes JPEG files of 64 pixels, a hundred a folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / str(number // 100) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return folder


def indexed(root: Path, folder: Path) -> Path:
    """An index of all images below a folder."""
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES)
    rows = [{"source": "made", "split": "train", "group": name, "optical": name} for name in names]
    made = SourceStatistics(channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    write_index(folder, rows, IndexStatistics(sources={"made": {"optical": made}}), root)
    return folder


def locations(index_dir: Path) -> list[Location]:
    """Where each image lies."""
    index = open_index(index_dir)
    return [index.location(int(row), "optical") for row in index.rows]


def forget(paths: Sequence[str]) -> None:
    """Drops the clean pages of files from memory."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def decoded(location: Location) -> object:
    """The image."""
    return read_picture(location)


_HANDLES: dict[str, int] = {}


def raw(location: Location) -> bytes:
    """The bytes alone."""
    if location.offset is None:
        return Path(location.path).read_bytes()
    handle = _HANDLES.setdefault(location.path, 0) or os.open(location.path, os.O_RDONLY)
    _HANDLES[location.path] = handle
    return os.pread(handle, location.size or 0, location.offset)


def fastest(
    forms: dict[str, list[Location]], read: Callable[[Location], object], reads: int, rounds: int, cold: bool
) -> dict[str, float]:
    """Reads a second of each form, in its fastest round."""
    best = dict.fromkeys(forms, 0.0)
    for number in range(rounds):
        order = random.Random(number).choices(range(len(next(iter(forms.values())))), k=reads)
        for name, places in forms.items():
            if cold:
                forget(sorted({places[place].path for place in order}))
            start = time.perf_counter()
            for place in order:
                read(places[place])
            best[name] = max(best[name], reads / (time.perf_counter() - start))
    return best


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, help="folder of images; default: some are written")
    parser.add_argument("--reads", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="forget the files' pages before each turn")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = args.root or make_images(folder / "images", 3000)
        index = indexed(root.resolve(), folder / "plain")
        packed = pack(index, folder / "packed")
        forms = {"plain": locations(index), "shards": locations(folder / "packed")}
        result: dict[str, object] = {"images": packed.images, "shards": packed.shards, "cold": args.cold}
        for what, read in (("bytes", raw), ("decoded", decoded)):
            speed = fastest(forms, read, args.reads, args.rounds, args.cold)
            ratio = speed["shards"] / speed["plain"]
            print(f"{what:8} plain {speed['plain']:.0f}/s, shards {speed['shards']:.0f}/s, ratio {ratio:.2f}")
            result[what] = {name: round(value) for name, value in speed.items()} | {"ratio": round(ratio, 3)}
        print(json.dumps(result))


if __name__ == "__main__":
    main()
