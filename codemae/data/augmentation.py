"""Labelled images as a classifier is trained and evaluated on them."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from codemae.checkpoint import InputSpec
from codemae.data.crops import Crop, draw_crop, take_crop
from codemae.data.images import SceneCache, as_read, read_window, size_of
from codemae.data.index import Index
from codemae.data.randomness import counter_rng
from codemae.data.views import View

Draw = tuple[int, int]
"""Epoch and place among the rows."""


class AugmentationError(ValueError):
    """An augmentation does not apply to these images."""


@dataclass(kw_only=True)
class AugmentationConfig:
    """What happens to images; the defaults leave them as they are.

    Attributes:
        center_crop: Side in pixels of the central square that is all a run sees of an image, in training and
            evaluation; null for the whole image.
        eval_crop: Share of the shorter side that is evaluated (a resize to 256 and a centre crop of 224 is
            0.875); null squeezes the whole image into the square.
        scale: Smallest and largest share of the area of a random resized crop in training; empty for none.
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom.
        rand_augment: timm's description of a RandAugment, such as rand-m9-mstd0.5-inc1; empty for none.
        erasing: Probability of erasing a rectangle with noise.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none. With both, each batch takes one of them by chance.
        smoothing: Share of a label that is spread over all classes.
    """

    center_crop: int | None = None
    eval_crop: float | None = None
    scale: list[float] = field(default_factory=list)
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    rand_augment: str = ""
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) not in (0, 2):
            raise ValueError(f"augmentation.scale is a smallest and a largest share, got {self.scale}")

    def mixing(self, num_classes: int, multi_label: bool) -> Mixup | None:
        """Timm's mixup and cutmix, which also smooth the labels; None where neither is asked for."""
        if self.mixup <= 0 and self.cutmix <= 0:
            return None
        return Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            label_smoothing=self.smoothing,
            num_classes=num_classes,
            multi_label=multi_label,
        )


