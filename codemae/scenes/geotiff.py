"""Scenes and maps on disk: windows of a GeoTIFF or a big picture, on its own grid or on another's."""

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import shapes
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window
from rasterio.windows import transform as window_transform

from codemae.scenes.tiling import Area

BLOCK = 256
CACHE_BYTES = 64 << 20
"""What GDAL may keep of decoded blocks; its default grows with the machine and looks like a leak."""


class SceneError(ValueError):
    """A scene cannot be read, or two scenes cannot be brought together; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the pixels of a scene lie.

    Attributes:
        height: Rows.
        width: Columns.
        transform: From column and row to coordinates; the identity where the scene has no position.
        crs: Coordinate system; None for a plain picture.
    """

    height: int
    width: int
    transform: Affine
    crs: CRS | None

    @property
    def placed(self) -> bool:
        """Whether it is known where on Earth the scene lies."""
        return self.crs is not None


class Scene:
    """An open scene that is read window by window. Use ``open_scene``.

    Attributes:
        path: Of the file.
        grid: Of the pixels handed out.
        bands: Number of bands handed out.
        dtype: Type of the stored values.
        nodata: Stored value that means no data; None where none is declared.
    """

    def __init__(self, path: str, dataset: Any, bands: Sequence[int]) -> None:
        self.path = path
        self._dataset = dataset
        self._numbers = list(bands)
        crs = dataset.crs if dataset.crs else None
        self.grid = Grid(height=dataset.height, width=dataset.width, transform=dataset.transform, crs=crs)
        self.bands = len(self._numbers)
        self.dtype = str(dataset.dtypes[0])
        self.nodata = dataset.nodata
        self._masked = _has_mask(dataset, self._numbers)

    def read(self, area: Area) -> np.ndarray:
        """A window: (H, W, C) of the stored type, or float32 with NaN where there is no data.

        Raises:
            SceneError: It cannot be read.
        """
        window = Window(area.column, area.row, area.width, area.height)
        try:
            pixels = np.moveaxis(self._dataset.read(self._numbers, window=window), 0, -1)
            if not self._masked:
                return np.ascontiguousarray(pixels)
            valid = np.moveaxis(self._dataset.read_masks(self._numbers, window=window), 0, -1) > 0
        except RasterioError as error:
            raise SceneError(f"{self.path}: window {tuple(area)} cannot be read ({error})") from None
        if valid.all():
            return np.ascontiguousarray(pixels)
        return np.where(valid, pixels.astype(np.float32), np.float32(np.nan))


def _transparency(dataset: Any) -> list[int]:
    """Numbers of the bands that are marked as alpha."""
    marked = zip(dataset.indexes, dataset.colorinterp, strict=True)
    return [number for number, meaning in marked if meaning == ColorInterp.alpha]


def _has_mask(dataset: Any, bands: Sequence[int]) -> bool:
    """Whether a value, a mask or a band that is not handed out says where these bands have no data."""
    told = {flag for number in bands for flag in dataset.mask_flag_enums[number - 1]} - {MaskFlags.all_valid}
    if MaskFlags.alpha in told and set(_transparency(dataset)) <= set(bands):
        # The warper takes the band for transparency whatever we do, and leaves zeros where it is zero.
        return isinstance(dataset, WarpedVRT)
    return bool(told)


@contextmanager
def open_scene(
    path: str | os.PathLike[str],
    like: Grid | None = None,
    resampling: str = "bilinear",
    bands: int | None = None,
) -> Iterator[Scene]:
    """Opens whatever GDAL reads: GeoTIFF with or without a coordinate system, PNG, JPEG.

    A value of no data, a mask inside the file or beside it (``.msk``), and transparency become NaN.

    Args:
        path: The file.
        like: Grid the pixels are wanted on; the file is warped window by window as it is read. Pixels the
            file does not cover come as NaN.
        resampling: rasterio's name of the interpolation: nearest, bilinear, cubic, average, ...
        bands: How many the reader needs. A band marked as transparency that these leave over says where there
            is no data and is not handed out. Otherwise, and when None, it is a band like the others: GDAL
            marks the fourth of four bands of bytes so, near infrared say, unless told what it is.

    Raises:
        SceneError: No such file, not an image, or it cannot be put on the grid for want of a position.
    """
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if not Path(path).is_file():
            raise SceneError(f"no scene at {path}")
        try:
            dataset = rasterio.open(path)
        except RasterioError as error:
            raise SceneError(f"{path} is no image that can be read ({error})") from None
        with dataset:
            data = [number for number in dataset.indexes if number not in _transparency(dataset)]
            if bands is None or bands > len(data):
                data = list(dataset.indexes)
            own = Scene(str(path), dataset, data)
            if like is None or own.grid == like:
                yield own
                return
            if own.grid.placed and like.placed:
                options: dict[str, Any] = {"crs": like.crs, "transform": like.transform}
                options |= {"height": like.height, "width": like.width}
                if any(flags == [MaskFlags.per_dataset] for flags in dataset.mask_flag_enums):
                    # A mask goes before a value of no data, but is only warped into a band of its own.
                    options |= {"add_alpha": True, "src_nodata": None, "nodata": None}
                with WarpedVRT(dataset, resampling=Resampling[resampling], **options) as warped:
                    yield _Warped(str(path), warped, dataset, like, data)
            elif (own.grid.height, own.grid.width) == (like.height, like.width):
                yield own
            else:
                raise SceneError(
                    f"{path} is {own.grid.height} x {own.grid.width} px, the other scene {like.height} x "
                    f"{like.width}, and {'the latter' if own.grid.placed else 'the former'} has no "
                    "coordinate system, so they cannot be brought onto one grid; give it one with "
                    "gdal_translate -a_srs and -a_ullr, or resample it to the other's size first"
                )


