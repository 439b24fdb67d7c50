"""Files to pixels: whatever Pillow reads, GeoTIFF and .npy, from plain files or members of a tar shard."""

import io
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from codemae.data.statistics import SourceStatistics

Picture: TypeAlias = Image.Image | np.ndarray
"""A decoded image: a Pillow image of mode L or RGB, or an (H, W, C) array of uint8, uint16 or float32."""

Window: TypeAlias = tuple[int, int, int, int]
"""x, y, width, height in pixels of the file."""

_GEOTIFF = (".tif", ".tiff")
_ARRAY = ".npy"
_PLAIN_MODES = dict.fromkeys(("1", "LA", "La"), "L") | dict.fromkeys(
    ("P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"), "RGB"
)
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, OverflowError, MemoryError)


class ImageError(Exception):
    """An image cannot be read: missing, empty, truncated or of a kind nothing here reads."""


class PathError(ValueError):
    """A path of an index leaves the folder it belongs to."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image's bytes lie.

    Attributes:
        path: The file.
        offset: First byte inside an uncompressed shard; None for a plain file.
        size: Number of bytes; None for a plain file.
        member: Name inside the shard, whose suffix tells the format.
    """

    path: str
    offset: int | None = None
    size: int | None = None
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else self.path


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def check_relative(relative: str) -> None:
    """Refuses a path that is absolute or climbs.

    Raises:
        PathError: It is, or does.
    """
    if os.path.isabs(relative) or relative.startswith("\\") or relative[1:2] == ":":
        raise PathError(f"{relative!r} is an absolute path; an index holds paths relative to its root")
    if ".." in relative.replace("\\", "/").split("/"):
        raise PathError(
            f"{relative!r} climbs out of its folder with '..'; an index holds paths inside its root"
        )


def resolve_inside(root: str, relative: str) -> str:
    """Joins a root and a relative path and refuses what lies outside the root, links followed.

    Raises:
        PathError: The path is absolute, climbs, or reaches another place through a link.
    """
    check_relative(relative)
    base = _real(root)
    folder, name = os.path.split(os.path.join(base, relative))
    path = os.path.join(_real(folder), name)
    if os.path.islink(path):
        path = os.path.realpath(path)
    if path != base and not path.startswith(base.rstrip(os.sep) + os.sep):
        raise PathError(
            f"{relative!r} leads through a link to {path}, outside the root {root}; "
            "prepare the index with a root that holds the images themselves"
        )
    return path


def split_member(path: str) -> tuple[str, str]:
    """The shard's path and the member's name in a path such as ``000000.tar/opt/a.png``."""
    shard, ending, member = path.partition(".tar/")
    return (f"{shard}.tar", member) if ending else (path, "")


class ShardFiles:
    """Open shards, read at offsets without a seek position, so forked workers do not disturb each other."""

    def __init__(self, capacity: int = 64) -> None:
        self._capacity = capacity
        self._handles: OrderedDict[str, io.FileIO] = OrderedDict()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of one member.

        Raises:
            ImageError: The shard is missing or ends before the member does.
        """
        try:
            if path not in self._handles:
                self._handles[path] = open(path, "rb", buffering=0)  # noqa: SIM115  (kept open for later members)
                if len(self._handles) > self._capacity:
                    self._handles.popitem(last=False)[1].close()
            self._handles.move_to_end(path)
            content = os.pread(self._handles[path].fileno(), size, offset)
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror or error}") from None
        if len(content) != size:
            raise ImageError(f"{path} ends inside the member at {offset} of {size} bytes")
        return content


_SHARDS = ShardFiles()


def read_picture(location: Location, window: Window | None = None) -> Picture:
    """Decodes one image, or a window of it.

    Palettes become RGB, CMYK becomes RGB, transparency is dropped, nodata of a GeoTIFF becomes NaN (and the
    image float32); uint16 and float32 images stay what they are, other numbers become float32. An array of
    a ``.npy`` file is (H, W), (H, W, C) or (C, H, W): the shorter end axis counts the channels.

    Raises:
        ImageError: It cannot be read, or the window does not lie inside it.
    """
    try:
        if is_geotiff(str(location)):
            return _read_geotiff(location, window)
        if _is_array(location):
            return _read_array(location, window)
        picture = _read_pillow(location)
    except ImageError:
        raise
    except (*_UNREADABLE, Image.DecompressionBombError) as error:
        raise ImageError(f"{location}: {_reason(location, error)}") from None
    return cut(picture, window, str(location)) if window else picture


def _reason(location: Location, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if location.offset is None and os.path.isfile(location.path) and os.path.getsize(location.path) == 0:
        return "the file is empty"
    return f"cannot be decoded ({error or type(error).__name__})"


def _read_pillow(location: Location) -> Picture:
    source: Any = location.path
    if location.offset is not None:
        source = io.BytesIO(_SHARDS.read(location.path, location.offset, location.size or 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(source) as opened:
            opened.load()
            if opened.mode in ("L", "RGB"):
                return opened.copy() if opened.readonly else opened
            if opened.mode.startswith("I;16"):
                return np.array(opened, dtype=np.uint16)[..., None]
            if opened.mode in ("I", "F"):
                return np.array(opened, dtype=np.float32)[..., None]
            if opened.mode in _PLAIN_MODES:
                return opened.convert(_PLAIN_MODES[opened.mode])
            raise ImageError(f"{location}: Pillow mode {opened.mode} is not one this library reads")


def _read_geotiff(location: Location, window: Window | None) -> np.ndarray | Image.Image:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.windows import Window as RasterWindow

    def read(dataset: Any) -> np.ndarray:
        if window and not _inside(window, dataset.width, dataset.height):
            raise ImageError(_outside(str(location), window, dataset.width, dataset.height))
        area = RasterWindow(*window) if window else None
        bands = np.moveaxis(dataset.read(window=area), 0, -1)
        missing = [value for value in dataset.nodatavals if value is not None]
        if missing:
            bands = bands.astype(np.float32)
            for band, value in enumerate(dataset.nodatavals):
                if value is not None and not np.isnan(value):
                    bands[..., band][bands[..., band] == np.float32(value)] = np.nan
        return np.ascontiguousarray(bands)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(_gdal_path(location)) as dataset:
                pixels = read(dataset)
        except RasterioError as error:
            raise ImageError(f"{location}: {_reason(location, error)}") from None
    return _plain(pixels)


def _gdal_path(location: Location) -> str:
    """What rasterio opens; a window of a shard's member costs its own tiles alone, not the member."""
    if location.offset is None:
        return location.path
    return f"/vsisubfile/{location.offset}_{location.size or 0},{location.path}"


