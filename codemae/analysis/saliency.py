"""Where in an image, and in which bands, the features of a set of dimensions come from."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[Tensor], Tensor]


def mean_of_dimensions(features: Tensor, dimensions: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Mean of some standardised dimensions of features (B, D), one number an image: (B,)."""
    return ((features - centre) / scale)[:, dimensions].mean(dim=1)


def grad_cam(encoder: Any, images: Tensor, modality: str, score: Score) -> Tensor:
    """Grad-CAM on an encoder's last tokens: relu(sum over d of w_d A_nd), w the gradient's mean over tokens.

    Reference: Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391.

    Args:
        encoder: Whose features are the mean of its tokens.
        images: (B, C, H, W), standardised.
        modality: Of the images.
        score: Features (B, D) to the number (B,) that is explained.

    Returns:
        (B, N), not negative.
    """
    with torch.enable_grad():
        tokens = encoder(images, modality).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(tokens.mean(dim=1)).sum(), tokens)
    weights = gradient.mean(dim=1, keepdim=True)
    return (weights * tokens.detach()).sum(dim=-1).relu()


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of two saliency maps (B, N) without negative values: 0 elsewhere, 1 the same place: (B,)."""
    return (F.normalize(first, dim=1) * F.normalize(second, dim=1)).sum(dim=1)


def integrated_gradients(function: Score, images: Tensor, steps: int = 16) -> Tensor:
    """(x - x0) times the mean gradient on the straight way from x0 = 0, the mean image, to x.

    The sum over an image is f(x) - f(x0) as ``steps`` grows.

    Reference: Sundararajan et al., "Axiomatic Attribution for Deep Networks", arXiv:1703.01365.

    Args:
        function: Images (B, C, H, W) to a number each (B,).
        images: Standardised.
        steps: Points on the way, in the middle of equal parts.

    Returns:
        (B, C, H, W).
    """
    total = torch.zeros_like(images)
    with torch.enable_grad():
        for step in range(steps):
            point = (images * (step + 0.5) / steps).requires_grad_()
            (gradient,) = torch.autograd.grad(function(point).sum(), point)
            total += gradient
    return images * total / steps


def band_importance(encoder: Any, images: Tensor, modality: str, score: Score, steps: int = 16) -> Tensor:
    """Share of each input band in the attribution of a score, by absolute integrated gradients.

    Args:
        encoder: With ``pooled``.
        images: (B, C, H, W), standardised.
        modality: Of the images.
        score: Features (B, D) to the number (B,) that is explained.
        steps: Of ``integrated_gradients``.

    Returns:
        (B, C), each row with sum 1; zeros where nothing is attributed.
    """
    attribution = integrated_gradients(lambda x: score(encoder.pooled(x, modality)), images, steps)
    bands = attribution.abs().sum(dim=(2, 3))
    return bands / bands.sum(dim=1, keepdim=True).clamp(min=1e-12)
