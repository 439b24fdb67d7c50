"""Boxes of a scene of any size: windows with overlap, each object once, memory that does not grow with it."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from codemae.mm.launch import LaunchError
from codemae.scenes.geotiff import Grid, Scene, SceneError, open_scene, write_geojson
from codemae.scenes.tiling import Area, TilingConfig, areas

_CHUNK = 512
_EVERYWHERE = (-math.inf, -math.inf, math.inf, math.inf)
CUT = 4.0
"""Pixels from a window's inner border within which a box counts as cut by it."""
AGREE = 0.7
"""Overlap, within what two windows both saw, from which on two boxes are parts of one object."""


@dataclass(kw_only=True)
class SceneSettings:
    """How a scene is searched.

    Attributes:
        window: Side of the windows in pixels.
        overlap: Pixels that neighbours share. An object 8 px shorter is whole in some window; a longer one is
            put together from its parts.
        batch_size: Windows a call of the detector.
        least_score: Boxes below it are left out.
        iou: Two boxes of a class that overlap more are one object.
        value_range: Stored values that become 0 and 255; None for bytes.
        bands: Numbers, from 1, of the bands shown to the detector; None for the first three, or the only one.
        strict: Whether a window that cannot be read ends the run.
        fill: Level of each channel where the scene has no data: the mean, which standardises to zero.
    """

    window: int = 800
    overlap: int = 200
    batch_size: int = 1
    least_score: float = 0.3
    iou: float = 0.5
    value_range: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    strict: bool = False
    fill: tuple[float, ...] = (0.0, 0.0, 0.0)


@dataclass
class Boxes:
    """Boxes in the pixels of a scene.

    Attributes:
        corners: (n, 4) left, top, right, bottom.
        scores: (n,).
        labels: (n,) class numbers.
        seen: (n, 4) the window each was found in, infinite where the scene ends; no borders by default.
    """

    corners: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    seen: Tensor = field(default_factory=lambda: torch.zeros(0, 4))

    def __post_init__(self) -> None:
        if len(self.seen) == 0:
            self.seen = torch.tensor(_EVERYWHERE).expand(len(self), 4)

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, chosen: Tensor) -> "Boxes":
        """Some of them."""
        return Boxes(self.corners[chosen], self.scores[chosen], self.labels[chosen], self.seen[chosen])

    def joined(self, others: "Boxes") -> "Boxes":
        """These and others."""
        return Boxes(
            torch.cat([self.corners, others.corners]),
            torch.cat([self.scores, others.scores]),
            torch.cat([self.labels, others.labels]),
            torch.cat([self.seen, others.seen]),
        )

    def cut(self) -> Tensor:
        """(n,): whether a box ends at its window's border, so that its object may go on beyond it."""
        return ((self.corners - self.seen).abs() <= CUT).any(dim=1)


@dataclass(frozen=True, kw_only=True)
class SceneResult:
    """What a scene gave.

    Attributes:
        boxes: How many objects were written.
        windows: How many windows were searched.
        unread: Windows that could not be read.
        placed: Whether coordinates are those of a map; else they are columns and rows.
    """

    boxes: int
    windows: int
    unread: list[Area]
    placed: bool


Detect = Callable[[list[np.ndarray]], list[Boxes]]


def search_scene(
    path: Path, out: Path, detect: Detect, classes: Sequence[str], settings: SceneSettings
) -> SceneResult:
    """Writes the objects of a scene as GeoJSON, with class, score and box in pixels.

    Args:
        path: GeoTIFF, PNG or JPEG.
        out: File to write; whole or not at all.
        detect: Boxes of some windows of (h, w, 3) bytes in red, green, blue, in pixels of each window.
        classes: Names of the classes.
        settings: Windows and thresholds.

    Raises:
        SceneError: The scene cannot be opened, or with ``strict`` a window cannot be read.
        LaunchError: Its bands or values do not fit.
    """
    tiling = TilingConfig(
        window=settings.window,
        overlap=settings.overlap,
        panel=settings.window,
        batch_size=settings.batch_size,
    )
    with open_scene(path, bands=max(settings.bands or (1,))) as scene:
        reader = _Reader(scene, settings)
        found = _objects(scene.grid, reader, detect, tiling, settings)
        count = write_geojson(out, (_feature(place, scene.grid, classes) for place in found), scene.grid.crs)
        return SceneResult(
            boxes=count, windows=reader.windows, unread=reader.unread, placed=scene.grid.placed
        )


