"""Changes of brightness and sharpness, on batches, wherever they are, by numbers drawn beforehand."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemae.data.batch import Batch

NUM_DRAWS = 8
"""Uniform numbers that ``photometric`` takes for an image."""


@dataclass(kw_only=True)
class PhotometricConfig:
    """What may happen to an image of [0, 1] values, in this order; the defaults leave it as it is.

    Attributes:
        jitter_probability: Chance of the three changes that follow.
        brightness: b: values times a factor from 1 - b to 1 + b.
        contrast: c: distance from the image's mean, channel by channel, times a factor from 1 - c to 1 + c.
        saturation: s: distance from the mean of the channels times a factor from 1 - s to 1 + s.
        grayscale: Chance that all channels become their mean.
        blur: Chance of a Gaussian blur.
        blur_sigma: Smallest and largest standard deviation of it, in pixels.
        solarize: Chance that values above one half are mirrored, x -> 1 - x.
    """

    jitter_probability: float = 0.8
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter_probability", "grayscale", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is the largest change of a factor, 0 to 1, got {getattr(self, name)}"
                )
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"blur_sigma is (low, high) with 0 < low <= high, got {self.blur_sigma}")


def augmented_view(batch: Batch, view: str, draws: Tensor, config: PhotometricConfig) -> Tensor:
    """A view after its photometric changes, standardised by each sample's own statistics: (B, C, H, W).

    Pixels that are NaN or infinite count as the mean in what happens to the others, and end as 0.

    Args:
        batch: Where the view is.
        view: Its name.
        draws: (B, ``NUM_DRAWS``) uniform in [0, 1).
        config: What may happen.
    """
    modality = batch.modalities[view]
    mean, std = (values[modality][:, :, None, None] for values in (batch.mean, batch.std))
    known = batch.images[view].isfinite()
    changed = photometric(torch.where(known, batch.unit(view), mean), draws, config)
    return torch.where(known, (changed - mean) / std, 0.0)


def photometric(images: Tensor, draws: Tensor, config: PhotometricConfig) -> Tensor:
    """Augments every image by its own numbers, without waiting for the device.

    Args:
        images: (B, C, H, W) float, finite, in [0, 1].
        draws: (B, ``NUM_DRAWS``) uniform in [0, 1); equal numbers make equal images.
        config: What may happen.

    Returns:
        (B, C, H, W) in [0, 1].

    Differs from torchvision's: brightness, contrast and saturation come in a fixed order; gray is the plain
    mean of all channels, of which there may be any number; the blur's kernel ends at three of the largest
    standard deviations.
    """
    chance, amount = draws.to(images.dtype)[:, :, None, None, None].split(NUM_DRAWS // 2, dim=1)

    def factor(place: int, largest: float) -> Tensor:
        jittered = chance[:, 0] < config.jitter_probability
        return torch.where(jittered, 1 + largest * (2 * amount[:, place] - 1), 1.0)

    if config.brightness:
        images = (images * factor(0, config.brightness)).clamp(0, 1)
    if config.contrast:
        mean = images.mean((2, 3), keepdim=True)
        images = (mean + (images - mean) * factor(1, config.contrast)).clamp(0, 1)
    if config.saturation:
        mean = images.mean(1, keepdim=True)
        images = (mean + (images - mean) * factor(2, config.saturation)).clamp(0, 1)
    if config.grayscale:
        images = torch.where(chance[:, 1] < config.grayscale, images.mean(1, keepdim=True), images)
    if config.blur:
        low, high = config.blur_sigma
        sigma = (low + (high - low) * amount[:, 3]).flatten()
        images = torch.where(chance[:, 2] < config.blur, gaussian_blur(images, sigma, high), images)
    if config.solarize:
        solarized = torch.where(images > 0.5, 1 - images, images)
        images = torch.where(chance[:, 3] < config.solarize, solarized, images)
    return images


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blurs each image by a Gaussian of its own; borders are mirrored.

    Args:
        images: (B, C, H, W).
        sigma: (B,) standard deviations in pixels.
        largest: Of them, by which the kernel's length is chosen: up to three deviations to either side.

    Under autocast, too, it keeps the precision it is given: in bfloat16 bright pixels would be 1/256 apart.
    """
    with torch.autocast(images.device.type, enabled=False):
        return _blurred(images, sigma, largest)


def _blurred(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    count, channels, height, width = images.shape
    radius = min(int(3 * largest + 0.5), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padded = F.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=count * channels)
    both = F.conv2d(rows, kernel[:, None, None, :], groups=count * channels)
    return both[0].unflatten(0, (count, channels))
