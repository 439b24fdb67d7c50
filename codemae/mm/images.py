"""Reading images in the frameworks' pipelines by the house's rules for damaged files."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.logging import print_log
from mmengine.registry import TRANSFORMS

from codemae.data.images import ImageError, Location, Picture, read_picture, with_channels

LARGEST_SHARE = 0.01
FEWEST_READ = 100


@TRANSFORMS.register_module()
class LoadReadableImage(BaseTransform):
    """Reads ``img_path`` as (H, W, C) bytes in the order blue, green, red, as the frameworks expect.

    Reads whatever ``codemae.data.images`` reads; a gray image is repeated, further bands are refused. Unlike
    the frameworks' own reading a truncated JPEG counts as unreadable. In training such an image is replaced
    by another, recorded in ``bad_samples.txt`` of the work dir and logged; above 1 % of what a process has
    read (from 100 images on) the run stops. In evaluation every unreadable image is an error.

    Args:
        channels: C.
        replace: Whether an unreadable image is replaced.
        record: File that names replaced images, a line each; none when empty. The command line sets it.

    Raises:
        ImageError: The image cannot be read.
    """

    def __init__(self, channels: int = 3, replace: bool = True, record: str = "") -> None:
        self.channels = channels
        self.replace = replace
        self.record = record
        self.seen = 0
        self.bad: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds ``img``, ``img_shape`` and ``ori_shape``; None where another image is to be taken."""
        path = results["img_path"]
        self.seen += 1
        try:
            pixels = as_bytes(read_picture(Location(path)), self.channels, path)
        except ImageError as error:
            self._note(path, error)
            return None
        results["img"] = np.ascontiguousarray(pixels[..., ::-1])
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results

    def _note(self, path: str, error: ImageError) -> None:
        if not self.replace:
            raise ImageError(f"{error}; mend or remove the image and its annotations") from error
        if path not in self.bad and self.record:
            Path(self.record).parent.mkdir(parents=True, exist_ok=True)
            with Path(self.record).open("a") as file:
                file.write(f"{path}\t{error}\n")
        self.bad.add(path)
        print_log(f"another image takes the place of one that cannot be read: {error}", "current", 30)
        if self.seen >= FEWEST_READ and len(self.bad) > LARGEST_SHARE * self.seen:
            raise ImageError(
                f"{len(self.bad)} of {self.seen} images cannot be read, which is more than "
                f"{LARGEST_SHARE:.0%}; the last one: {error}"
            )


def as_bytes(picture: Picture, channels: int, path: str) -> np.ndarray:
    """(H, W, C) bytes of a picture.

    Raises:
        ImageError: It is not stored as bytes, or has another number of channels.
    """
    try:
        pixels = np.asarray(with_channels(picture, channels))
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from error
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8:
        raise ImageError(
            f"{path} holds {pixels.dtype}, not bytes; scale it first: gdal_translate -ot Byte -scale"
        )
    return pixels