class ClassificationImages(Dataset[tuple[dict[str, Tensor], int | Tensor]]):
    """Images of one or both modalities of labelled rows, standardised, with their labels.

    Items are asked for by epoch and place, and every draw is a function of seed, epoch and row: what a run
    sees depends neither on the number of workers nor on what was read before. Both modalities of a row get
    the same crop and flips.

    Args:
        index: The rows and their files.
        modalities: Which images.
        size: Side of the images handed out.
        rows: Index rows.
        labels: (n,) class numbers or (n, K) zeros and ones, one a row.
        config: Of the augmentation.
        train: Whether to augment; if not, the epoch is without effect.
        seed: Of all draws.
        inputs: The encoder's own statistics by modality, to standardise by them and not by the dataset's.
        cache_bytes: Memory for decoded scenes that serve many windows.
    """

    def __init__(
        self,
        index: Index,
        modalities: Sequence[str],
        size: int,
        rows: np.ndarray,
        labels: Tensor,
        config: AugmentationConfig,
        *,
        train: bool,
        seed: int = 0,
        inputs: Mapping[str, InputSpec] | None = None,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self.index = index
        self.modalities = tuple(modalities)
        self.size = size
        self.rows = rows
        self.labels = labels
        self.config = config
        self.train = train
        self.seed = seed
        self.inputs = inputs
        self.channels = {
            name: max(index.stats(source, name).channels for source in index.source_counts(name))
            for name in self.modalities
        }
        self._rand_augment = rand_augment_transform(config.rand_augment) if config.rand_augment else None
        self._erase = RandomErasing(config.erasing, mode="pixel", device="cpu") if config.erasing else None
        self._cache = SceneCache(cache_bytes)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> tuple[dict[str, Tensor], int | Tensor]:
        """Images (C, size, size) float32 by modality, and the label.

        Raises:
            ImageError: An image cannot be read.
            AugmentationError: RandAugment is asked of images that have no 8-bit gray or RGB form.
        """
        epoch, place = draw
        row = int(self.rows[place])
        images = {name: self._image(row, name, epoch) for name in self.modalities}
        label = self.labels[place]
        return images, label if label.ndim else int(label)

    def _image(self, row: int, modality: str, epoch: int) -> Tensor:
        statistics = self.index.stats(self.index.source(row), modality)
        location, window = self.index.location(row, modality), self.index.window(row)
        picture = as_read(read_window(location, window, self._cache), statistics)
        height, width = size_of(picture)
        crop = self._crop(height, width, row, epoch)
        as_bytes = statistics.pixels == "uint8"
        fill = np.array(statistics.mean, dtype=np.float32)
        pixels = take_crop(picture, crop, self.size, statistics.scaling, fill, as_bytes)
        if self.train and self._rand_augment is not None:
            pixels = self._augmented(pixels, modality, row, epoch)
        unit = torch.tensor(pixels.astype(np.float32)) / (255 if as_bytes else 1)
        channels = self.channels[modality]
        if self.inputs is None:
            wide = statistics.expanded(channels)
            center, spread = wide.mean, wide.std
        else:
            spec = self.inputs[modality]
            center, spread = tuple(spec.mean), tuple(spec.std)
            channels = spec.channels
        mean, std = (torch.tensor(values)[:, None, None] for values in (center, spread))
        image = (unit.expand(channels, -1, -1) - mean) / std
        image = image.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if self.train and self._erase is not None:
            with _seeded(self.seed, epoch, row, f"erase:{modality}"):
                image = self._erase(image)
        return image

    def _crop(self, height: int, width: int, row: int, epoch: int) -> Crop:
        config = self.config
        area = _central(height, width, config.center_crop, config.center_crop)
        if not self.train:
            if config.eval_crop is None:
                return area
            side = round(config.eval_crop * min(area.height, area.width))
            inner = _central(area.height, area.width, side, side)
            return Crop(area.top + inner.top, area.left + inner.left, inner.height, inner.width)
        view = View(
            modality=self.modalities[0],
            size=self.size,
            scale=(config.scale[0], config.scale[1]) if config.scale else (1.0, 1.0),
            horizontal_flip=config.horizontal_flip,
            vertical_flip=config.vertical_flip,
        )
        drawn = draw_crop(view, area.height, area.width, counter_rng(self.seed, epoch, 0, row, "crop"))
        if not config.scale:
            flips = drawn.horizontal_flip, drawn.vertical_flip
            return Crop(area.top, area.left, area.height, area.width, *flips)
        moved = area.top + drawn.top, area.left + drawn.left, drawn.height, drawn.width
        return Crop(*moved, drawn.horizontal_flip, drawn.vertical_flip)

    def _augmented(self, pixels: np.ndarray, modality: str, row: int, epoch: int) -> np.ndarray:
        """RandAugment of (C, H, W) bytes."""
        assert self._rand_augment is not None
        if pixels.dtype != np.uint8 or len(pixels) not in (1, 3):
            raise AugmentationError(
                f"RandAugment works on 8-bit images of 1 or 3 channels, {modality} images of "
                f"{self.index.source(row)!r} are {pixels.dtype} with {len(pixels)}; "
                "set --augmentation.rand_augment ''"
            )
        mode = "L" if len(pixels) == 1 else "RGB"
        plain = pixels[0] if mode == "L" else np.moveaxis(pixels, 0, -1)
        image = Image.fromarray(np.ascontiguousarray(plain)).convert("RGB")
        with _seeded(self.seed, epoch, row, f"rand_augment:{modality}"):
            augmented = np.asarray(self._rand_augment(image).convert(mode))
        return augmented[None] if mode == "L" else np.moveaxis(augmented, -1, 0)


class ShuffledBatches(Sampler[list[Draw]]):
    """Batches of every epoch one after the other, each epoch in an order of its own.

    Samples that fill no batch wait for another epoch. Every process gets its own equal part of each batch.

    Args:
        count: Number of samples.
        batch_size: Of a batch of all processes; larger than ``count``, all samples make one.
        epochs: How many.
        seed: Of the orders.
        rank: This process.
        world_size: Number of processes.
        start: Batches already done, of all epochs.

    Raises:
        ValueError: A batch has no equal parts for so many processes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        epochs: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.count = count
        self.batch_size = min(batch_size, count)
        self.batches = count // self.batch_size
        self.epochs = epochs
        self.seed = seed
        self.start = start
        self.share, rest = divmod(self.batch_size, world_size)
        self.first = rank * self.share
        if rest:
            raise ValueError(
                f"a batch of {self.batch_size} images has no equal parts for {world_size} processes; "
                f"try --optim.batch_size {max(self.share, 1) * world_size}"
            )

    def __len__(self) -> int:
        return self.batches * self.epochs - self.start

    def __iter__(self) -> Iterator[list[Draw]]:
        done_epochs, done = divmod(self.start, self.batches)
        for epoch in range(done_epochs, self.epochs):
            order = counter_rng(self.seed, epoch, 0, -1, "order").permutation(self.count).tolist()
            for batch in range(done, self.batches):
                begin = batch * self.batch_size + self.first
                yield [(epoch, place) for place in order[begin : begin + self.share]]
            done = 0


def _central(height: int, width: int, wanted_height: int | None, wanted_width: int | None) -> Crop:
    h, w = min(height, wanted_height or height), min(width, wanted_width or width)
    return Crop((height - h) // 2, (width - w) // 2, h, w)


@contextmanager
def _seeded(seed: int, epoch: int, row: int, stream: str) -> Iterator[None]:
    """Seeds the global generators, which timm draws from, and leaves them as they were."""
    words = counter_rng(seed, epoch, 0, row, stream).integers(0, 2**32, 3, dtype=np.uint64)
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(int(words[0]))
        np.random.seed(int(words[1]))
        torch.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
