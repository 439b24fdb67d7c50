"""Windows over scenes, and what an exclusion list leaves out of them."""

from pathlib import Path

import numpy as np

from recipes.candidates import Candidate
from recipes.plan import PrepareError


class Tiling:
    """Windows over a scene; what is left at the right and lower border is counted, not covered."""

    def __init__(self, tile: int, stride: int) -> None:
        if tile < 1 or stride < 1:
            raise PrepareError(f"--tile and --stride are at least 1 pixel, got {tile} and {stride}")
        self.tile = tile
        self.stride = stride
        self.uncovered = 0

    def windows(self, height: int, width: int) -> np.ndarray:
        """(number, 2) int32: left and top of each window, row by row."""
        tops, lefts = (np.arange(0, side - self.tile + 1, self.stride, np.int32) for side in (height, width))
        step = min(self.tile, self.stride)
        down, across = (step * (len(starts) - 1) + self.tile for starts in (tops, lefts))
        self.uncovered += height * width - down * across
        return np.stack([np.tile(lefts, len(tops)), np.repeat(tops, len(lefts))], axis=1)


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

    def __bool__(self) -> bool:
        return bool(self._names)

    def covers(self, candidate: Candidate) -> bool:
        """Whether a sample is named, by its key or by one of its paths."""
        return self._hit({candidate.key, *candidate.paths.values()})

    def covers_window(self, candidate: Candidate, left: int, top: int) -> bool:
        """Whether one window of a sample is named, by the sample's key or by one of its paths."""
        return self._hit({f"{name}@{left},{top}" for name in (candidate.key, *candidate.paths.values())})

    def _hit(self, names: set[str]) -> bool:
        met = names & self._names
        self._met |= met
        self.count += bool(met)
        return bool(met)

    def unmatched(self) -> list[str]:
        """Names that no sample has."""
        return sorted(self._names - self._met)