class _Reader:
    """Windows of a scene as the detector takes them."""

    def __init__(self, scene: Scene, settings: SceneSettings) -> None:
        self._scene = scene
        self._range = settings.value_range
        self._strict = settings.strict
        self._fill = np.array(settings.fill, dtype=np.float32)
        self.windows = 0
        self.unread: list[Area] = []
        bands = settings.bands or ((1,) if scene.bands == 1 else (1, 2, 3))
        if len(bands) not in (1, 3) or not all(1 <= band <= scene.bands for band in bands):
            raise LaunchError(
                f"{scene.path} has {scene.bands} bands; name one or three of them with --bands, red first"
            )
        self._bands = [band - 1 for band in bands]
        if scene.dtype != "uint8" and self._range is None:
            raise LaunchError(
                f"{scene.path} holds {scene.dtype}, the detector saw bytes; give the stored values that "
                "become 0 and 255 with --value-range LOW HIGH"
            )

    def read(self, area: Area) -> np.ndarray | None:
        """(h, w, 3) bytes; None where the window cannot be read."""
        self.windows += 1
        try:
            pixels = self._scene.read(area)[..., self._bands]
        except SceneError:
            if self._strict:
                raise
            self.unread.append(area)
            return None
        if self._range is not None:
            low, high = self._range
            pixels = (pixels.astype(np.float32) - low) * (255 / (high - low))
        pixels = np.repeat(pixels, 3 // len(self._bands), axis=-1)
        if pixels.dtype.kind == "f":
            pixels = np.where(np.isfinite(pixels), pixels, self._fill)
        return np.clip(pixels, 0, 255).round().astype(np.uint8)


def _objects(
    grid: Grid, reader: _Reader, detect: Detect, tiling: TilingConfig, settings: SceneSettings
) -> Iterator[tuple[list[float], float, int]]:
    """Corners, score and class of each object, in groups from top to bottom."""
    windows = list(areas(grid.height, grid.width, tiling))
    waiting = Boxes()
    with _progress_bar() as bar:
        task = bar.add_task("windows", total=len(windows))
        for first in range(0, len(windows), tiling.batch_size):
            batch = windows[first : first + tiling.batch_size]
            read = [(area, pixels) for area in batch if (pixels := reader.read(area)) is not None]
            if read:
                answers = detect([pixels for _, pixels in read])
                for (area, _), boxes in zip(read, answers, strict=True):
                    waiting = waiting.joined(_whole(boxes, area, grid, settings))
            bar.advance(task, len(batch))
            following = windows[first + len(batch)].row if first + len(batch) < len(windows) else None
            if following is None or following > batch[0].row:
                done, waiting = settle(waiting, following, settings.iou)
                yield from zip(done.corners.tolist(), done.scores.tolist(), done.labels.tolist(), strict=True)


def _whole(boxes: Boxes, area: Area, grid: Grid, settings: SceneSettings) -> Boxes:
    """Boxes moved to the scene, without those that a neighbouring window sees better.

    Of a box shorter than the overlap the neighbour sees all if the centre lies in the outer quarter of the
    overlap, or if the box ends at the window's inner border. Longer boxes no window may see whole, so each
    gives its part.
    """
    boxes = boxes.part(boxes.scores >= settings.least_score)
    left, top, right, bottom = boxes.corners.unbind(1)
    seen = list(_EVERYWHERE)
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for axis, (low, high, length, begin, whole) in enumerate(
        (
            (left, right, area.width, area.column, grid.width),
            (top, bottom, area.height, area.row, grid.height),
        )
    ):
        centre, long = (low + high) / 2, high - low >= settings.overlap - 2 * CUT
        outer = settings.overlap / 4
        if begin > 0:
            seen[axis] = begin
            kept &= ((centre >= outer) & (low > CUT)) | long
        if begin + length < whole:
            seen[axis + 2] = begin + length
            kept &= ((centre <= length - outer) & (high < length - CUT)) | long
    shift = torch.tensor([area.column, area.row, area.column, area.row], dtype=torch.float32)
    window = torch.tensor(seen, dtype=torch.float32).expand(len(boxes), 4)
    return Boxes(boxes.corners + shift, boxes.scores, boxes.labels, window).part(kept)


def settle(waiting: Boxes, following: int | None, iou: float) -> tuple[Boxes, Boxes]:
    """Objects that no later window can change, and the boxes that have to wait.

    Boxes that overlap, directly or through others, are settled together once all of them end above the next
    row of windows; so the objects are those of one joining of parts and one non-maximum suppression over all
    boxes of the scene.

    Args:
        waiting: Boxes so far.
        following: First row of the windows to come; None after the last.
        iou: Overlap of two boxes of one object.
    """
    if len(waiting) == 0:
        return Boxes(), waiting
    ready = torch.ones(len(waiting), dtype=torch.bool)
    if following is not None:
        ready = waiting.corners[:, 3] < following
        holding = ~ready
        while holding.any() and ready.any():
            held = ready.clone()
            held[ready] = _touches(waiting.part(ready), waiting.part(holding))
            ready, holding = ready & ~held, held
    done = waiting.part(ready)
    if len(done):
        done = join_parts(done)
        done = done.part(batched_nms(done.corners, done.scores, done.labels, iou))
    return done, waiting.part(~ready)


def join_parts(boxes: Boxes) -> Boxes:
    """Boxes with the parts of each object that window borders cut made one, at their largest score.

    Two boxes of a class are of one object if they agree within what both windows saw. A cut box that lies in
    one that is not cut is left out; the outline of cut boxes that agree, directly or through others, takes
    their place. Boxes that are not cut stay as they are.
    """
    cut = boxes.cut()
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for place in cut.nonzero().flatten().tolist():
        kept[place] = not (_agreeing(boxes, place) & _holding(boxes, place) & ~cut).any()
    parts, group = cut & kept, torch.arange(len(boxes))
    for place in parts.nonzero().flatten().tolist():
        mates = _agreeing(boxes, place) & parts
        mates[place] = True
        group[torch.isin(group, group[mates])] = group[mates].min()
    corners, scores = boxes.corners.clone(), boxes.scores.clone()
    for first in group[parts].unique().tolist():
        members = group == first
        corners[first, :2] = boxes.corners[members, :2].amin(dim=0)
        corners[first, 2:] = boxes.corners[members, 2:].amax(dim=0)
        scores[first] = boxes.scores[members].max()
        kept[members] = False
        kept[first] = True
    return Boxes(corners[kept], scores[kept], boxes.labels[kept])


def _agreeing(boxes: Boxes, place: int) -> Tensor:
    """(n,): whether a box has the class of this one and overlaps it within what the windows of both saw."""
    low = boxes.seen[:, :2].maximum(boxes.seen[place, :2])
    high = boxes.seen[:, 2:].minimum(boxes.seen[place, 2:])
    starts, ends = boxes.corners[:, :2].maximum(low), boxes.corners[:, 2:].minimum(high)
    own_start, own_end = boxes.corners[place, :2].maximum(low), boxes.corners[place, 2:].minimum(high)
    shared = _area(starts.maximum(own_start), ends.minimum(own_end))
    overlap = shared / (_area(starts, ends) + _area(own_start, own_end) - shared)
    return (overlap > AGREE) & (boxes.labels == boxes.labels[place])


def _holding(boxes: Boxes, place: int) -> Tensor:
    """(n,): whether most of this box lies in a box."""
    start, end = boxes.corners[place, :2], boxes.corners[place, 2:]
    shared = _area(boxes.corners[:, :2].maximum(start), boxes.corners[:, 2:].minimum(end))
    return shared > AGREE * _area(start, end)


def _area(starts: Tensor, ends: Tensor) -> Tensor:
    """Of rectangles from (..., 2) to (..., 2); 0 where one ends before it starts."""
    return (ends - starts).clamp(min=0).prod(dim=-1)


def _touches(boxes: Boxes, others: Boxes) -> Tensor:
    """(n,): whether a box overlaps one of the others that has its class; in parts, to bound the memory."""
    parts = []
    for first in range(0, len(boxes), _CHUNK):
        some = boxes.part(torch.arange(first, min(first + _CHUNK, len(boxes))))
        overlap = box_iou(some.corners, others.corners) > 0
        parts.append((overlap & (some.labels[:, None] == others.labels[None])).any(dim=1))
    return torch.cat(parts)


def _feature(
    found: tuple[list[float], float, int], grid: Grid, classes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    (left, top, right, bottom), score, label = found
    ring = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    if grid.placed:
        ring = [grid.transform * corner for corner in ring]
    pixels = [round(value, 2) for value in (left, top, right, bottom)]
    geometry = {"type": "Polygon", "coordinates": [[list(corner) for corner in ring]]}
    return geometry, {"class": classes[label], "score": round(score, 4), "pixels": pixels}


def detector_of(model: nn.Module, device: torch.device) -> Detect:
    """A function that runs a trained model of mmdet on windows at their own resolution."""
    network: Any = model.to(device).eval()

    @torch.inference_mode()
    def detect(windows: list[np.ndarray]) -> list[Boxes]:
        samples = []
        for pixels in windows:
            size = pixels.shape[:2]
            samples.append(
                DetDataSample(metainfo={"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)})
            )
        # The preprocessor swaps blue and red, as it does for images that the framework reads.
        inputs = [torch.from_numpy(np.ascontiguousarray(p[..., ::-1].transpose(2, 0, 1))) for p in windows]
        answers = network.test_step({"inputs": inputs, "data_samples": samples})
        found = [answer.pred_instances for answer in answers]
        return [Boxes(one.bboxes.float().cpu(), one.scores.float().cpu(), one.labels.cpu()) for one in found]

    return detect


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
    )
