"""Masked reconstruction: mean squared error on the removed patches."""

from einops import rearrange
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cuts images into flat patches, pixel-major with channels last, as MAE does.

    Args:
        images: (B, C, H, W).
        patch_size: P, a divisor of both sides.

    Returns:
        (B, h * w, P * P * C).
    """
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of ``patchify``: (B, h * w, P * P * C) -> (B, C, h P, w P)."""
    h, w = grid
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=h, w=w, p=patch_size, q=patch_size)


def standardise_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Gives every patch zero mean and unit variance: (x - mean) / sqrt(var + eps), unbiased variance."""
    patches = patches.float()
    return (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + eps).sqrt()


def reconstruction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over removed patches.

    With R the predictions and P the targets of the B x L removed patches, each of E values:

        loss = 1 / (B L) * sum_{b, l} 1 / E * sum_e (R_ble - P_ble)^2

    Visible patches are not passed in, so they cannot contribute.

    Args:
        predictions: (B, L, E).
        targets: (B, L, E); receives no gradient.

    Returns:
        A scalar in float32.

    Distributed: a mean over the rank's own samples; DDP averages over ranks.

    Differs from the paper: Eq. 1 writes the squared norm of a patch (a sum over its E values); like MAE and
    the authors' code this is their mean.

    Reference: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022; CoDe-MAE Eq. 1, 5.
    """
    return (predictions.float() - targets.detach().float()).square().mean()
