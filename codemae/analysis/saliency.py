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


def grad_cam(
    encoder: Any, images: Tensor, modality: str, score: Score, centre: Tensor | None = None
) -> Tensor:
    """Grad-CAM on an encoder's last tokens: relu(sum over d of w_d A_nd), w the gradient's mean over tokens.

    With ``centre``, A is the tokens less it: where the score comes from in this image rather than in any. A
    constant in an activation, which no image decides, would otherwise lift or empty the whole map.

    Differs from DeCUR's (its Algorithm 2), which takes the last convolution's activations as they are and
    keeps what is negative.

    Reference: Selvaraju et al., "Grad-CAM", ICCV 2017, arXiv:1610.02391.

    Args:
        encoder: Whose features are the mean of its tokens.
        images: (B, C, H, W), standardised.
        modality: Of the images.
        score: Features (B, D) to the number (B,) that is explained.
        centre: (N, D), the modality's mean tokens over many images.

    Returns:
        (B, N), not negative.
    """
    with torch.enable_grad():
        tokens = encoder(images, modality).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(tokens.mean(dim=1)).sum(), tokens)
    weights = gradient.mean(dim=1, keepdim=True)
    activations = tokens.detach() if centre is None else tokens.detach() - centre
    return (weights * activations).sum(dim=-1).relu()


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of two saliency maps (B, N) without negative values: 0 elsewhere, 1 the same place: (B,).

    A map that is zero everywhere overlaps nothing.
    """
    return (F.normalize(first, dim=1) * F.normalize(second, dim=1)).sum(dim=1)


def empty_share(*maps: Tensor) -> float:
    """Share of saliency maps (B, N) that are zero everywhere."""
    return float(torch.cat([(values == 0).all(dim=1) for values in maps]).float().mean())


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

    Differs from DeCUR's (its Algorithm 2), which averages the attributions with their signs: pixels that pull
    the score up and down cancel there, and a band that decides much in both directions counts little.

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
