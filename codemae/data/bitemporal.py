"""Tiles of two dates with a mask: how they are read, augmented together and standardised."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from codemae.data.images import Picture, SceneCache, as_read, cut, read_window, resize, size_of
from codemae.data.index import Index, IndexFileError
from codemae.data.masks import NO_LABEL, read_mask, to_classes
from codemae.data.randomness import counter_rng
from codemae.data.statistics import Scaling, SourceStatistics, mixture

Draw = tuple[int, int]
"""Epoch and place among the rows."""


@dataclass(kw_only=True)
class JointAugmentation:
    """What happens to both dates and the mask in training.

    Attributes:
        crop: Side of the crops in pixels.
        scale: Smallest and largest factor of a random resize before the crop; empty for none.
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        rotate: Whether to turn by a random multiple of 90 degrees.
        pre_jitter: Largest change of brightness and of contrast of the first date, as a share.
        post_jitter: The same of the second date, drawn on its own.
        post_looks: Looks of the speckle that multiplies the second date; null for none.
    """

    crop: int = 512
    scale: list[float] = field(default_factory=lambda: [0.5, 2.0])
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.5
    rotate: bool = True
    pre_jitter: float = 0.0
    post_jitter: float = 0.0
    post_looks: int | None = None

    def __post_init__(self) -> None:
        if self.crop < 16 or self.crop % 16:
            raise ValueError(f"augmentation.crop is {self.crop}; it must be a multiple of 16")
        if len(self.scale) not in (0, 2):
            raise ValueError(
                f"augmentation.scale is a smallest and a largest factor, or empty; got {self.scale}"
            )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a crop lies in the tile and how it is turned.

    Attributes:
        top: First row.
        left: First column.
        height: Rows that are cut.
        width: Columns that are cut.
        tall: Rows they are resized to.
        wide: Columns they are resized to; what is missing to the crop's side is padded.
        horizontal_flip: Mirror left and right.
        vertical_flip: Mirror top and bottom.
        turns: Quarter turns.
    """

    top: int
    left: int
    height: int
    width: int
    tall: int
    wide: int
    horizontal_flip: bool = False
    vertical_flip: bool = False
    turns: int = 0


def draw_placement(config: JointAugmentation, height: int, width: int, rng: np.random.Generator) -> Placement:
    """Random resize, crop, flips and quarter turns of a tile."""
    low, high = config.scale or (1.0, 1.0)
    factor = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    side = max(1, round(config.crop / factor))
    h, w = min(side, height), min(side, width)
    top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in ((height, h), (width, w)))
    flips = rng.random(2)
    turns = int(rng.integers(0, 4))
    return Placement(
        top=top,
        left=left,
        height=h,
        width=w,
        tall=config.crop if h == side else max(1, min(config.crop, round(h * factor))),
        wide=config.crop if w == side else max(1, min(config.crop, round(w * factor))),
        horizontal_flip=bool(flips[0] < config.horizontal_flip),
        vertical_flip=bool(flips[1] < config.vertical_flip),
        turns=turns if config.rotate else 0,
    )


