"""Masks on disk to class numbers."""

import warnings
from collections.abc import Sequence

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from codemae.data.images import ImageError, Location, Window, is_geotiff

NO_LABEL = 255


class MaskError(ValueError):
    """A mask holds something that is no class."""


def read_mask(location: Location, window: Window | None = None) -> np.ndarray:
    """The stored values of a mask's first band, (H, W); palettes as their indices, nodata as it stands.

    Raises:
        ImageError: It cannot be read, or is a picture of several channels.
    """
    try:
        if is_geotiff(location.path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(location.path) as dataset:
                    return dataset.read(1, window=RasterWindow(*window) if window else None)
        with Image.open(location.path) as opened:
            values = np.asarray(opened)
    except (OSError, RasterioError, ValueError) as error:
        raise ImageError(f"{location}: cannot be read as a mask ({error})") from None
    if values.ndim != 2:
        raise ImageError(f"{location}: a mask has one channel, this has shape {values.shape}")
    if window is None:
        return values
    x, y, width, height = window
    return values[y : y + height, x : x + width]


def to_classes(stored: np.ndarray, values: Sequence[int], ignored: Sequence[int], path: str) -> np.ndarray:
    """Stored values to class numbers: uint8, ``NO_LABEL`` where there is no label.

    Args:
        stored: (H, W).
        values: Stored value of each class.
        ignored: Stored values that mean no label.
        path: Named in errors.

    Raises:
        MaskError: Another value stands in the mask.
    """
    classes = np.full(stored.shape, NO_LABEL, dtype=np.uint8)
    known = np.isin(stored, list(ignored)) if ignored else np.zeros(stored.shape, dtype=bool)
    for number, value in enumerate(values):
        here = stored == value
        classes[here] = number
        known |= here
    if not known.all():
        strange = np.unique(stored[~known])[:5].tolist()
        raise MaskError(
            f"{path} holds the values {strange}, the classes are stored as {list(values)} and no label as "
            f"{list(ignored)}; set --data.mask_values and --data.ignore_values"
        )
    return classes
