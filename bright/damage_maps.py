"""Two scenes of whatever size and grid to a damage map and outlined buildings, in constant memory."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from damage_config import COLOURS, BrightConfig, DamageError, Dates
from damage_evaluation import check_dates, predict_windows
from damage_file import Description
from rasterio.features import geometry_mask
from rasterio.transform import rowcol
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from codemae.data.bitemporal import standardise
from codemae.data.images import ImageError, as_read
from codemae.data.statistics import SourceStatistics
from codemae.models.damage import DamageModel
from codemae.scenes.geotiff import Grid, Scene, open_scene, polygons, write_geojson, write_map
from codemae.scenes.tiling import Area, count_windows, predict_blocks

MAP = "damage.tif"
PROBABILITIES = "probabilities.tif"
BUILDINGS = "buildings.geojson"
NO_DATA = 255
FULL = 250
"""Stored probability of 1; bytes keep the file small, 255 stays free for no data."""
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """What ``infer`` wrote.

    Attributes:
        map: Class numbers, or 0 and 1 where only buildings could be told; 255 without data.
        probabilities: One band a class, 250 for certainty; 255 without data.
        buildings: Outlines with class, confidence and size.
        count: How many of them.
    """

    map: Path
    probabilities: Path
    buildings: Path
    count: int


class DateReader:
    """Windows of one date as the model sees them."""

    def __init__(self, scene: Scene, statistics: SourceStatistics, path: str) -> None:
        self._scene = scene
        self._statistics = statistics
        self._path = path

    def read(self, area: Area) -> Tensor:
        """(C, h, w), standardised."""
        statistics = self._statistics
        try:
            picture = np.asarray(as_read(self._scene.read(area), statistics))
        except ImageError as error:
            raise DamageError(
                f"{self._path} has {self._scene.bands} bands, the model was trained on "
                f"{statistics.channels} ({error})"
            ) from None
        values = np.moveaxis(statistics.scaling.apply(picture), -1, 0)
        return standardise(values, statistics.mean, statistics.std)

    def valid(self, area: Area) -> np.ndarray:
        """(h, w): where at least one band has data."""
        pixels = self._scene.read(area)
        if pixels.dtype.kind != "f":
            return np.ones(pixels.shape[:2], dtype=bool)
        return np.isfinite(pixels).any(axis=-1)


def infer(
    config: BrightConfig, model: DamageModel, description: Description, device: torch.device
) -> MapFiles:
    """Maps the scenes ``infer.pre`` and ``infer.post``, or one of them.

    The map lies on the grid of the first date; alone, the second date has its own.

    Raises:
        DamageError: No scene is given, or the model does not answer with what is.
        SceneError: A scene cannot be read, or the two cannot be brought onto one grid.
    """
    given = config.infer
    dates: Dates = "both" if given.pre and given.post else "pre" if given.pre else "post"
    if not given.pre and not given.post:
        raise DamageError("infer needs --infer.pre FILE, --infer.post FILE or both")
    check_dates(model, dates)
    classes = description.classes if dates == "both" else ["background", "building"]
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        readers: dict[str, DateReader] = {}
        grid: Grid | None = None
        statistics = dict(zip(("pre", "post"), description.statistics(), strict=True))
        for name, path in (("pre", given.pre), ("post", given.post)):
            if path is not None:
                bands = statistics[name].stored_channels
                scene = stack.enter_context(open_scene(path, grid, given.resampling, bands))
                grid = scene.grid if grid is None else grid
                readers[name] = DateReader(scene, statistics[name], path)
        assert grid is not None
        _write_maps(config, model, readers, grid, classes, folder, device)
    count = write_geojson(
        folder / BUILDINGS,
        outlined(folder / MAP, folder / PROBABILITIES, classes, given.min_pixels, grid),
        grid.crs,
    )
    return MapFiles(
        map=folder / MAP, probabilities=folder / PROBABILITIES, buildings=folder / BUILDINGS, count=count
    )


def _write_maps(
    config: BrightConfig,
    model: DamageModel,
    readers: Mapping[str, DateReader],
    grid: Grid,
    classes: list[str],
    folder: Path,
    device: torch.device,
) -> None:
    model.eval()

    def read(area: Area) -> dict[str, Tensor]:
        return {name: reader.read(area) for name, reader in readers.items()}

    def predict(windows: list[dict[str, Tensor]]) -> Tensor:
        before, after = ([window[name] for window in windows if name in window] for name in ("pre", "post"))
        logits = predict_windows(model, before or None, after or None, device, config.optim.amp)
        return logits[:, 2:] if logits.shape[1] > 2 else logits

    colours = {number: COLOURS[number] for number in range(min(len(classes), len(COLOURS)))}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not Console(stderr=True).is_terminal,
    )
    with (
        write_map(folder / MAP, grid, dtype="uint8", nodata=NO_DATA, colours=colours) as damage,
        write_map(
            folder / PROBABILITIES, grid, dtype="uint8", count=len(classes), nodata=NO_DATA, names=classes
        ) as probabilities,
        bar,
    ):
        task = bar.add_task("windows", total=count_windows(grid.height, grid.width, config.tiling))
        for block in predict_blocks(
            grid.height, grid.width, read, predict, config.tiling, lambda done: bar.advance(task, done)
        ):
            shares = block.values.softmax(dim=0)
            numbers = shares.argmax(dim=0).numpy().astype(np.uint8)
            stored = (shares * FULL).round().numpy().astype(np.uint8)
            missing = ~np.logical_and.reduce([reader.valid(block.area) for reader in readers.values()])
            numbers[missing] = NO_DATA
            stored[:, missing] = NO_DATA
            damage.write(block.area, numbers)
            probabilities.write(block.area, stored)


def outlined(
    map_path: Path, probabilities: Path, classes: list[str], min_pixels: int, grid: Grid
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Buildings of a map: connected pixels that are not background, each with one class.

    The class is the one of the largest mean probability within the outline, background aside; that mean,
    divided by the mean of all building classes, is the confidence in it, and ``building`` the latter.

    Yields:
        GeoJSON geometry in the map's coordinates, and ``class``, ``confidence``, ``building``, ``pixels``
        and, where the map's system has a unit of length, ``area`` in its square.
    """
    merged = map_path.with_name(f".{map_path.stem}.buildings.tif")
    try:
        _merge_classes(map_path, merged, grid)
        with rasterio.open(probabilities) as dataset:
            for geometry, _ in polygons(merged):
                means, pixels = _mean_shares(dataset, geometry, grid)
                if pixels < min_pixels:
                    continue
                building = float(means[1:].sum())
                number = 1 + int(means[1:].argmax())
                facts: dict[str, Any] = {"class": classes[number], "class_number": number}
                facts |= {"confidence": round(float(means[number]) / building, 4) if building else 0.0}
                facts |= {"building": round(building, 4), "pixels": pixels}
                if grid.crs is not None and grid.crs.is_projected:
                    facts["area"] = round(pixels * abs(grid.transform.determinant), 2)
                yield geometry, facts
    finally:
        merged.unlink(missing_ok=True)


