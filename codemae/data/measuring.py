"""Measures scaling, mean and standard deviation of a source while its images stream by."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from PIL import Image

from codemae.data.images import Picture, channels_of, size_of, with_channels
from codemae.data.statistics import Scaling, SourceStatistics, StatisticsError, decibels

_BINS = {"uint8": 1 << 8, "uint16": 1 << 16}
_PERCENTILES = (0.5, 99.5)
_SAMPLES_PER_IMAGE = 4096

Histograms: TypeAlias = dict[tuple[str, int], np.ndarray]
"""Pixel type and number of channels to (channels, bins) int64 counts."""


@dataclass
class Survey:
    """First pass over the images of one modality of one source.

    Integer images are counted in one histogram bin per value, so their mean and deviation come out exact and
    need no second pass. Float images only give a sample of values from which the clip range is taken.

    Attributes:
        modality: ``optical`` or ``sar``.
    """

    modality: str
    images: int = 0
    pixel_count: int = 0
    nonfinite: int = 0
    natives: set[str] = field(default_factory=set)
    histograms: Histograms = field(default_factory=dict)
    samples: dict[int, list[np.ndarray]] = field(default_factory=dict)
    grey: bool = True
    negative: bool = False

    def add(self, picture: Picture, native: str | None = None) -> None:
        """Counts one image in.

        Args:
            picture: The image as stored.
            native: Type of the stored pixels where nodata has made the picture float32.
        """
        channels = channels_of(picture)
        height, width = size_of(picture)
        self.images += 1
        self.pixel_count += height * width
        pixels = np.asarray(picture)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        kind = native if native in _BINS else str(pixels.dtype)
        self.natives.add(kind)
        if channels == 3 and self.grey:
            self.grey = bool((pixels[..., :1] == pixels[..., 1:]).all())
        if kind in _BINS:
            self._count(picture, pixels, kind)
        else:
            self._sample(pixels)

    def _count(self, picture: Picture, pixels: np.ndarray, kind: str) -> None:
        bins, channels = _BINS[kind], pixels.shape[-1]
        total = self.histograms.setdefault((kind, channels), np.zeros((channels, bins), dtype=np.int64))
        if isinstance(picture, Image.Image):
            total += np.array(picture.histogram(), dtype=np.int64).reshape(channels, bins)
            return
        for channel in range(channels):
            values = pixels[..., channel].ravel()
            if values.dtype.kind == "f":
                finite = values[np.isfinite(values)]
                self.nonfinite += values.size - finite.size
                values = finite.astype(np.int64)
            total[channel] += np.bincount(values, minlength=bins)

    def _sample(self, pixels: np.ndarray) -> None:
        flat = pixels.reshape(-1, pixels.shape[-1])
        finite = np.isfinite(flat)
        self.nonfinite += int(flat.size - finite.sum())
        self.negative |= bool((flat[finite] < 0).any())
        step = max(1, len(flat) // _SAMPLES_PER_IMAGE)
        self.samples.setdefault(flat.shape[-1], []).append(flat[step // 2 :: step].astype(np.float32))

    def merge(self, other: "Survey") -> None:
        """Counts another survey's images in."""
        self.images += other.images
        self.pixel_count += other.pixel_count
        self.nonfinite += other.nonfinite
        self.natives |= other.natives
        self.grey &= other.grey
        self.negative |= other.negative
        for kind, counts in other.histograms.items():
            self.histograms[kind] = self.histograms.get(kind, 0) + counts
        for channels, samples in other.samples.items():
            self.samples.setdefault(channels, []).extend(samples)

    @property
    def native(self) -> str:
        """Type of the stored pixels.

        Raises:
            StatisticsError: The images do not agree.
        """
        if len(self.natives) != 1:
            kinds = ", ".join(sorted(self.natives))
            raise StatisticsError(
                f"the {self.modality} images mix {kinds} pixels; convert them to one type or prepare them as "
                "separate sources"
            )
        return next(iter(self.natives))

    @property
    def channels(self) -> int:
        """Channels to read the images with: SAR stored three times over is one channel.

        Raises:
            StatisticsError: The images do not agree.
        """
        counts = {channels for _, channels in self.histograms} | set(self.samples)
        if self.modality == "sar" and counts <= {1, 3} and self.grey:
            return 1
        if counts <= {1, 3}:
            return max(counts)
        if len(counts) != 1:
            kinds = ", ".join(map(str, sorted(counts)))
            raise StatisticsError(
                f"the {self.modality} images have {kinds} channels; prepare them as separate sources"
            )
        return next(iter(counts))

    def scaling(self, rule: str = "auto") -> Scaling:
        """The scaling that a rule gives for these images.

        Args:
            rule: ``auto`` is ``uint8`` for bytes, ``db`` for SAR without negative values, else ``linear``.
                ``db`` and ``linear`` take their range from the 0.5th and 99.5th percentile;
                ``linear:LOW:HIGH`` and ``db:LOW:HIGH`` say it.

        Raises:
            StatisticsError: The images are all of one value, or the rule does not suit them.
        """
        if ":" in rule:
            return Scaling.parse(rule)
        if rule == "auto":
            radar = self.modality == "sar" and not self.negative
            rule = "uint8" if self.native == "uint8" else "db" if radar else "linear"
        if rule == "uint8":
            if self.native != "uint8":
                raise StatisticsError(f"scaling uint8 does not suit {self.native} images; use linear or db")
            return Scaling()
        values, weights = self._values()
        if rule == "db":
            values, weights = values[values > 0], weights[values > 0]
            values = decibels(values.astype(np.float64))
        if not len(values):
            raise StatisticsError(f"no {self.modality} pixel has a value that scaling {rule} can use")
        low, high = weighted_percentiles(values, weights, _PERCENTILES)
        if not low < high:
            raise StatisticsError(
                f"the {self.modality} images are of the single value {low:g}; nothing to learn"
            )
        return Scaling(rule, float(low), float(high))

    def _values(self) -> tuple[np.ndarray, np.ndarray]:
        if self.native in _BINS:
            counts = np.sum([counts.sum(axis=0) for counts in self.histograms.values()], axis=0)
            present = np.flatnonzero(counts)
            return present.astype(np.float64), counts[present]
        values = np.concatenate([sample.ravel() for samples in self.samples.values() for sample in samples])
        values = values[np.isfinite(values)].astype(np.float64)
        return values, np.ones(len(values))

    def statistics(self, scaling: Scaling) -> SourceStatistics:
        """Exact statistics of integer images.

        Raises:
            StatisticsError: The images are float (use ``Moments``), constant, or do not agree.
        """
        if self.native not in _BINS:
            raise StatisticsError("float images need a second pass")
        channels = self.channels
        total = np.zeros((channels, _BINS[self.native]), dtype=np.int64)
        for (_, have), counts in self.histograms.items():
            total += counts[:channels] if have >= channels else np.repeat(counts, channels, axis=0)
        values = scaling.apply(np.arange(_BINS[self.native])).astype(np.float64)
        number = total.sum(axis=1)
        mean = total @ values / number
        variance = np.array(
            [counts @ (values - m) ** 2 / n for counts, m, n in zip(total, mean, number, strict=True)]
        )
        return SourceStatistics(
            channels=channels,
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(variance).tolist()),
            scaling=scaling,
            pixels="uint8" if scaling.rule == "uint8" and not self.nonfinite else "float32",
            images=self.images,
            pixel_count=self.pixel_count,
        )


