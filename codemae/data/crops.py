"""Where a crop lies and how it becomes an image of a view."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from codemae.data.images import Picture, cut, resize, size_of
from codemae.data.statistics import Scaling
from codemae.data.views import View

_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of the source image, in its pixels, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    horizontal_flip: bool = False
    vertical_flip: bool = False

    def row(self) -> tuple[float, float, float, float, float]:
        """Top, left, height, width and flips (1 horizontal, 2 vertical, 3 both), as a batch records it."""
        flips = int(self.horizontal_flip) + 2 * int(self.vertical_flip)
        return self.top, self.left, self.height, self.width, flips


def draw_crop(view: View, height: int, width: int, rng: np.random.Generator) -> Crop:
    """Random resized crop of Inception training, as torchvision defines it.

    An area share uniform in ``view.scale`` and an aspect ratio log-uniform in ``view.ratio`` are drawn up to
    ten times until the rectangle fits; else the largest central one of an allowed ratio is taken.

    Args:
        view: Scale, ratio and flips.
        height: Height of the image.
        width: Width of the image.
        rng: Source of the draws; always the same number is drawn for one image size.
    """
    draws = rng.random((_ATTEMPTS, 4))
    flips = rng.random(2)
    flip = bool(flips[0] < view.horizontal_flip), bool(flips[1] < view.vertical_flip)
    low, high = np.log(view.ratio[0]), np.log(view.ratio[1])
    for share, shape, down, across in draws:
        area = height * width * (view.scale[0] + share * (view.scale[1] - view.scale[0]))
        ratio = np.exp(low + shape * (high - low))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(down * (height - h + 1)), int(across * (width - w + 1)), h, w, *flip)
    w, h = width, height
    if width / height < view.ratio[0]:
        h = min(height, round(width / view.ratio[0]))
    elif width / height > view.ratio[1]:
        w = min(width, round(height * view.ratio[1]))
    return Crop((height - h) // 2, (width - w) // 2, h, w, *flip)


def take_crop(
    picture: Picture, crop: Crop, size: int, scaling: Scaling, fill: np.ndarray, as_bytes: bool
) -> np.ndarray:
    """Cuts, scales, resizes and mirrors: (C, size, size) uint8, or float32 in [0, 1] with NaN for no data.

    Args:
        picture: The sample's whole image.
        crop: What to cut.
        size: Side of the result.
        scaling: Maps stored values to [0, 1].
        fill: Mean of each channel, which stands for NaN while interpolating.
        as_bytes: Whether to keep uint8; only where the image is uint8.
    """
    whole = (crop.height, crop.width) == size_of(picture)
    part = picture if whole else cut(picture, (crop.left, crop.top, crop.width, crop.height))
    if not as_bytes:
        values = np.asarray(part)
        part = scaling.apply(values[..., None] if values.ndim == 2 else values)
    elif not isinstance(part, Image.Image) and part.dtype != np.uint8:
        raise TypeError(f"an image of {part.dtype} cannot be kept as bytes")
    pixels = resize(part, (size, size), fill)
    if crop.horizontal_flip:
        pixels = pixels[:, :, ::-1]
    if crop.vertical_flip:
        pixels = pixels[:, ::-1]
    return pixels
