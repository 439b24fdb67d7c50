"""Windows with overlap over a scene of any size, and their blending in memory that does not grow with it.

A scene is worked through in panels of columns, each from top to bottom. What a window predicts is added,
with a weight that falls towards its borders, to a band as high as a window; rows that no later window
touches are divided by their weights and handed out. So memory depends on window and panel alone. Windows
that straddle two panels are predicted in both, which costs work and changes no value.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")

LEAST_WEIGHT = 1e-3


class TilingError(ValueError):
    """Windows that cannot cover a scene."""


class Area(NamedTuple):
    """A rectangle of a scene, in pixels."""

    row: int
    column: int
    height: int
    width: int


class Block(NamedTuple):
    """A finished rectangle of the result.

    Attributes:
        area: Where it lies.
        values: (K, height, width) float32 on the CPU.
    """

    area: Area
    values: Tensor


@dataclass(kw_only=True)
class TilingConfig:
    """How a scene is cut.

    Attributes:
        window: Side of the windows in pixels.
        overlap: Pixels that neighbouring windows share; their predictions are blended there.
        margin: Pixels at a window's border that are not used, unless the scene ends there. With a margin as
            wide as a network sees, the result is that of the whole image at once.
        panel: Most columns worked on at a time.
        batch_size: Windows a call of the network.
    """

    window: int = 512
    overlap: int = 256
    margin: int = 0
    panel: int = 2048
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.batch_size < 1:
            raise TilingError(f"window {self.window} and batch_size {self.batch_size} must be at least 1")
        if not 0 <= self.overlap < self.window:
            raise TilingError(f"overlap {self.overlap} must be at least 0 and below the window {self.window}")
        if self.margin < 0 or 2 * self.margin > self.overlap:
            raise TilingError(
                f"margin {self.margin}: neighbouring windows share {self.overlap} px, so at most half of "
                "that can be left unused; enlarge the overlap"
            )
        if self.panel < self.window:
            raise TilingError(f"panel {self.panel} must be at least the window {self.window}")


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along one axis: every ``window - overlap``, the last one moved to end with it."""
    if length <= window:
        return [0]
    last = length - window
    return [*range(0, last, window - overlap), last]


def areas(height: int, width: int, config: TilingConfig) -> Iterator[Area]:
    """Every window of a scene, row by row; a side shorter than a window is one window as long as the side."""
    tall, wide = min(config.window, height), min(config.window, width)
    for row in starts(height, config.window, config.overlap):
        for column in starts(width, config.window, config.overlap):
            yield Area(row, column, tall, wide)


def panels(width: int, config: TilingConfig) -> list[tuple[int, int]]:
    """First and last-but-one column of each panel; inner borders lie on window starts."""
    step = config.window - config.overlap
    each = max(step, config.panel // step * step)
    firsts = list(range(0, max(1, width), each))
    return list(zip(firsts, [*firsts[1:], width], strict=True))


def count_windows(height: int, width: int, config: TilingConfig) -> int:
    """Calls of ``read`` that ``predict_blocks`` makes."""
    rows, columns = (
        starts(height, config.window, config.overlap),
        starts(width, config.window, config.overlap),
    )
    touching = sum(
        len(_touching(columns, min(config.window, width), panel)) for panel in panels(width, config)
    )
    return len(rows) * touching


def predict_blocks(
    height: int,
    width: int,
    read: Callable[[Area], T],
    predict: Callable[[list[T]], Tensor],
    config: TilingConfig,
    progress: Callable[[int], None] = lambda windows: None,
) -> Iterator[Block]:
    """Predicts a scene window by window and hands out finished blocks that cover it exactly once.

    Args:
        height: Of the scene in pixels.
        width: Of the scene in pixels.
        read: Gives the input of a window that lies inside the scene.
        predict: Gives (n, K, h, w) for the inputs of n windows, at their own resolution: logits, say.
        config: Windows, overlap and panels.
        progress: Told how many windows were done since it was told last.

    Yields:
        Blocks, panels from left to right, each from top to bottom. Values are weighted means of all windows
        over a pixel.

    Raises:
        TilingError: ``predict`` returns something of another size than its windows.
    """
    rows, columns = (
        starts(height, config.window, config.overlap),
        starts(width, config.window, config.overlap),
    )
    tall, wide = min(config.window, height), min(config.window, width)
    for left, right in panels(width, config):
        band: Tensor | None = None
        weights = torch.zeros(tall, right - left)
        mine = _touching(columns, wide, (left, right))
        for place, row in enumerate(rows):
            windows = [Area(row, column, tall, wide) for column in mine]
            for first in range(0, len(windows), config.batch_size):
                batch = windows[first : first + config.batch_size]
                values = predict([read(area) for area in batch]).detach().float().cpu()
                if values.shape[0] != len(batch) or values.shape[2:] != (tall, wide):
                    raise TilingError(
                        f"{len(batch)} windows of {tall} x {wide} px gave values of shape "
                        f"{tuple(values.shape)}"
                    )
                if band is None:
                    band = torch.zeros(values.shape[1], tall, right - left)
                for area, value in zip(batch, values, strict=True):
                    weight = window_weights(area, height, width, config)
                    begin, end = max(area.column, left), min(area.column + wide, right)
                    inner = slice(begin - area.column, end - area.column)
                    outer = slice(begin - left, end - left)
                    band[:, :, outer] += value[:, :, inner] * weight[:, inner]
                    weights[:, outer] += weight[:, inner]
                progress(len(batch))
            assert band is not None
            done = rows[place + 1] - row if place + 1 < len(rows) else tall
            yield Block(Area(row, left, done, right - left), band[:, :done] / weights[:done])
            band = torch.cat([band[:, done:], torch.zeros_like(band[:, :done])], dim=1)
            weights = torch.cat([weights[done:], torch.zeros_like(weights[:done])])


def window_weights(area: Area, height: int, width: int, config: TilingConfig) -> Tensor:
    """Weight of each pixel of a window: 1 inside, falling linearly over the overlap, 0 in the margin.

    Where the scene ends there is nothing to blend with, so neither margin nor slope.

    Returns:
        (h, w) float32.
    """
    down = _slope(area.row, area.height, height, config)
    across = _slope(area.column, area.width, width, config)
    return torch.from_numpy(np.outer(down, across).astype(np.float32))


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pads (..., H, W) below and to the right, by the last row and column, to multiples of a number."""
    height, width = images.shape[-2:]
    below, beside = -height % multiple, -width % multiple
    if not below and not beside:
        return images
    return F.pad(images, (0, beside, 0, below), mode="replicate")


def _touching(columns: Sequence[int], wide: int, panel: tuple[int, int]) -> list[int]:
    return [column for column in columns if column < panel[1] and column + wide > panel[0]]


def _slope(start: int, length: int, whole: int, config: TilingConfig) -> np.ndarray:
    """Weights along one axis."""
    place = np.arange(length)
    slope = max(1, config.overlap - 2 * config.margin)

    def rising(distance: np.ndarray) -> np.ndarray:
        inside = distance - config.margin
        ramp = np.clip((inside + 0.5) / slope, LEAST_WEIGHT, 1)
        return np.where(inside >= 0, ramp, 0.0)

    weights = np.ones(length)
    if start > 0:
        weights = np.minimum(weights, rising(place))
    if start + length < whole:
        weights = np.minimum(weights, rising(length - 1 - place))
    return weights
