"""Paired and unpaired pretraining samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from codemae.data.batch import Batch
from codemae.data.crops import Crop, draw_crop, take_crop
from codemae.data.draws import Draw
from codemae.data.images import ImageError, Picture, SceneCache, as_read, read_window, size_of
from codemae.data.index import Index, IndexFileError
from codemae.data.randomness import counter_rng
from codemae.data.views import View, Views

__all__ = ["Batch", "Draw", "PairDataset", "Sample", "collate"]

_REPLACEMENTS = 20


@dataclass(kw_only=True)
class Sample:
    """What one draw became; the fields are those of ``Batch``, without the batch dimension."""

    images: dict[str, np.ndarray]
    sources: dict[str, str]
    rows: dict[str, int]
    crops: dict[str, tuple[float, ...]]
    sizes: dict[str, tuple[int, int]]
    mask_noise: np.ndarray
    draw: Draw
    bad: list[str]


class PairDataset(Dataset[Sample]):
    """Crops of an index's images, each a function of (seed, draw) alone.

    Args:
        index: The rows and their files.
        views: What to crop.
        seed: The run's seed.
        cache_bytes: Memory of each worker for decoded scenes that serve many windows.

    Raises:
        IndexFileError: Sources of one modality have channel counts that do not go together.
    """

    def __init__(self, index: Index, views: Views, seed: int, cache_bytes: int = 256 << 20) -> None:
        self.index = index
        self.views = views
        self.seed = seed
        self._cache = SceneCache(cache_bytes)
        self._last: dict[str, tuple[int, Picture]] = {}
        self.channels: dict[str, int] = {}
        self._as_bytes: dict[str, bool] = {}
        for modality in views.modalities:
            every = {source: index.stats(source, modality) for source in index.source_counts(modality)}
            counts = {statistics.channels for statistics in every.values()}
            if len(counts - {1}) > 1:
                listed = ", ".join(f"{source} {statistics.channels}" for source, statistics in every.items())
                raise IndexFileError(
                    f"{modality} sources of different channel counts cannot share a batch: {listed}"
                )
            self.channels[modality] = max(counts, default=0)
            self._as_bytes[modality] = all(statistics.pixels == "uint8" for statistics in every.values())

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw) -> Sample:
        """One sample; an image that cannot be read is replaced by another of its kind.

        Raises:
            RuntimeError: Nothing readable was found in its place either.
        """
        bad: list[str] = []
        rows = {modality: draw.row(modality) for modality in self.views.modalities}
        pictures = self._pictures(draw, rows, bad)
        images: dict[str, np.ndarray] = {}
        crops: dict[str, tuple[float, ...]] = {}
        sizes: dict[str, tuple[int, int]] = {}
        sources = {modality: self.index.source(row) for modality, row in rows.items()}
        for name, view in self.views.items():
            modality = view.modality
            picture = pictures[modality]
            statistics = self.index.stats(sources[modality], modality)
            sizes[name] = size_of(picture)
            crop = self._crop(draw, view, rows[modality], *sizes[name])
            image = take_crop(
                picture,
                crop,
                view.size,
                statistics.scaling,
                np.array(statistics.mean, dtype=np.float32),
                self._as_bytes[modality],
            )
            images[name] = _repeated(image, self.channels[modality])
            crops[name] = crop.row()
        anchor = rows["optical"] if "optical" in rows else rows["sar"]
        noise = counter_rng(self.seed, draw.epoch, draw.repeat, anchor, "mask")
        return Sample(
            images=images,
            sources=sources,
            rows=rows,
            crops=crops,
            sizes=sizes,
            mask_noise=noise.random(self.views.num_patches, dtype=np.float32),
            draw=draw,
            bad=bad,
        )

    def __getitems__(self, draws: Sequence[Draw]) -> list[Sample]:
        """The samples of a batch, as the loader's fetcher asks for them."""
        return [self[draw] for draw in draws]

    def _crop(self, draw: Draw, view: View, row: int, height: int, width: int) -> Crop:
        stream = f"crop:{view.crop_group}" + ("" if draw.paired else f":{view.modality}")
        return draw_crop(view, height, width, counter_rng(self.seed, draw.epoch, draw.repeat, row, stream))

    def _pictures(self, draw: Draw, rows: dict[str, int], bad: list[str]) -> dict[str, Picture]:
        """Reads every side; ``rows`` becomes what was read."""
        for modality, row in rows.items():
            if row < 0:
                raise IndexFileError(
                    f"the views want {modality} images but the sampler draws none; check its modalities"
                )
        if not draw.paired:
            return {modality: self._replaced(draw, {modality: rows}, bad)[modality] for modality in rows}
        return self._replaced(draw, dict.fromkeys(rows, rows), bad)

    def _replaced(self, draw: Draw, sides: dict[str, dict[str, int]], bad: list[str]) -> dict[str, Picture]:
        """Reads sides that stand or fall together, looking for other rows until all can be read."""
        first = next(iter(sides))
        rng = counter_rng(self.seed, draw.epoch, draw.repeat, draw.row(first), f"replacement:{first}")
        others = self._kind(draw, first)
        tried: set[int] = set()
        for _ in range(_REPLACEMENTS):
            row = sides[first][first]
            if row not in tried:
                tried.add(row)
                pictures = self._readable(sides, bad)
                if pictures:
                    return pictures
            other = int(others[rng.integers(len(others))])
            for modality, rows in sides.items():
                rows[modality] = other
        raise RuntimeError(
            f"{len(tried)} images could not be read, one standing in for the other; has the data moved? "
            f"The last: {bad[-1]}"
        )

    def _readable(self, sides: dict[str, dict[str, int]], bad: list[str]) -> dict[str, Picture] | None:
        """All sides decoded, or None and a sentence about the one that could not be."""
        pictures = {}
        for modality, rows in sides.items():
            try:
                pictures[modality] = self._read(rows[modality], modality)
            except ImageError as error:
                bad.append(f"{self.index.describe(rows[modality], modality)}: {error}")
                return None
        return pictures

    def _kind(self, draw: Draw, modality: str) -> np.ndarray:
        if draw.paired:
            return self.index.paired_rows
        alone = self.index.optical_only_rows if modality == "optical" else self.index.sar_only_rows
        return alone if len(alone) else self.index.rows_with(modality)

    def _read(self, row: int, modality: str) -> Picture:
        known = self._last.get(modality)
        if known and known[0] == row:
            return known[1]
        statistics = self.index.stats(self.index.source(row), modality)
        picture = read_window(self.index.location(row, modality), self.index.window(row), self._cache)
        picture = as_read(picture, statistics)
        if self._as_bytes[modality] and isinstance(picture, np.ndarray) and picture.dtype != np.uint8:
            raise ImageError(f"{picture.dtype} pixels stand where stats.yaml says uint8")
        self._last[modality] = row, picture
        return picture

    def statistics(self, source: str, modality: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of a source, repeated to the channels of the batches."""
        wide = self.index.stats(source, modality).expanded(self.channels[modality])
        return wide.mean, wide.std

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples to a batch."""
        return collate(self, samples)


def _repeated(image: np.ndarray, channels: int) -> np.ndarray:
    return image if image.shape[0] == channels else np.repeat(image, channels, axis=0)


def collate(dataset: PairDataset, samples: Sequence[Sample]) -> Batch:
    """Stacks samples into one batch.

    Raises:
        ValueError: Paired and unpaired samples, or samples of two epochs, are mixed.
    """
    kinds = {(sample.draw.paired, sample.draw.epoch) for sample in samples}
    if len(kinds) != 1:
        raise ValueError(f"a batch is wholly paired or wholly unpaired and of one epoch, got {sorted(kinds)}")
    paired, epoch = kinds.pop()
    images, crops, sizes = {}, {}, {}
    nonfinite = 0
    for name in dataset.views:
        first = samples[0].images[name]
        stacked = np.empty((len(samples), *first.shape), dtype=first.dtype)
        for place, sample in enumerate(samples):
            stacked[place] = sample.images[name]
        if stacked.dtype != np.uint8:
            nonfinite += int(stacked.size - np.isfinite(stacked).sum())
        images[name] = torch.from_numpy(stacked)
        crops[name] = torch.tensor([sample.crops[name] for sample in samples], dtype=torch.float32)
        sizes[name] = torch.tensor([sample.sizes[name] for sample in samples], dtype=torch.float32)
    mean, std, rows = {}, {}, {}
    for modality in dataset.views.modalities:
        known = [dataset.statistics(sample.sources[modality], modality) for sample in samples]
        mean[modality] = torch.tensor([values for values, _ in known], dtype=torch.float32)
        std[modality] = torch.tensor([values for _, values in known], dtype=torch.float32)
        rows[modality] = torch.tensor([sample.rows[modality] for sample in samples], dtype=torch.int64)
    return Batch(
        images=images,
        mean=mean,
        std=std,
        paired=paired,
        rows=rows,
        epoch=epoch,
        mask_noise=torch.from_numpy(np.stack([sample.mask_noise for sample in samples])),
        crops=crops,
        source_sizes=sizes,
        bad=[sentence for sample in samples for sentence in sample.bad],
        nonfinite=nonfinite,
        modalities=Batch.modalities_of(dataset.views),
    )
