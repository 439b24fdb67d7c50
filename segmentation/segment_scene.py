"""Scenes of any size to maps of classes, window by window, in memory that does not grow with them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from segment_predict import predict_logits
from torch import Tensor

from codemae.data.bitemporal import standardise
from codemae.data.images import ImageError, as_read
from codemae.data.masks import NO_LABEL
from codemae.data.statistics import SourceStatistics
from codemae.mm.backbone import find_backbone
from codemae.mm.launch import LaunchError
from codemae.mm.segmentation_dataset import FACTS
from codemae.scenes.geotiff import Grid, Scene, SceneError, open_scene, write_map
from codemae.scenes.tiling import Area, TilingConfig, count_windows, predict_blocks

ALL_MISSING = 1 - 1e-5
"""Blended share of windows that say a pixel has no data, from which on it has none."""


@dataclass(kw_only=True)
class SceneMap:
    """What became of a scene.

    Attributes:
        height: Of the map in pixels.
        width: Of the map in pixels.
        windows: How many were predicted.
        placed: Whether the scene, and so the map, has a coordinate system.
        unread: A sentence a window that could not be read.
    """

    height: int = 0
    width: int = 0
    windows: int = 0
    placed: bool = False
    unread: list[str] = field(default_factory=list)


def reader_facts(model: Any) -> dict[str, SourceStatistics]:
    """How a trained model wants each modality's scene scaled and standardised, from its checkpoint.

    Raises:
        LaunchError: The checkpoint does not say.
    """
    facts = model.dataset_meta.get(FACTS)
    if not facts:
        raise LaunchError("the checkpoint does not say how its images were standardised; train it again")
    channels = find_backbone(model)[1].encoder.channels
    return {
        name: SourceStatistics.from_dict(plain).expanded(channels[name])
        for name, plain in facts["statistics"].items()
    }


def standardised(pixels: np.ndarray, statistics: SourceStatistics) -> Tensor:
    """Stored values (H, W) or (H, W, C) to (C, H, W); no data becomes 0, the mean."""
    values = pixels[..., None] if pixels.ndim == 2 else pixels
    return standardise(np.moveaxis(statistics.scaling.apply(values), -1, 0), statistics.mean, statistics.std)


def map_scene(
    model: Any,
    scenes: Mapping[str, Path],
    facts: Mapping[str, SourceStatistics],
    out: Path,
    tiling: TilingConfig,
    probabilities: Path | None = None,
    strict: bool = False,
) -> SceneMap:
    """Writes the class of every pixel of a scene, 255 where there is no data.

    Windows overlap and their logits are blended. The map has the first scene's size, coordinate system and
    transform; a second scene is warped onto its grid as it is read. A window that cannot be read gives no
    votes: pixels that other windows cover keep theirs, the others are without data.

    Args:
        model: Trained segmentor in eval mode.
        scenes: File of each modality.
        facts: Statistics of each modality.
        out: GeoTIFF of the classes.
        tiling: Windows.
        probabilities: GeoTIFF of a band a class, 0 to 1; none when not given.
        strict: Whether a window that cannot be read is an error.

    Raises:
        SceneError: A scene cannot be opened or, with ``strict``, read; or two do not fit together.
        LaunchError: A scene has not the bands the model was trained on.
    """
    classes, palette = model.dataset_meta["classes"], model.dataset_meta.get("palette", [])
    colours = {number: tuple(colour) for number, colour in enumerate(palette)}
    result = SceneMap()
    with ExitStack() as stack:
        readers: list[_Reader] = []
        grid: Grid | None = None
        for name, path in scenes.items():
            scene = stack.enter_context(open_scene(path, grid, bands=facts[name].stored_channels))
            grid = grid or scene.grid
            readers.append(_Reader(scene, facts[name], name))
        assert grid is not None
        result.height, result.width, result.placed = grid.height, grid.width, grid.placed
        result.windows = count_windows(grid.height, grid.width, tiling)
        windows = _Windows(model, readers, len(classes), strict, result.unread)
        written = stack.enter_context(
            write_map(out, grid, dtype="uint8", nodata=NO_LABEL, colours=colours, names=["class"])
        )
        shares = None
        if probabilities is not None:
            shares = stack.enter_context(
                write_map(
                    probabilities, grid, dtype="float32", count=len(classes), nodata=np.nan, names=classes
                )
            )
        bar = stack.enter_context(_bar())
        task = bar.add_task("windows", total=result.windows)
        for block in predict_blocks(
            grid.height, grid.width, windows.read, windows.predict, tiling, lambda n: bar.advance(task, n)
        ):
            readable = block.values[-1]
            # Where no window could be read, the division gives NaN, which is masked.
            votes = block.values[:-1] / readable
            logits, missing = votes[:-1], (votes[-1] > ALL_MISSING).numpy() | (readable == 0).numpy()
            # max finds the place several times as fast as argmax does over the first dimension.
            numbers = logits.max(dim=0).indices.numpy().astype(np.uint8)
            numbers[missing] = NO_LABEL
            written.write(block.area, numbers)
            if shares is not None:
                values = logits.softmax(dim=0).numpy()
                values[:, missing] = np.nan
                shares.write(block.area, values)
    return result


class _Reader:
    """Windows of one scene as the model sees them."""

    def __init__(self, scene: Scene, statistics: SourceStatistics, modality: str) -> None:
        self._scene = scene
        self._statistics = statistics
        wanted = max(statistics.select, default=statistics.channels - 1) + 1
        if scene.bands != 1 and scene.bands < wanted:
            raise LaunchError(
                f"{scene.path} has {scene.bands} bands, the model was trained on {wanted} of {modality}"
            )

    def read(self, area: Area) -> tuple[Tensor, np.ndarray]:
        """(C, h, w) standardised, and (h, w) where no band has data.

        Raises:
            SceneError: It cannot be read.
            LaunchError: Its bands are not those the model was trained on.
        """
        pixels = self._scene.read(area)
        missing = (
            ~np.isfinite(pixels).any(axis=-1)
            if pixels.dtype.kind == "f"
            else np.zeros(pixels.shape[:2], bool)
        )
        try:
            picture = np.asarray(as_read(pixels, self._statistics))
        except ImageError as error:
            raise LaunchError(
                f"{self._scene.path}: {error}; give the bands the model was trained on"
            ) from None
        return standardised(picture, self._statistics), missing


class _Windows:
    """Reads and predicts windows.

    The last two bands of a prediction say where there is no data, and whether the window could be read: what
    is blended, divided by the blended last band, is the mean over the windows that could.
    """

    def __init__(
        self, model: Any, readers: Sequence[_Reader], classes: int, strict: bool, unread: list[str]
    ) -> None:
        self._model = model
        self._readers = readers
        self._classes = classes
        self._strict = strict
        self._unread = unread

    def read(self, area: Area) -> tuple[Tensor | None, np.ndarray]:
        """(C, h, w), None where it cannot be read; and (h, w) where there is no data."""
        try:
            parts = [reader.read(area) for reader in self._readers]
        except SceneError as error:
            if self._strict:
                raise
            self._unread.append(str(error))
            return None, np.zeros((area.height, area.width), dtype=bool)
        images, missing = zip(*parts, strict=True)
        return torch.cat(images), np.logical_or.reduce(missing)

    def predict(self, windows: list[tuple[Tensor | None, np.ndarray]]) -> Tensor:
        """(n, K + 2, h, w); zeros of a window that could not be read."""
        missing = torch.from_numpy(np.stack([gaps for _, gaps in windows])).float()
        values = torch.zeros(len(windows), self._classes + 2, *missing.shape[1:])
        readable = [place for place, (image, _) in enumerate(windows) if image is not None]
        if readable:
            images = torch.stack([image for image, _ in windows if image is not None])
            values[readable, : self._classes] = predict_logits(self._model, images, whole=True).float().cpu()
            values[readable, -2] = missing[readable]
            values[readable, -1] = 1
        return values


def _bar() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
