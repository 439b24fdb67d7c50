"""Labels that come out of masks and of files beside the images."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from codemae.data.images import Window, is_geotiff


class LabelError(Exception):
    """A label cannot be read; the message says why."""


@dataclass(frozen=True)
class MaskClasses:
    """Which classes a mask shows.

    Attributes:
        share: Share of the pixels (those without a label included) from which on a class counts.
        values: Pixel value, or red, green and blue, of each class.
    """

    share: float
    values: tuple[Any, ...]

    def of(self, path: str, windows: Sequence[Window | None]) -> list[list[int]]:
        """Numbers of the classes in each window of a mask; None is the whole of it.

        Raises:
            LabelError: The mask cannot be read, or is of another kind than the values.
        """
        coloured = any(isinstance(value, (list, tuple)) for value in self.values)
        pixels = read_mask(path, coloured)
        found = []
        for window in windows:
            x, y, width, height = window or (0, 0, pixels.shape[1], pixels.shape[0])
            part = pixels[y : y + height, x : x + width]
            found.append([number for number, value in enumerate(self.values) if self._covers(part, value)])
        return found

    def _covers(self, part: np.ndarray, value: Any) -> bool:
        equal = part == np.array(value)
        return bool((equal.all(axis=-1) if equal.ndim == 3 else equal).mean() >= self.share)


def read_mask(path: str, coloured: bool = False) -> np.ndarray:
    """Pixels of a mask: (H, W) numbers, palettes as their indices, or (H, W, 3) colours.

    Raises:
        LabelError: It cannot be read, or has several channels where numbers are wanted.
    """
    try:
        pixels = _geotiff(path) if is_geotiff(path) else _pillow(path, coloured)
    except (OSError, ValueError, SyntaxError) as error:
        raise LabelError(f"{path}: {error}") from None
    if coloured:
        if pixels.ndim != 3 or pixels.shape[-1] < 3:
            raise LabelError(f"{path} has no colours; its classes are given as red, green, blue")
        return pixels[..., :3]
    if pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise LabelError(f"{path} has {pixels.shape[-1]} different channels; its classes are numbers")
        pixels = pixels[..., 0]
    return pixels


def _pillow(path: str, coloured: bool) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB") if coloured else opened)


def _geotiff(path: str) -> np.ndarray:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return np.moveaxis(dataset.read(), 0, -1)


def size_of_mask(path: str) -> tuple[int, int]:
    """Height and width, from the header alone.

    Raises:
        LabelError: It cannot be opened.
    """
    try:
        if is_geotiff(path):
            import rasterio
            from rasterio.errors import NotGeoreferencedWarning

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(path) as dataset:
                    return dataset.height, dataset.width
        if path.lower().endswith(".npy"):
            height, width = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
            return height, width
        with Image.open(path) as opened:
            return opened.height, opened.width
    except (OSError, ValueError, SyntaxError) as error:
        raise LabelError(f"{path}: {error}") from None


def from_npy(path: Path, count: int = 0) -> list[int]:
    """Numbers of the classes that a multi-hot vector sets.

    Args:
        path: The file.
        count: How many classes there are; 0 where that is not known.

    Raises:
        LabelError: There is no such file, or it holds no vector of zeros and ones, one for each class.
    """
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise LabelError(f"{path}: {error}") from None
    flat = np.ravel(vector)
    if not np.isin(flat, (0, 1)).all():
        raise LabelError(f"{path} is no vector of zeros and ones")
    if count and len(flat) != count:
        raise LabelError(f"{path} has {len(flat)} entries for {count} classes")
    return np.flatnonzero(flat).tolist()


def from_json(
    path: Path, field: str, names: Mapping[str, str | None], numbers: Mapping[str, int]
) -> list[int]:
    """Numbers of the classes that a JSON file names.

    Args:
        path: The file.
        field: Key of the list of names.
        names: Name in the file to class name; None: of no class. Other names stand for themselves.
        numbers: Class name to number.

    Raises:
        LabelError: There is no such file, or it names something that is no class.
    """
    try:
        listed = json.loads(path.read_text())[field]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabelError(f"{path}: no list under {field!r} ({type(error).__name__})") from None
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise LabelError(f"{path}: under {field!r} stands {listed!r}, which is no list of names")
    wanted = {names.get(name, name) for name in listed} - {None}
    unknown = sorted(str(name) for name in wanted if name not in numbers)
    if unknown:
        raise LabelError(f"{path} names {', '.join(unknown)}, which is no class")
    return sorted(numbers[name] for name in wanted if name is not None)
