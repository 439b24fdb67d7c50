"""Random numbers that depend on what is drawn, never on who draws it or when."""

import zlib
from functools import lru_cache

import numpy as np

_WORD = (1 << 64) - 1


@lru_cache(maxsize=256)
def _stream_number(stream: str) -> int:
    return zlib.crc32(stream.encode())


def counter_rng(seed: int, epoch: int, repeat: int, row: int, stream: str) -> np.random.Generator:
    """A generator for one purpose of one sample.

    Philox is a block cipher of a counter, so generators of different arguments never overlap and
    making one costs microseconds; no state has to be saved to resume.

    Args:
        seed: The run's seed.
        epoch: The epoch.
        repeat: How many times the row was drawn before in this epoch.
        row: The index row, or -1 for what belongs to no row.
        stream: What the numbers are for, such as ``"mask"`` or ``"crop:pair"``.
    """
    key = np.array([seed & _WORD, _stream_number(stream)], dtype=np.uint64)
    counter = np.array([0, epoch & _WORD, repeat & _WORD, row & _WORD], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