def _is_array(location: Location) -> bool:
    return str(location).lower().endswith(_ARRAY)


def _read_array(location: Location, window: Window | None) -> Picture:
    if location.offset is None:
        stored = np.load(location.path, mmap_mode="r", allow_pickle=False)
    else:
        content = io.BytesIO(_SHARDS.read(location.path, location.offset, location.size or 0))
        stored = np.load(content, allow_pickle=False)
    if not isinstance(stored, np.ndarray) or stored.ndim not in (2, 3) or stored.dtype.kind not in "uif":
        found = f"{stored.dtype} of shape {stored.shape}" if isinstance(stored, np.ndarray) else "no array"
        raise ImageError(f"{location}: an image is an array of two or three axes of numbers, this is {found}")
    if stored.ndim == 2:
        stored = stored[..., None]
    elif stored.shape[0] < stored.shape[2]:
        stored = np.moveaxis(stored, 0, -1)
    if window:
        stored = cut(stored, window, str(location))
    return _plain(np.array(stored, order="C"))


def _plain(pixels: np.ndarray) -> np.ndarray | Image.Image:
    """Bytes of one or three channels as a Pillow image, other types than a picture's as float32."""
    if pixels.dtype not in (np.uint8, np.uint16, np.float32):
        pixels = pixels.astype(np.float32)
    if pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 3):
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return pixels


