"""Structural similarity of an optical and a SAR image, scale by scale."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

SCALES = (1, 2, 4, 8)
"""Factors by which the pixel spacing grows."""

_WINDOW = 11


def similarity_by_scale(
    optical: npt.NDArray[np.float32], sar: npt.NDArray[np.float32], scales: Sequence[int] = SCALES
) -> dict[int, float | None]:
    """Mean SSIM of a pair on the levels of a Gaussian pyramid, as Fig. 1 of the CoDe-MAE paper plots it.

    Args:
        optical: (H, W) brightness in [0, 1]; NaN counts as 0.
        sar: (H, W) brightness in [0, 1]; NaN counts as 0.
        scales: Powers of two.

    Returns:
        Scale to SSIM (Gaussian window of 11 pixels, deviation 1.5, range 1); None where the level is smaller
        than the window.

    Raises:
        ValueError: The sides differ in size, or a scale is no power of two.
    """
    if optical.shape != sar.shape:
        raise ValueError(f"two sides of one size, got {optical.shape} and {sar.shape}")
    if any(scale < 1 or scale & (scale - 1) for scale in scales):
        raise ValueError(f"scales are powers of two, got {tuple(scales)}")
    levels = {1: (np.nan_to_num(optical), np.nan_to_num(sar))}
    for scale in range(1, max(scales).bit_length()):
        levels[1 << scale] = tuple(reduced(plane) for plane in levels[1 << (scale - 1)])  # type: ignore[assignment]
    return {scale: _similarity(*levels[scale]) for scale in scales}


def reduced(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The next level of a Gaussian pyramid: smoothed by the binomial filter 1 4 6 4 1, every second pixel."""
    kernel = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16
    for axis in (0, 1):
        plane = ndimage.convolve1d(
            plane, kernel, axis=axis, mode="mirror" if min(plane.shape) > 2 else "nearest"
        )
    return plane[::2, ::2]


def _similarity(optical: npt.NDArray[np.float32], sar: npt.NDArray[np.float32]) -> float | None:
    if min(optical.shape) < _WINDOW:
        return None
    first, second = (torch.from_numpy(np.ascontiguousarray(side))[None, None] for side in (optical, sar))
    found = structural_similarity_index_measure(first, second, sigma=1.5, data_range=1.0)
    return float(torch.as_tensor(found))
