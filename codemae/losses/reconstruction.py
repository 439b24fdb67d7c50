"""Masked reconstruction: errors on the removed part of an image."""

from typing import Literal

from einops import rearrange
from torch import Tensor

PixelLoss = Literal["l1", "focal_l1"]


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


def unstandardise_patches(patches: Tensor, like: Tensor, eps: float = 1e-6) -> Tensor:
    """Gives guesses of standardised patches the mean and deviation of the true patches they stand for."""
    return patches * (like.var(-1, keepdim=True) + eps).sqrt() + like.mean(-1, keepdim=True)


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


def masked_pixel_loss(
    predictions: Tensor, targets: Tensor, mask: Tensor, kind: PixelLoss = "l1", beta: float = 0.2
) -> Tensor:
    """Mean absolute error over the removed pixels of whole images.

    With d = prediction - target over the removed pixels and all channels, s the logistic function:

        l1:       loss = mean |d|
        focal_l1: loss = mean |d| * (2 s(beta |d|) - 1), which weighs large errors more

    Args:
        predictions: (B, C, H, W).
        targets: (B, C, H, W); receives no gradient.
        mask: (B, 1, H, W), 1 = removed, as many pixels in each image.
        kind: ``l1`` is CMID's Eq. 2, ``focal_l1`` its authors' code.
        beta: How soon the weight of ``focal_l1`` saturates.

    Returns:
        A scalar in float32.

    Distributed: a mean over the rank's own samples; DDP averages over ranks.

    Reference: Xie et al., "SimMIM", CVPR 2022; CMID Eq. 2; the focal weight is that of Yang et al., "Delving
        into Deep Imbalanced Regression", ICML 2021, arXiv:2102.09554, with exponent 1.
    """
    errors = (predictions.float() - targets.detach().float()).abs()
    if kind == "focal_l1":
        errors = errors * (2 * (beta * errors).sigmoid() - 1)
    elif kind != "l1":
        raise ValueError(f"unknown pixel loss {kind!r}; known: l1, focal_l1")
    return (errors * mask).sum() / (mask.sum() * errors.shape[1])
