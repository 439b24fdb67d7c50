"""Names of image files, found folder by folder and kept in Arrow columns."""

import os
from array import array
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipes.left_out import LeftOut, LeftOuts

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".ppm", ".pgm", ".npy")

_BATCH = 4096


def images_below(folder: Path, below: str = "", deep: bool = True) -> Iterator[str]:
    """Paths of image files in a folder and the folders in it, sorted, hidden ones left aside.

    Args:
        folder: Folder the paths are relative to.
        below: Folder in it to begin at, with a slash at the end.
        deep: Whether to go into folders.
    """
    names: list[str] = []
    folders: set[str] = set()
    with os.scandir(folder / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            names.append(entry.name)
            if entry.is_dir():
                folders.add(entry.name)
    names.sort()
    for name in names:
        if name in folders:
            if deep:
                yield from images_below(folder, f"{below}{name}/")
        elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            yield below + name


class Names:
    """A column of texts that grows."""

    def __init__(self) -> None:
        self._stored: list[pa.Array] = []
        self._waiting: list[str] = []

    def append(self, text: str) -> None:
        """Adds one at the end."""
        self._waiting.append(text)
        if len(self._waiting) >= _BATCH:
            self._store()

    def whole(self) -> pa.Array:
        """All of them."""
        self._store()
        self._stored = [pa.concat_arrays(self._stored)] if self._stored else [pa.array([], pa.large_string())]
        return self._stored[0]

    def _store(self) -> None:
        if self._waiting:
            self._stored.append(pa.array(self._waiting, pa.large_string()))
            self._waiting = []


class Keyed:
    """Texts with a path each, looked up many at a time; held are the texts and a hash of each.

    Attributes:
        keys: The texts, each once.
        paths: Path of each.
        doubled: Of a key that stood several times: the key, its first path and one of the others, a tuple
            for each of the others. Such keys are not in ``keys``.
    """

    def __init__(self, entries: Iterable[tuple[str, str]]) -> None:
        keys, paths, hashes = Names(), Names(), array("q")
        for key, path in entries:
            keys.append(key)
            paths.append(path)
            hashes.append(hash(key))
        self.keys, self.paths = keys.whole(), paths.whole()
        self._hashes = np.array(hashes, dtype=np.int64)
        self.doubled: list[tuple[str, str, str]] = []
        self._drop_doubled()
        self._order = np.argsort(self._hashes, kind="stable")
        self._hashes = self._hashes[self._order]

    def _drop_doubled(self) -> None:
        same: dict[str, list[int]] = {}
        for place in hashed_alike(self._hashes).tolist():
            same.setdefault(self.keys[place].as_py(), []).append(place)
        alone = np.ones(len(self.keys), dtype=bool)
        for key, places in same.items():
            if len(places) > 1:
                alone[places] = False
                first, *others = (self.paths[place].as_py() for place in places)
                self.doubled += [(key, first, other) for other in others]
        if not alone.all():
            kept = pa.array(alone)
            self.keys, self.paths = self.keys.filter(kept), self.paths.filter(kept)
            self._hashes = self._hashes[alone]

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for start in range(0, len(self.keys), _BATCH):
            parts = (column.slice(start, _BATCH).to_pylist() for column in (self.keys, self.paths))
            yield from zip(*parts, strict=True)

    def places(self, wanted: pa.Array | list[str]) -> np.ndarray:
        """Place of each wanted key, -1 where it is not here."""
        found = np.full(len(wanted), -1, dtype=np.int64)
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            texts = part if isinstance(part, list) else part.to_pylist()
            found[start : start + len(texts)] = self._places(texts)
        return found

    def _places(self, texts: list[str]) -> np.ndarray:
        hashes = hashes_of(texts)
        first = np.searchsorted(self._hashes, hashes)
        last = np.searchsorted(self._hashes, hashes, side="right")
        found = np.full(len(texts), -1, dtype=np.int64)
        hit = np.flatnonzero(last > first)
        guess = self._order[first[hit]]
        held = self.keys.take(pa.array(guess)).to_pylist()
        for place, number, text in zip(hit.tolist(), guess.tolist(), held, strict=True):
            if text == texts[place]:
                found[place] = number
            else:
                others = self._order[first[place] + 1 : last[place]].tolist()
                found[place] = next((n for n in others if self.keys[n].as_py() == texts[place]), -1)
        return found


def hashes_of(names: Iterable[Hashable]) -> np.ndarray:
    """(number,) int64: hashes that hold within this process."""
    return np.fromiter(map(hash, names), dtype=np.int64)


def hashed_alike(hashes: np.ndarray) -> np.ndarray:
    """Places whose hash another place has too, ascending: equal names are among them, others hardly ever."""
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    return np.unique(np.concatenate([order[1:][same], order[:-1][same]]))


def by_stem(folder: Path, left_out: LeftOuts) -> Keyed:
    """Images of a folder by their path without suffix; two files of one stem are left out."""
    found = Keyed((os.path.splitext(path)[0], path) for path in images_below(folder))
    for stem in sorted({key for key, _, _ in found.doubled}):
        left_out.append(LeftOut(stem, "ambiguous", f"two images named {stem!r} in {folder}"))
    return found


def sorted_places(names: pa.Array) -> np.ndarray:
    """Places of the names in their order by code point."""
    return pc.array_sort_indices(names).to_numpy()
