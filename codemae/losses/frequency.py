"""Focal frequency loss: images compared by their spectra, the worst reproduced frequencies weighted most."""

import torch
from torch import Tensor

from codemae import distributed


def focal_frequency_loss(
    predictions: Tensor,
    targets: Tensor,
    *,
    alpha: float = 1.0,
    average_spectrum: bool = False,
    log_weights: bool = False,
    batch_weights: bool = False,
) -> Tensor:
    """Mean over images, channels and frequencies of the focally weighted squared distance of two spectra.

    With F(.) the unitary 2-D Fourier transform of one channel of one image, over frequencies u, v:

        d[u, v] = | F(prediction)[u, v] - F(target)[u, v] |
        w[u, v] = d[u, v]^alpha, then log(1 + w) with ``log_weights``, then w / max(w); a constant
        loss    = mean( w * d^2 )

    Args:
        predictions: (B, C, H, W), any real type.
        targets: (B, C, H, W); receives no gradient.
        alpha: How strongly frequencies that are hard to reproduce stand out.
        average_spectrum: Compare the mean spectra of the batch instead of those of each image.
        log_weights: Logarithm of the weights, which flattens them.
        batch_weights: Divide by the largest weight of the batch instead of that of each image's channel.

    Returns:
        A scalar in float32, whatever the autocast dtype.

    Distributed: batch means and maxima are those of all ranks, the mean by a differentiable all-reduce. Where
    all ranks hold equally many images, value and gradient are those of one process holding the whole batch.

    Differs from the definition, which knows one process: the batch of the two batch options is that of all
    ranks.

    Reference: Jiang et al., "Focal Frequency Loss for Image Reconstruction and Synthesis", ICCV 2021,
        arXiv:2012.12821, Eq. 6-9; CMID Eq. 4.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        error = predictions.float() - targets.detach().float()
        # the transform is linear, so the spectrum of the difference is the difference of the spectra
        if average_spectrum:
            error = distributed.all_reduce_mean(error.mean(0, keepdim=True))
        spectrum = torch.fft.fft2(error, norm="ortho")
        squared = spectrum.real.square() + spectrum.imag.square()
        return (_weights(squared.detach(), alpha, log_weights, batch_weights) * squared).mean()


def _weights(squared: Tensor, alpha: float, log_weights: bool, batch_weights: bool) -> Tensor:
    weights = squared.sqrt() ** alpha
    if log_weights:
        weights = weights.log1p()
    if batch_weights:
        largest = distributed.all_gather(weights.max()[None], differentiable=False).max()
    else:
        largest = weights.amax((-2, -1), keepdim=True)
    return (weights / largest.clamp(min=torch.finfo(weights.dtype).tiny)).clamp(0, 1)