def stored_type(location: Location) -> str:
    """Type of a GeoTIFF's stored pixels, nodata or not: ``uint8``, ``uint16``, ``float32`` and so on.

    Raises:
        ImageError: The file cannot be opened.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(_gdal_path(location)) as dataset:
                return str(dataset.dtypes[0])
        except RasterioError as error:
            raise ImageError(f"{location}: {_reason(location, error)}") from None


def is_geotiff(path: str) -> bool:
    """Whether a path is read through rasterio."""
    return path.lower().endswith(_GEOTIFF)


def _inside(window: Window, width: int, height: int) -> bool:
    x, y, w, h = window
    return x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height


def _outside(path: str, window: Window, width: int, height: int) -> str:
    return f"{path}: window {window} (x, y, width, height) does not lie inside {width} x {height} pixels"


def size_of(picture: Picture) -> tuple[int, int]:
    """Height and width."""
    if isinstance(picture, Image.Image):
        return picture.height, picture.width
    return picture.shape[0], picture.shape[1]


def channels_of(picture: Picture) -> int:
    """Number of channels."""
    return len(picture.getbands()) if isinstance(picture, Image.Image) else picture.shape[-1]


def bytes_of(picture: Picture) -> int:
    """Memory its pixels take."""
    if isinstance(picture, Image.Image):
        return picture.width * picture.height * (1 if picture.mode == "L" else 4)
    return picture.nbytes


def cut(picture: Picture, window: Window, path: str = "image") -> Picture:
    """The part of a picture inside a window.

    Raises:
        ImageError: The window does not lie inside the picture.
    """
    height, width = size_of(picture)
    if not _inside(window, width, height):
        raise ImageError(_outside(path, window, width, height))
    x, y, w, h = window
    if isinstance(picture, Image.Image):
        return picture.crop((x, y, x + w, y + h))
    return picture[y : y + h, x : x + w]


def with_channels(picture: Picture, channels: int) -> Picture:
    """The picture with a channel count: grey repeated to colour, equal channels reduced to one.

    Raises:
        ImageError: There is no such reading of it.
    """
    have = channels_of(picture)
    if have == channels:
        return picture
    if channels == 1 and have == 3:
        return picture.getchannel(0) if isinstance(picture, Image.Image) else picture[..., :1]
    if have == 1:
        if isinstance(picture, Image.Image):
            if channels == 3:
                return picture.convert("RGB")
            picture = np.asarray(picture)[..., None]
        return np.repeat(picture, channels, axis=-1)
    raise ImageError(f"an image of {have} channels stands where its source has {channels}")


def select_channels(picture: Picture, select: Sequence[int]) -> Picture:
    """The stored channels of these numbers, in this order; all of them where no number is given.

    Raises:
        ImageError: The picture has no channel of such a number.
    """
    if not select:
        return picture
    have = channels_of(picture)
    if not 0 <= min(select) <= max(select) < have:
        raise ImageError(f"an image of {have} channels has not all of the channels {list(select)} wanted")
    if tuple(select) == tuple(range(have)):
        return picture
    if isinstance(picture, Image.Image) and len(select) in (1, 3):
        planes = [picture.getchannel(channel) for channel in select]
        return planes[0] if len(planes) == 1 else Image.merge("RGB", planes)
    pixels = np.asarray(picture).reshape(*size_of(picture), have)
    return np.ascontiguousarray(pixels[..., list(select)])


def as_read(picture: Picture, statistics: SourceStatistics) -> Picture:
    """A stored picture as its source is read: the selected channels, grey repeated or reduced to the count.

    Raises:
        ImageError: The picture has not the channels its source has.
    """
    return with_channels(select_channels(picture, statistics.select), statistics.channels)


class SceneCache:
    """The scenes decoded last, so that neighbouring windows do not decode their file again.

    Args:
        max_bytes: Memory the decoded scenes may take together; a larger scene is not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._scenes: OrderedDict[Location, Picture] = OrderedDict()

    def get(self, location: Location, read: Callable[[Location], Picture]) -> Picture:
        """The decoded scene, from memory if it is there."""
        if location in self._scenes:
            self._scenes.move_to_end(location)
            return self._scenes[location]
        scene = read(location)
        size = bytes_of(scene)
        if size <= self._max_bytes:
            self._scenes[location] = scene
            self._bytes += size
            while self._bytes > self._max_bytes:
                self._bytes -= bytes_of(self._scenes.popitem(last=False)[1])
        return scene

    def __len__(self) -> int:
        return len(self._scenes)


def read_window(location: Location, window: Window | None, cache: SceneCache | None) -> Picture:
    """A whole image, or a window of a scene taken from the cache where the format cannot read windows.

    Raises:
        ImageError: As ``read_picture``.
    """
    mapped = _is_array(location) and location.offset is None
    if window is None or cache is None or mapped or is_geotiff(str(location)):
        return read_picture(location, window)
    return cut(cache.get(location, read_picture), window, str(location))


def resize(picture: Picture, size: tuple[int, int], fill: np.ndarray | None = None) -> np.ndarray:
    """Bicubic with antialiasing, to (C, H, W); uint8 stays uint8, float32 keeps NaN where NaN lay.

    Args:
        picture: What to resize; an array must be uint8 or float32.
        size: Height and width wanted.
        fill: Value of each channel that stands for NaN while interpolating; 0 if not given.
    """
    height, width = size
    if isinstance(picture, Image.Image):
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        array = np.asarray(picture)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    resized = np.empty((picture.shape[-1], height, width), dtype=picture.dtype)
    for channel in range(picture.shape[-1]):
        plane = np.ascontiguousarray(picture[..., channel])
        if plane.shape == size:
            resized[channel] = plane
            continue
        missing = None if plane.dtype == np.uint8 else ~np.isfinite(plane)
        if missing is not None and missing.any():
            plane = np.where(missing, np.float32(0 if fill is None else fill[channel]), plane)
            reach = Image.fromarray(missing.astype(np.float32)).resize(
                (width, height), Image.Resampling.BILINEAR
            )
        else:
            reach = None
        resized[channel] = Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
        if resized.dtype != np.uint8:
            np.clip(resized[channel], 0, 1, out=resized[channel])
        if reach is not None:
            resized[channel][np.asarray(reach) > 0] = np.nan
    return resized