@dataclass
class Moments:
    """Second pass over float images: mean and deviation of the scaled values.

    Attributes:
        scaling: The rule found by the first pass.
        channels: Channels found by the first pass.
    """

    scaling: Scaling
    channels: int
    images: int = 0
    pixel_count: int = 0
    number: np.ndarray = field(default_factory=lambda: np.zeros(1))
    total: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, picture: Picture) -> None:
        """Counts one image in."""
        pixels = np.asarray(with_channels(picture, self.channels))
        values = self.scaling.apply(pixels.reshape(-1, self.channels)).astype(np.float64)
        self.images += 1
        self.pixel_count += len(values)
        self.number = self.number + np.isfinite(values).sum(axis=0)
        self.total = self.total + np.nansum(values, axis=0)
        self.squares = self.squares + np.nansum(values**2, axis=0)

    def merge(self, other: "Moments") -> None:
        """Counts another one's images in."""
        self.images += other.images
        self.pixel_count += other.pixel_count
        self.number = self.number + other.number
        self.total = self.total + other.total
        self.squares = self.squares + other.squares

    def statistics(self) -> SourceStatistics:
        """Statistics of what was counted.

        Raises:
            StatisticsError: The images are constant.
        """
        mean = self.total / self.number
        return SourceStatistics(
            channels=self.channels,
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(np.maximum(self.squares / self.number - mean**2, 0)).tolist()),
            scaling=self.scaling,
            pixels="float32",
            images=self.images,
            pixel_count=self.pixel_count,
        )


def weighted_percentiles(
    values: np.ndarray, weights: np.ndarray, percentiles: Iterable[float]
) -> list[float]:
    """Smallest values that at least the given percentages of the weight do not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    places = [np.searchsorted(reached, reached[-1] * share / 100) for share in percentiles]
    return [float(values[order[min(int(place), len(values) - 1)]]) for place in places]
