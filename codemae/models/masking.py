"""Which patches a masked autoencoder keeps."""

from typing import NamedTuple

import torch
from torch import Tensor


class Masking(NamedTuple):
    """A split of the N patches into kept and removed ones.

    Attributes:
        ids_keep: (B, M) indices of the kept patches.
        ids_removed: (B, N - M) indices of the removed ones.
        mask: (B, N) float, 1 = removed, as in MAE.
    """

    ids_keep: Tensor
    ids_removed: Tensor
    mask: Tensor


def random_masking(noise: Tensor, mask_ratio: float) -> Masking:
    """Keeps the int(N * (1 - mask_ratio)) patches with the smallest noise.

    The product is rounded as floats are before it is cut off, as in MAE: of 100 patches a ratio of 0.9 keeps
    9, of 25 a ratio of 0.8 keeps 4. The noise comes from outside, so that a sample's mask depends on the
    sample alone and both modalities of a sample share it.

    Args:
        noise: (B, N), any float.
        mask_ratio: Part to remove, 0 <= ratio < 1.

    Raises:
        ValueError: The ratio leaves no patch.
    """
    B, N = noise.shape
    kept = int(N * (1 - mask_ratio))
    if not 0 < kept <= N:
        raise ValueError(f"mask_ratio {mask_ratio} keeps {kept} of {N} patches; it must lie in [0, 1)")
    order = noise.argsort(dim=1)
    ids_keep, ids_removed = order[:, :kept], order[:, kept:]
    mask = torch.ones(B, N, device=noise.device).scatter_(1, ids_keep, 0.0)
    return Masking(ids_keep, ids_removed, mask)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Picks tokens by index: (B, N, D), (B, M) -> (B, M, D)."""
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))
