"""Masking for encoders that need whole images: removed blocks are filled, and marked after the stem."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from codemae.models.masking import random_masking


def block_mask(noise: Tensor, grid: tuple[int, int], mask_ratio: float) -> Tensor:
    """Which blocks of each image are removed: (B, h * w) noise -> (B, 1, h, w) float, 1 = removed."""
    return random_masking(noise, mask_ratio).mask.unflatten(1, grid)[:, None]


def resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask of blocks (B, 1, h, w) on a finer grid, each block a rectangle of equal values."""
    return F.interpolate(mask, size=tuple(size), mode="nearest")


def fill_removed(images: Tensor, mask: Tensor) -> Tensor:
    """Gives removed pixels the mean of their image, channel by channel.

    The mean is the part of an image that says least about it, and unlike zeros it makes no edges that are not
    in the image's own range.

    Args:
        images: (B, C, H, W).
        mask: (B, 1, h, w), 1 = removed, in blocks of H / h by W / w pixels.

    Returns:
        (B, C, H, W).

    Reference: CMID Eq. 3; Li et al., "Architecture-Agnostic Masked Image Modeling", ICML 2023,
        arXiv:2205.13943.
    """
    mean = images.mean((2, 3), keepdim=True)
    return torch.lerp(images, mean.expand_as(images), resize_mask(mask, images.shape[-2:]).to(images.dtype))