class BitemporalTiles(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """First date, second date and mask of rows, standardised by the statistics of their source.

    Items are asked for by epoch and place; every draw is a function of seed, epoch and row. Both dates and
    the mask share crop, flips and turns; each date has brightness, contrast and speckle of its own.

    Args:
        index: The rows and their files: ``optical`` is the first date, ``post`` the second, ``mask``.
        rows: Index rows.
        post_modality: Whose statistics the second date has.
        mask_values: Stored value of each class.
        ignore_values: Stored values that mean no label.
        augmentation: In training; None hands out whole tiles.
        labelled: Whether masks are read; without them every pixel is without label.
        seed: Of all draws.
        cache_bytes: Memory for decoded scenes that serve many windows.

    Raises:
        IndexFileError: A row lacks the second date or the mask.
    """

    def __init__(
        self,
        index: Index,
        rows: np.ndarray,
        *,
        post_modality: str = "sar",
        mask_values: Sequence[int] = (0, 1, 2, 3),
        ignore_values: Sequence[int] = (NO_LABEL,),
        augmentation: JointAugmentation | None = None,
        labelled: bool = True,
        seed: int = 0,
        cache_bytes: int = 64 << 20,
    ) -> None:
        self.index = index
        self.rows = np.asarray(rows)
        self.post_modality = post_modality
        self.mask_values = tuple(mask_values)
        self.ignore_values = tuple(ignore_values)
        self.augmentation = augmentation
        self.labelled = labelled
        self.seed = seed
        self._cache = SceneCache(cache_bytes)
        for row in self.rows.tolist():
            for column in ("optical", "post", *(("mask",) if labelled else ())):
                if index.cell(row, column) is None:
                    raise IndexFileError(
                        f"row {row} of {', '.join(index.folders)} has no {column!r} image; a bi-temporal "
                        "task needs optical (before), post (after) and mask, as "
                        "`python datasets/prepare.py bright --root DIR --out INDEX_DIR` gives them"
                    )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """First date (C, H, W), second date (C, H, W) float32, mask (H, W) int64.

        Raises:
            ImageError: An image cannot be read.
            MaskError: The mask holds a value that is no class.
        """
        epoch, place = draw
        row = int(self.rows[place])
        pre, post, mask = self.read(row)
        config = self.augmentation
        if config is not None:
            rng = counter_rng(self.seed, epoch, 0, row, "bitemporal:crop")
            placement = draw_placement(config, mask.shape[0], mask.shape[1], rng)
            pre, post = _placed(pre, placement, config.crop), _placed(post, placement, config.crop)
            mask = _placed_mask(mask, placement, config.crop)
            rng = counter_rng(self.seed, epoch, 0, row, "bitemporal:pre")
            pre = jittered(pre, config.pre_jitter, rng)
            rng = counter_rng(self.seed, epoch, 0, row, "bitemporal:post")
            post = jittered(post, config.post_jitter, rng)
            if config.post_looks is not None:
                post = speckled(post, self.statistics(row)[1].scaling, config.post_looks, rng)
        before, after = self.standardised(row, pre, post)
        return before, after, torch.from_numpy(mask.astype(np.int64))

    def read(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whole tile of a row: both dates (C, H, W) float32 on [0, 1], NaN for no data; mask (H, W) uint8.

        Raises:
            ImageError: One cannot be read, or they differ in size.
            MaskError: The mask holds a value that is no class.
        """
        window = self.index.window(row)
        images = []
        for column, statistics in zip(("optical", "post"), self.statistics(row), strict=True):
            location = self.index.location(row, column)
            picture = as_read(read_window(location, window, self._cache), statistics)
            values = np.asarray(picture)
            values = values[..., None] if values.ndim == 2 else values
            images.append(np.ascontiguousarray(np.moveaxis(statistics.scaling.apply(values), -1, 0)))
        if not self.labelled:
            return images[0], images[1], np.full(images[0].shape[1:], NO_LABEL, dtype=np.uint8)
        location = self.index.location(row, "mask")
        mask = to_classes(read_mask(location, window), self.mask_values, self.ignore_values, str(location))
        if not images[0].shape[1:] == images[1].shape[1:] == mask.shape:
            raise IndexFileError(
                f"row {row}: before is {images[0].shape[1:]}, after {images[1].shape[1:]}, the mask "
                f"{mask.shape} (height, width); prepare the index again"
            )
        return images[0], images[1], mask

    def statistics(self, row: int) -> tuple[SourceStatistics, SourceStatistics]:
        """Statistics of both dates of a row."""
        source = self.index.source(row)
        return self.index.stats(source, "optical"), self.index.stats(source, self.post_modality)

    def standardised(self, row: int, pre: np.ndarray, post: np.ndarray) -> tuple[Tensor, Tensor]:
        """Both dates (C, H, W) on [0, 1], standardised; no data becomes 0, the mean."""
        before, after = self.statistics(row)
        return standardise(pre, before.mean, before.std), standardise(post, after.mean, after.std)

    def whole(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """A whole tile without augmentation, whatever the dataset is set to."""
        row = int(self.rows[place])
        pre, post, mask = self.read(row)
        return (*self.standardised(row, pre, post), torch.from_numpy(mask.astype(np.int64)))


def standardise(values: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(C, H, W) on [0, 1] to (value - mean) / std; NaN and infinities become 0."""
    center, spread = (torch.tensor(list(each), dtype=torch.float32)[:, None, None] for each in (mean, std))
    image = (torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) - center) / spread
    return image.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def training_statistics(index: Index, rows: np.ndarray, modality: str) -> SourceStatistics:
    """Statistics of one date's images over rows of several sources, weighted by their counts."""
    counts: dict[str, int] = {}
    for row in np.asarray(rows).tolist():
        source = index.source(row)
        counts[source] = counts.get(source, 0) + 1
    parts = [(index.stats(source, modality), float(count)) for source, count in sorted(counts.items())]
    return parts[0][0] if len(parts) == 1 else mixture(parts)


def jittered(values: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Contrast about the mean and brightness, each changed by up to a share; clipped to [0, 1]."""
    contrast, brightness = 1 + rng.uniform(-1, 1, 2) * share
    if share == 0 or np.isnan(values).all():
        return values
    center = np.nanmean(values, axis=(1, 2), keepdims=True)
    changed = ((values - center) * contrast + center) * brightness
    return np.clip(changed, 0, 1).astype(np.float32)


def speckled(values: np.ndarray, scaling: Scaling, looks: int, rng: np.random.Generator) -> np.ndarray:
    """Multiplies the intensity by gamma noise of mean 1 and variance 1 / looks.

    Decibels get it as a sum; values that are stored linearly or as bytes are taken as amplitudes.

    Args:
        values: (C, H, W) on [0, 1].
        scaling: How the values were made from stored ones.
        looks: L.
        rng: Source of the draws.
    """
    gain = rng.gamma(looks, 1.0 / looks, values.shape).astype(np.float32)
    if scaling.rule in ("db", "amplitude"):
        noisy = values + 10 * np.log10(np.maximum(gain, 1e-10)) / (scaling.high - scaling.low)
    else:
        noisy = values * np.sqrt(gain)
    return np.clip(noisy, 0, 1).astype(np.float32)


def shifted(values: np.ndarray, down: int, across: int) -> np.ndarray:
    """(C, H, W) moved by whole pixels; what comes in from outside repeats the border."""
    pad = max(abs(down), abs(across))
    if pad == 0:
        return values
    wide = np.pad(values, ((0, 0), (pad, pad), (pad, pad)), mode="edge")
    height, width = values.shape[1:]
    return wide[:, pad - down : pad - down + height, pad - across : pad - across + width]


def _placed(values: np.ndarray, at: Placement, side: int) -> np.ndarray:
    """A crop of a date: (C, side, side), NaN where it is padded."""
    picture: Picture = np.moveaxis(values, 0, -1)
    if (at.height, at.width) != size_of(picture):
        picture = cut(picture, (at.left, at.top, at.width, at.height))
    fill = np.nan_to_num(np.nanmean(values, axis=(1, 2))) if np.isnan(values).any() else None
    part = resize(picture, (at.tall, at.wide), fill)
    padded = np.pad(part, ((0, 0), (0, side - at.tall), (0, side - at.wide)), constant_values=np.nan)
    return _turned(padded, at)


def _placed_mask(mask: np.ndarray, at: Placement, side: int) -> np.ndarray:
    """A crop of the mask: (side, side), ``NO_LABEL`` where it is padded."""
    part = mask[at.top : at.top + at.height, at.left : at.left + at.width]
    if part.shape != (at.tall, at.wide):
        picture = Image.fromarray(np.ascontiguousarray(part))
        part = np.asarray(picture.resize((at.wide, at.tall), Image.Resampling.NEAREST))
    padded = np.pad(part, ((0, side - at.tall), (0, side - at.wide)), constant_values=NO_LABEL)
    return _turned(padded[None], at)[0]


def _turned(values: np.ndarray, at: Placement) -> np.ndarray:
    if at.horizontal_flip:
        values = values[:, :, ::-1]
    if at.vertical_flip:
        values = values[:, ::-1]
    return np.ascontiguousarray(np.rot90(values, at.turns, axes=(1, 2)))
