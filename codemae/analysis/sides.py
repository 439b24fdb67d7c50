"""Stated rules for an image that shows nothing: empty, saturated or clouded."""

import numpy as np
import numpy.typing as npt

EMPTY_SHARE = 0.5
FLAT = 2 / 255
SATURATED_SHARE = 0.2
CLOUD_SHARE = 0.3
CLOUD_DARKEST = 0.6
CLOUD_COLOUR = 0.15

RULES = {
    "empty": f"at least {EMPTY_SHARE:.0%} of the pixels are nodata or exactly 0, or the deviation of the "
    "brightness is below 2/255",
    "saturated": f"at least {SATURATED_SHARE:.0%} of the pixels are at the top of the range in all channels",
    "clouded": f"optical only: in at least {CLOUD_SHARE:.0%} of the pixels the darkest channel is above "
    f"{CLOUD_DARKEST} and the channels differ by less than {CLOUD_COLOUR} of the brightest",
}


def side_flags(values: npt.NDArray[np.float32], modality: str) -> list[str]:
    """Names of the rules that an image meets.

    Args:
        values: (H, W, C) in [0, 1]; NaN where nothing was measured.
        modality: ``optical`` or ``sar``.
    """
    nothing = ~np.isfinite(values).all(axis=-1) | (values == 0).all(axis=-1)
    seen = values[~nothing]
    if nothing.mean() >= EMPTY_SHARE or float(seen.mean(axis=-1).std()) < FLAT:
        return ["empty"]
    found = []
    if (seen >= 254.5 / 255).all(axis=-1).sum() >= SATURATED_SHARE * nothing.size:
        found.append("saturated")
    if modality == "optical" and values.shape[-1] >= 3:
        darkest, brightest = seen[:, :3].min(axis=-1), seen[:, :3].max(axis=-1)
        white = (darkest > CLOUD_DARKEST) & (brightest - darkest < CLOUD_COLOUR * brightest)
        if white.sum() >= CLOUD_SHARE * nothing.size:
            found.append("clouded")
    return found
