"""How far a SAR image is displaced against its optical partner, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

Plane: TypeAlias = npt.NDArray[np.float32]

SCALES = (1.5, 3.0)
ORIENTATIONS = 8
CONFIDENT = 4.5
"""z-score of the peak that shuffled pairs of real images hardly ever reach (figures: datasets/README.md)."""

_PEAK_REACH = 8


@dataclass(frozen=True, slots=True)
class Registration:
    """Where the SAR image lies against the optical one.

    Attributes:
        x: Pixels by which the SAR image's content lies to the right of the optical one's.
        y: Pixels by which it lies below.
        confidence: Height of the correlation peak over the rest of the searched surface, in standard
            deviations of that rest; 0 where a side has no texture.
        at_edge: Whether the peak lies on the border of the search, so that the offset may be larger.
    """

    x: float
    y: float
    confidence: float
    at_edge: bool = False

    @property
    def length(self) -> float:
        """Length of the offset in pixels."""
        return float(np.hypot(self.x, self.y))


def register(optical: Plane, sar: Plane, radius: int = 32, scales: Sequence[float] = SCALES) -> Registration:
    """Estimates the offset by gradient-domain phase correlation.

    An edge looks different to the two sensors in sign and strength but has the same place and direction. Each
    side becomes ``ORIENTATIONS`` maps of absolute directional derivatives, smoothed, and divided by their
    length at each pixel, which leaves direction and little of contrast. The maps' cross-spectra are added up
    and divided by the square root of their magnitude: halfway between correlation and phase correlation,
    which keeps the peak narrow without weighing noise as much as structure. The surfaces of the scales are
    added, each in units of its standard deviation; the peak is refined by a parabola along each axis.

    Args:
        optical: (H, W) brightness in [0, 1]; NaN where nothing was measured.
        sar: (H, W) brightness in [0, 1]; its logarithm is taken and its speckle median-filtered here.
        radius: Largest offset searched in pixels, at most a quarter of the shorter side.
        scales: Standard deviations of the derivative filters in pixels.

    Raises:
        ValueError: The sides differ in size or are smaller than 24 pixels.
    """
    if optical.shape != sar.shape or min(optical.shape) < 24:
        raise ValueError(f"two sides of one size from 24 pixels on, got {optical.shape} and {sar.shape}")
    sides = _filled(optical), despeckled(_filled(sar))
    if min(float(side.std()) for side in sides) < 1e-4:
        return Registration(0.0, 0.0, 0.0)
    taper = _taper(optical.shape)
    surface = np.zeros(optical.shape, dtype=np.float32)
    for scale in scales:
        first, second = (_spectra(orientation_maps(side, scale), taper) for side in sides)
        surface += _surface(first, second, optical.shape)
    return _peak(fft.fftshift(surface), min(radius, min(optical.shape) // 4))


def despeckled(sar: Plane) -> Plane:
    """Logarithm of a SAR image in [0, 1], median-filtered against speckle."""
    return ndimage.median_filter(np.log(sar + np.float32(0.03)), size=3)


def orientation_maps(plane: Plane, scale: float, orientations: int = ORIENTATIONS) -> Plane:
    """Absolute derivatives along evenly spread directions, (orientations, H, W), of about unit length."""
    across = ndimage.gaussian_filter(plane, scale, order=(0, 1))
    down = ndimage.gaussian_filter(plane, scale, order=(1, 0))
    angles = np.arange(orientations, dtype=np.float32)[:, None, None] * np.float32(np.pi / orientations)
    maps = np.abs(across * np.cos(angles) + down * np.sin(angles))
    maps = ndimage.gaussian_filter(maps, (0, scale, scale))
    maps = 0.5 * maps + 0.25 * (np.roll(maps, 1, axis=0) + np.roll(maps, -1, axis=0))
    length = np.sqrt((maps**2).sum(axis=0))
    return (maps / (length + 0.5 * np.median(length) + 1e-9)).astype(np.float32)


def _filled(plane: Plane) -> Plane:
    """The plane with NaN replaced by the median of the rest."""
    missing = ~np.isfinite(plane)
    if not missing.any():
        return plane.astype(np.float32)
    value = 0.0 if missing.all() else float(np.median(plane[~missing]))
    return np.where(missing, np.float32(value), plane).astype(np.float32)


def _taper(shape: tuple[int, ...]) -> Plane:
    """Weights that fall to zero in the outer eighth of each side."""

    def along(length: int) -> Plane:
        reach = max(4, length // 8)
        ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(reach) + 0.5) / reach)
        return np.concatenate([ramp, np.ones(length - 2 * reach), ramp[::-1]]).astype(np.float32)

    return np.outer(along(shape[0]), along(shape[1]))


def _spectra(maps: Plane, taper: Plane) -> npt.NDArray[np.complex64]:
    mean = (maps * taper).sum(axis=(1, 2), keepdims=True) / taper.sum()
    return fft.rfft2((maps - mean) * taper)


def _surface(
    optical: npt.NDArray[np.complex64], sar: npt.NDArray[np.complex64], shape: tuple[int, ...]
) -> Plane:
    """Half-whitened correlation of all orientations together, in units of its standard deviation."""
    cross = (np.conj(optical) * sar).sum(axis=0)
    power = np.sqrt((np.abs(optical) ** 2).sum(axis=0) * (np.abs(sar) ** 2).sum(axis=0))
    cross /= np.sqrt(power) + 1e-12
    cross[0, 0] = 0
    surface = fft.irfft2(cross, s=shape)
    return (surface / max(float(surface.std()), 1e-12)).astype(np.float32)


def _peak(surface: Plane, radius: int) -> Registration:
    """The highest point within the radius of the centre of a surface, refined."""
    middle, centre = surface.shape[0] // 2, surface.shape[1] // 2
    near = surface[middle - radius : middle + radius + 1, centre - radius : centre + radius + 1]
    down, across = np.unravel_index(int(near.argmax()), near.shape)
    y, x = int(down) - radius, int(across) - radius
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    rest = near[(rows - y) ** 2 + (columns - x) ** 2 > min(_PEAK_REACH, radius / 2) ** 2]
    spread = float(rest.std())
    return Registration(
        x=x + _vertex(surface[middle + y, centre + x - 1 : centre + x + 2]),
        y=y + _vertex(surface[middle + y - 1 : middle + y + 2, centre + x]),
        confidence=(float(near.max()) - float(rest.mean())) / spread if spread > 0 else 0.0,
        at_edge=max(abs(x), abs(y)) == radius,
    )


def _vertex(values: Plane) -> float:
    """Place of the top of the parabola through three values, from the middle one."""
    before, top, after = (float(value) for value in values)
    bend = before - 2 * top + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))