def _merge_classes(source: Path, target: Path, grid: Grid) -> None:
    """Writes 1 where a map shows a building of any class, else 0."""
    with rasterio.open(source) as dataset, write_map(target, grid, dtype="uint8") as writer:
        for row in range(0, grid.height, _CHUNK):
            for column in range(0, grid.width, _CHUNK):
                area = Area(row, column, min(_CHUNK, grid.height - row), min(_CHUNK, grid.width - column))
                values = dataset.read(1, window=Window(column, row, area.width, area.height))
                writer.write(area, ((values > 0) & (values != NO_DATA)).astype(np.uint8))


def _mean_shares(dataset: Any, geometry: Mapping[str, Any], grid: Grid) -> tuple[np.ndarray, int]:
    """Mean probability of each class inside an outline, and its pixels; read in parts of bounded size."""
    xs, ys = zip(*geometry["coordinates"][0], strict=True)
    rows, columns = rowcol(grid.transform, xs, ys, op=np.round)
    top, bottom = int(min(rows)), int(max(rows))
    left, right = int(min(columns)), int(max(columns))
    total, pixels = np.zeros(dataset.count), 0
    for row in range(top, bottom, _CHUNK):
        for column in range(left, right, _CHUNK):
            height, width = min(_CHUNK, bottom - row), min(_CHUNK, right - column)
            moved = window_transform(Window(column, row, width, height), grid.transform)
            inside = geometry_mask([geometry], (height, width), moved, invert=True)
            stored = dataset.read(window=Window(column, row, width, height))[:, inside]
            total += stored.sum(axis=1, dtype=np.float64)
            pixels += int(inside.sum())
    return total / max(1, pixels) / FULL, pixels
