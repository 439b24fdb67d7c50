"""From pixels to stem tokens, and the positions added to them."""

import logging
import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codemae.models.layers import LayerNorm

log = logging.getLogger(__name__)

ChannelRule = Literal["sum", "mean", "cycle"]
INNER = 4  # A patch of 16 px is embedded as 4 x 4 cells of 4 px.


class PatchEmbed(nn.Module):
    """Embeds the 4-px cells of each 16-px patch: a strided convolution, then LayerNorm.

    Cells stay grouped by patch, so masked patches can be dropped before any arithmetic is spent on them.

    Args:
        channels: Image channels C.
        dim: Width of a cell's token.
        patch_size: Patch side P.

    Shape:
        images (B, C, H, W), ids_keep (B, M) or None -> (B, M or N, 4, 4, dim).
    """

    def __init__(self, channels: int, dim: int, patch_size: int = 16) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size // INNER, stride=patch_size // INNER)
        self.norm = LayerNorm(dim)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Embeds all patches, or the kept ones alone."""
        images = self._matched_channels(images)
        B, _, H, W = images.shape
        P = self.patch_size
        patch_grid(images, P)
        cells = (
            images.unflatten(3, (W // P, P)).unflatten(2, (H // P, P)).permute(0, 2, 4, 1, 3, 5)
        )  # (B,h,w,C,P,P)
        if ids_keep is None:
            patches = cells.reshape(B, -1, *cells.shape[3:])
        else:
            rows = torch.arange(B, device=images.device)[:, None]
            patches = cells[rows, ids_keep // (W // P), ids_keep % (W // P)]
        patches = rearrange(patches, "b m c (p i) (q j) -> b m p q (c i j)", p=INNER, q=INNER)
        return self.norm(F.linear(patches, self.proj.weight.flatten(1), self.proj.bias))

    def _matched_channels(self, images: Tensor) -> Tensor:
        wanted, given = self.proj.in_channels, images.shape[1]
        if given == wanted:
            return images
        if given == 1:
            return images.expand(-1, wanted, -1, -1)
        raise ValueError(
            f"image has {given} channels, this patch embedding takes {wanted}; load the encoder with "
            f"channels={{modality: {given}}} (and channel_rule='sum', 'mean' or 'cycle') to adapt its weights"
        )


def patch_grid(images: Tensor, side: int) -> tuple[int, int]:
    """Rows and columns of patches of this side in (B, C, H, W).

    Raises:
        ValueError: The patches do not cover the images.
    """
    height, width = images.shape[-2:]
    if height % side or width % side:
        raise ValueError(
            f"image of {height} x {width} px: both sides must be multiples of {side}; pad or resize it"
        )
    return height // side, width // side


def fit_patch_embeddings(
    state: Mapping[str, Tensor],
    channels: Mapping[str, int],
    rule: ChannelRule,
    key: str = "patch_embed.{}.proj.weight",
) -> dict[str, Tensor]:
    """The weights, with the first convolution of each modality fitted to its number of channels.

    Args:
        state: Weights by name; those of other modalities stay as they are.
        channels: Wanted channels of each modality.
        rule: See ``adapt_channels``.
        key: Name of a modality's first convolution.
    """
    fitted = dict(state)
    for modality, count in channels.items():
        if (name := key.format(modality)) in fitted:
            fitted[name] = adapt_channels(fitted[name], count, rule)
    return fitted


def adapt_channels(weight: Tensor, channels: int, rule: ChannelRule = "cycle") -> Tensor:
    """Fits patch-embedding weights to another number of input channels.

    Rules: ``sum`` gives every new channel the sum of the old ones over the new count (a gray image spread
    over all channels answers as before); ``mean`` gives each the mean of the old ones; ``cycle`` repeats the
    old channels in turn, scaled by old/new so that activations keep their size. Going to one channel,
    ``sum`` and ``cycle`` answer exactly as the old weights do for that channel repeated.

    Args:
        weight: (D, C, P, P).
        channels: Wanted C.
        rule: One of the three.

    Returns:
        (D, channels, P, P).
    """
    old = weight.shape[1]
    if old == channels:
        return weight
    log.info("patch embedding: %d input channels made from %d by rule %r", channels, old, rule)
    if rule == "sum":
        return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
    if rule == "mean":
        return weight.mean(1, keepdim=True).repeat(1, channels, 1, 1)
    if rule == "cycle":
        if channels == 1:
            return weight.sum(1, keepdim=True)
        repeated = weight.repeat(1, math.ceil(channels / old), 1, 1)[:, :channels]
        return repeated * (old / channels)
    raise ValueError(f"unknown channel rule {rule!r}; known: sum, mean, cycle")


def sincos_positions(dim: int, grid: tuple[int, int]) -> Tensor:
    """Fixed 2-D sine-cosine positions, half of the width for rows and half for columns, base 10000.

    Returns:
        (1, h * w, dim), row-major, the column half first as in MAE.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width divisible by 4, got {dim}")
    h, w = grid
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(
        torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float().unsqueeze(0)


def resize_pos_embed(
    positions: Tensor, grid: tuple[int, int], old_grid: tuple[int, int] | None = None
) -> Tensor:
    """Interpolates learned positions to another patch grid (bicubic, anti-aliased when shrinking).

    Args:
        positions: (1, N, D).
        grid: Wanted (h, w).
        old_grid: The grid N stands for; square when not given.

    Returns:
        (1, h * w, D).
    """
    if old_grid is None:
        side = math.isqrt(positions.shape[1])
        if side * side != positions.shape[1]:
            raise ValueError(f"{positions.shape[1]} positions are no square grid; pass old_grid")
        old_grid = (side, side)
    if old_grid == tuple(grid):
        return positions
    maps = rearrange(positions.float(), "1 (h w) d -> 1 d h w", h=old_grid[0])
    maps = F.interpolate(maps, size=grid, mode="bicubic", antialias=True, align_corners=False)
    return rearrange(maps, "1 d h w -> 1 (h w) d").to(positions.dtype)
