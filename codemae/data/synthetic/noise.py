"""Named random streams and smooth noise fields, the raw material of the synthetic scenes."""

import zlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

# Mean square of the four cubic B-spline weights over a cell, in one dimension (151/315).
_SPLINE_POWER = 151 / 315


def stream(seed: int, name: str) -> np.random.Generator:
    """Returns the generator of one named use of one seed.

    Every ingredient of a scene draws from its own stream, so that an option which makes one of them draw more
    or fewer numbers leaves all others as they were.
    """
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(name.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@lru_cache(maxsize=256)
def _spline_weights(length: int, scale: float) -> Float:
    """Cubic B-spline weights (length, knots) of knots `scale` pixels apart."""
    position = np.arange(length) / scale
    cell = np.floor(position).astype(np.int64)
    t = position - cell
    weights = np.stack(
        [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1
    )
    matrix = np.zeros((length, int(cell[-1]) + 4), dtype=np.float32)
    np.put_along_axis(matrix, cell[:, None] + np.arange(4), (weights / 6).astype(np.float32), axis=1)
    matrix.setflags(write=False)
    return matrix


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> Float:
    """Draws a smooth field of zero mean and unit variance whose features are about `scale` pixels wide."""
    rows, columns = _spline_weights(shape[0], scale), _spline_weights(shape[1], scale)
    knots = rng.standard_normal((rows.shape[1], columns.shape[1]), dtype=np.float32)
    return (rows @ knots @ columns.T / np.float32(_SPLINE_POWER)).astype(np.float32, copy=False)


def fractal_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float, octaves: int = 3) -> Float:
    """Draws smooth noise with ever finer detail: each octave halves the width and the amplitude."""
    total = np.zeros(shape, dtype=np.float32)
    for octave in range(octaves):
        total += np.float32(0.5**octave) * smooth_noise(rng, shape, max(scale / 2**octave, 1.5))
    return total / np.float32(np.sqrt(sum(0.25**octave for octave in range(octaves))))
