"""Degradations of an image that another modality is asked to reconstruct."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Degradation = Literal["rgb", "gray", "median", "avg_pool", "hog", "mgf"]
LUMA = (0.299, 0.587, 0.114)
HOG_BINS, HOG_CELL = 9, 8
MGF_RADII = (9, 13, 17)


def grayscale(images: Tensor) -> Tensor:
    """Luma 0.299 R + 0.587 G + 0.114 B of a colour image, the channel mean of any other: (B, 1, H, W)."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)


def median_blur(images: Tensor, size: int = 5) -> Tensor:
    """Median over a size x size window, reflected at borders: (B, C, H, W) -> the same.

    Differs from the authors' code: kornia's filter there sees zeros beyond the border.
    """
    pad = size // 2
    windows = F.pad(images, (pad,) * 4, mode="reflect").unfold(2, size, 1).unfold(3, size, 1)
    return windows.flatten(4).median(dim=4).values


def average_pool(images: Tensor, size: int) -> Tensor:
    """Mean of each size x size block, put back in all its pixels: (B, C, H, W) -> the same."""
    pooled = F.avg_pool2d(images, size)
    return pooled.repeat_interleave(size, dim=2).repeat_interleave(size, dim=3)


def histogram_of_gradients(images: Tensor) -> Tensor:
    """Oriented-gradient histograms of the gray image, 9 unsigned bins over cells of 8 px.

    Gradients are central differences, each pixel votes with its magnitude for its bin, and every cell's
    histogram is L2-normalised, as in MaskFeat.

    Returns:
        (B, 9, H / 8, W / 8).

    Differs from the authors' code: gradients are Sobel's there, votes are weighted by a Gaussian window (16
    px, deviation 8) tiled over the image, histograms are not normalised, and the cells are interpolated to a
    dense map of the image's size: a patch of 16 px has 2304 values there, 36 here.
    """
    gray = grayscale(images)
    padded = F.pad(gray, (1, 1, 1, 1), mode="reflect")
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    magnitude = torch.sqrt(dx.square() + dy.square())
    angle = torch.atan2(dy, dx) % math.pi
    bins = (angle / math.pi * HOG_BINS).long().clamp_(max=HOG_BINS - 1)
    votes = torch.zeros_like(gray).repeat(1, HOG_BINS, 1, 1).scatter_(1, bins, magnitude)
    return F.normalize(F.avg_pool2d(votes, HOG_CELL) * HOG_CELL**2, dim=1, eps=1e-6)


def multi_scale_gradient(images: Tensor) -> Tensor:
    """Ratio gradients of the gray image at three scales, robust to multiplicative speckle.

    At radius r the box means of the two opposite halves of a pixel's window are compared, left and right,
    above and below: log((a + 0.01) / (b + 0.01)) in both directions, joined as a magnitude. A half has r + 1
    lines: the one through the pixel belongs to both. Borders are reflected.

    Returns:
        (B, 3, H, W), one channel per radius of 9, 13, 17.

    Reference: Li et al., "SARATR-X", 2024 (multi-scale gradient features).
    """
    gray = grayscale(images)
    return torch.cat([_ratio_gradient(gray, radius) for radius in MGF_RADII], dim=1)


def _ratio_gradient(gray: Tensor, radius: int) -> Tensor:
    size, eps = 2 * radius + 1, 1e-2
    padded = F.pad(gray, (radius,) * 4, mode="reflect")
    half = gray.new_ones(1, 1, size, radius + 1)
    rest = gray.new_zeros(1, 1, size, radius)
    left = torch.cat([half, rest], dim=3) / half.numel()
    kernels = torch.cat([left, left.flip(3), left.transpose(2, 3), left.transpose(2, 3).flip(2)])
    means = F.conv2d(padded, kernels) + eps
    horizontal = torch.log(means[:, 0:1] / means[:, 1:2])
    vertical = torch.log(means[:, 2:3] / means[:, 3:4])
    return torch.sqrt(horizontal.square() + vertical.square() + 1e-12)


_CELLS = {"hog": HOG_CELL}
_CHANNELS = {"rgb": 3, "gray": 1, "median": 3, "avg_pool": 3, "hog": HOG_BINS, "mgf": len(MGF_RADII)}
USES_UNNORMALISED = ("hog", "mgf")
"""Degradations taken of the [0, 1] image whatever the config says: they need non-negative intensities."""
KEEPS_COLOUR = ("rgb", "median", "avg_pool")
"""Degradations with three channels, of images with one or three; the others make one gray image of any."""


def degraded_patches(images: Tensor, kind: Degradation, patch_size: int, pool_size: int = 16) -> Tensor:
    """Degrades images and cuts the result along the encoder's patches.

    Args:
        images: (B, C, H, W); a single channel is repeated for the kinds of ``KEEPS_COLOUR``, which take no
            other C than 1 and 3.
        kind: The degradation.
        patch_size: P.
        pool_size: Side of the blocks of ``avg_pool``, a divisor of both sides.

    Returns:
        (B, N, ``degraded_patch_dim``).

    Raises:
        KeyError: Unknown kind.
    """
    if kind not in _CHANNELS:
        raise KeyError(f"unknown degradation {kind!r}; known: {', '.join(_CHANNELS)}")
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "gray": grayscale,
        "median": median_blur,
        "avg_pool": partial(average_pool, size=pool_size),
        "hog": histogram_of_gradients,
        "mgf": multi_scale_gradient,
    }
    degraded = images.float()
    if kind in KEEPS_COLOUR:
        degraded = degraded.expand(-1, 3, -1, -1)
    if kind in functions:
        degraded = functions[kind](degraded)
    side = patch_size // _CELLS.get(kind, 1)
    return rearrange(degraded, "b c (h p) (w q) -> b (h w) (p q c)", p=side, q=side)


def degraded_patch_dim(kind: Degradation, patch_size: int) -> int:
    """Values a degraded patch has."""
    return _CHANNELS[kind] * (patch_size // _CELLS.get(kind, 1)) ** 2