class _Warped(Scene):
    """A scene on another's grid; the part its file does not reach is told by a mask warped beside it."""

    def __init__(self, path: str, warped: WarpedVRT, source: Any, like: Grid, bands: Sequence[int]) -> None:
        super().__init__(path, warped, bands)
        self.grid = like
        self.nodata = source.nodata
        west, south, east, north = source.bounds
        corners = [(west, north), (east, north), (east, south), (west, south)]
        self._outline = _densified(corners, source.crs, like)

    def read(self, area: Area) -> np.ndarray:
        pixels = super().read(area)
        reached = self._reach(area)
        if reached.all():
            return pixels
        return np.where(reached[..., None], pixels.astype(np.float32), np.float32(np.nan))

    def _reach(self, area: Area) -> np.ndarray:
        """(H, W): whether a pixel's centre lies inside the outline of the file."""
        from rasterio.features import rasterize

        moved = window_transform(Window(area.column, area.row, area.width, area.height), self.grid.transform)
        shape = {"type": "Polygon", "coordinates": [self._outline]}
        burnt = rasterize([shape], out_shape=(area.height, area.width), transform=moved, dtype="uint8")
        return burnt.astype(bool)


def _densified(corners: list[tuple[float, float]], crs: Any, like: Grid) -> list[tuple[float, float]]:
    """An outline in another coordinate system, with points between corners since straight lines bend."""
    from rasterio.warp import transform

    points = []
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        points += [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in np.linspace(0, 1, 21)[:-1]]
    xs, ys = transform(crs, like.crs, [x for x, _ in points], [y for _, y in points])
    outline = list(zip(xs, ys, strict=True))
    return [*outline, outline[0]]


class MapWriter:
    """A GeoTIFF written block by block. Use ``write_map``."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def write(self, area: Area, values: np.ndarray) -> None:
        """Writes (H, W) or (C, H, W) of the map's type."""
        planes = values[None] if values.ndim == 2 else values
        window = Window(area.column, area.row, area.width, area.height)
        self._dataset.write(planes.astype(self._dataset.dtypes[0], copy=False), window=window)


@contextmanager
def write_map(
    path: str | os.PathLike[str],
    grid: Grid,
    *,
    dtype: str,
    count: int = 1,
    nodata: float | None = None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
    names: Iterable[str] = (),
) -> Iterator[MapWriter]:
    """Writes a map on a scene's grid: tiled, compressed, BigTIFF where it has to be; whole or not at all.

    Args:
        path: Of the GeoTIFF.
        grid: Coordinate system, transform and size.
        dtype: Type of the values.
        count: Bands.
        nodata: Value that means no data.
        colours: Class number to red, green, blue, for a map of one band of bytes.
        names: A description of each band.

    Raises:
        SceneError: It cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial.tif")
    profile: dict[str, Any] = {"driver": "GTiff", "height": grid.height, "width": grid.width, "count": count}
    profile |= {"dtype": dtype, "nodata": nodata, "compress": "deflate", "BIGTIFF": "IF_SAFER"}
    if grid.placed:
        profile |= {"crs": grid.crs}
    if not grid.transform.is_identity:
        profile |= {"transform": grid.transform}
    if min(grid.height, grid.width) >= BLOCK:
        profile |= {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK}
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(partial, "w", **profile) as dataset:
                if colours:
                    dataset.write_colormap(1, {number: (*rgb, 255) for number, rgb in colours.items()})
                for number, name in enumerate(names, start=1):
                    dataset.set_band_description(number, name)
                yield MapWriter(dataset)
            os.replace(partial, target)
        except RasterioError as error:
            raise SceneError(f"{target} cannot be written ({error})") from None
        finally:
            partial.unlink(missing_ok=True)


def polygons(path: str | os.PathLike[str], *, connectivity: int = 4) -> Iterator[tuple[dict[str, Any], int]]:
    """Outlines of the connected areas of equal value of a map's first band, in its coordinates.

    The map is read in strips from disk. Pixels of nodata and of value 0 have no outline.

    Yields:
        A GeoJSON geometry and the value.
    """
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            band = rasterio.band(dataset, 1)
            for geometry, value in shapes(band, connectivity=connectivity, transform=dataset.transform):
                if value and value != dataset.nodata:
                    yield geometry, int(value)


def write_geojson(
    path: str | os.PathLike[str],
    features: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]],
    crs: CRS | None,
) -> int:
    """Writes geometries and their properties one after the other; returns how many.

    Coordinates are written as they are given: in the scene's system, which the ``crs`` member names as GDAL
    and QGIS read it; without one there is no such member.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    descriptor, partial = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".partial")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write('{"type": "FeatureCollection",\n')
            if crs is not None:
                named = {"type": "name", "properties": {"name": _name(crs)}}
                file.write(f'"crs": {json.dumps(named)},\n')
            file.write('"features": [')
            for geometry, properties in features:
                feature = {"type": "Feature", "properties": dict(properties), "geometry": dict(geometry)}
                file.write(("," if count else "") + "\n" + json.dumps(feature))
                count += 1
            file.write("\n]}\n")
        os.chmod(partial, 0o644)
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)
    return count


def _name(crs: CRS) -> str:
    code = crs.to_epsg()
    return f"urn:ogc:def:crs:EPSG::{code}" if code else str(crs.to_wkt())
