"""Stated rules for an image that shows nothing: empty, saturated or clouded."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

EMPTY_SHARE = 0.5
FLAT = 2 / 255
SATURATED_SHARE = 0.2
CLOUD_SHARE = 0.1
CLOUD_DEVIATIONS = 0.75
CLOUD_DARKEST = 0.2
CLOUD_BLUE = 0.95
CLOUD_VARIATION = 0.12
CLOUD_TOGETHER = 0.65

_CLOUD_WINDOW = 7
_CLOUD_PART = 12

RULES = {
    "empty": f"at least {EMPTY_SHARE:.0%} of the pixels are nodata or exactly 0, or the deviation of the "
    "brightness is below 2/255",
    "saturated": f"at least {SATURATED_SHARE:.0%} of the pixels are at the top of the range in all channels",
    "clouded": f"optical only: at least {CLOUD_SHARE:.0%} of the pixels are bright (every channel "
    f"{CLOUD_DEVIATIONS} deviations above the source's mean and above {CLOUD_DARKEST}), not reddish (third "
    f"channel at least {CLOUD_BLUE} of the first), smooth (variation below {CLOUD_VARIATION} in 7 x 7) "
    f"and together (so are {CLOUD_TOGETHER:.0%} of the neighbours in a twelfth of the side)",
}


def side_flags(
    values: npt.NDArray[np.float32],
    modality: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> list[str]:
    """Names of the rules that an image meets.

    Args:
        values: (H, W, C) in [0, 1]; NaN where nothing was measured.
        modality: ``optical`` or ``sar``.
        mean: Mean of each channel over the source; without it, clouds are not looked for.
        std: Standard deviation of each channel over the source.
    """
    nothing = ~np.isfinite(values).all(axis=-1) | (values == 0).all(axis=-1)
    seen = values[~nothing]
    if nothing.mean() >= EMPTY_SHARE or float(seen.mean(axis=-1).std()) < FLAT:
        return ["empty"]
    found = []
    if (seen >= 254.5 / 255).all(axis=-1).sum() >= SATURATED_SHARE * nothing.size:
        found.append("saturated")
    if modality == "optical" and values.shape[-1] >= 3 and mean is not None and std is not None:
        colours = np.where(nothing[..., None], np.float32(0), values[..., :3])
        if cloud_mask(colours, mean[:3], std[:3]).mean() >= CLOUD_SHARE:
            found.append("clouded")
    return found


def cloud_mask(
    values: npt.NDArray[np.float32], mean: Sequence[float], std: Sequence[float]
) -> npt.NDArray[np.bool_]:
    """Pixels that the ``clouded`` rule takes for opaque cloud, (H, W).

    Brightness is measured against the source, because false colour and stretched images have no common white.

    Args:
        values: (H, W, 3) in [0, 1] without NaN.
        mean: Mean of the three channels over the source.
        std: Their standard deviation.
    """
    above = ((values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).min(axis=-1)
    bright = (above > CLOUD_DEVIATIONS) & (values.min(axis=-1) > CLOUD_DARKEST)
    brightness = values.mean(axis=-1)
    middle = ndimage.uniform_filter(brightness, _CLOUD_WINDOW)
    variance = np.maximum(ndimage.uniform_filter(brightness**2, _CLOUD_WINDOW) - middle**2, 0)
    smooth = np.sqrt(variance) < CLOUD_VARIATION * middle
    cloud = bright & smooth & (values[..., 2] >= CLOUD_BLUE * values[..., 0])
    neighbours = ndimage.uniform_filter(cloud.astype(np.float32), max(3, min(cloud.shape) // _CLOUD_PART))
    return np.asarray(cloud & (neighbours > CLOUD_TOGETHER))
