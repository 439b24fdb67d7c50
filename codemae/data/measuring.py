"""Measures scaling, mean and standard deviation of a source while its images stream by."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from PIL import Image

from codemae.data.images import ImageError, Picture, channels_of, select_channels, size_of, with_channels
from codemae.data.statistics import Scaling, SourceStatistics, StatisticsError, decibels

_BINS = {"uint8": 1 << 8, "uint16": 1 << 16, "float32": 1 << 16}
_CLIPPED = (0.5, 99.5)
_KEPT = (1, 2, 50, 98, 99)
_SIGN = np.uint32(1 << 31)

Histograms: TypeAlias = dict[tuple[str, int], np.ndarray]
"""Pixel type and number of channels to (channels, bins) int64 counts."""


def float_bins(values: np.ndarray) -> np.ndarray:
    """Bin of each float32 value: sign, exponent and 7 bits of mantissa, numbered in the order of the values.

    A bin is at most 1/128 of its value wide, whatever the range of the data, so histograms of images that
    were counted apart, in any order, can be added.
    """
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return (np.where(bits & _SIGN, ~bits, bits | _SIGN) >> 16).astype(np.int64)


def float_edges() -> np.ndarray:
    """Smallest value of each of the bins of ``float_bins``; NaN or infinite where no finite value falls."""
    keys = np.arange(_BINS["float32"], dtype=np.uint32) << 16
    edges = np.where(keys & _SIGN, keys & ~_SIGN, ~keys).astype(np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        return edges.astype(np.float64)


@dataclass
class Survey:
    """First pass over the images of one modality of one source, in memory that does not grow with them.

    Integer images are counted in one histogram bin per value, so their mean and deviation come out exact and
    need no second pass. Float images are counted in the bins of ``float_bins``, from which the clip range and
    the percentiles are taken.

    Attributes:
        modality: ``optical`` or ``sar``.
        select: Stored channel numbers that are read, in order; empty where all are.
        bands: Names of the channels that are read.
        reason: Why ``auto`` took the scaling it took.
    """

    modality: str
    select: tuple[int, ...] = ()
    bands: tuple[str, ...] = ()
    images: int = 0
    pixel_count: int = 0
    nonfinite: int = 0
    negatives: int = 0
    lowest: float = np.inf
    highest: float = -np.inf
    natives: set[str] = field(default_factory=set)
    histograms: Histograms = field(default_factory=dict)
    grey: bool = True
    reason: str = ""

    def add(self, picture: Picture, native: str | None = None) -> None:
        """Counts one image in.

        Args:
            picture: The image as stored.
            native: Type of the stored pixels where nodata has made the picture float32.

        Raises:
            StatisticsError: The image lacks a selected channel.
        """
        try:
            picture = select_channels(picture, self.select)
        except ImageError as error:
            raise StatisticsError(f"{self.modality}: {error}; correct the bands asked for") from None
        channels = channels_of(picture)
        height, width = size_of(picture)
        self.images += 1
        self.pixel_count += height * width
        pixels = np.asarray(picture)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        kind = native if native in ("uint8", "uint16") else str(pixels.dtype)
        self.natives.add(kind)
        if channels == 3 and self.grey:
            self.grey = bool((pixels[..., :1] == pixels[..., 1:]).all())
        self._count(picture, pixels, kind)

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
                if not finite.size:
                    continue
                self.negatives += int((finite < 0).sum())
                self.lowest = min(self.lowest, float(finite.min()))
                self.highest = max(self.highest, float(finite.max()))
                values = float_bins(finite) if kind == "float32" else finite.astype(np.int64)
            total[channel] += np.bincount(values, minlength=bins)

    def merge(self, other: "Survey") -> None:
        """Counts another survey's images in."""
        self.images += other.images
        self.pixel_count += other.pixel_count
        self.nonfinite += other.nonfinite
        self.natives |= other.natives
        self.grey &= other.grey
        self.negatives += other.negatives
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)
        for kind, counts in other.histograms.items():
            self.histograms[kind] = self.histograms.get(kind, 0) + counts

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
        counts = {channels for _, channels in self.histograms}
        if self.select:
            return len(self.select)
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

        ``auto`` is ``uint8`` for bytes and ``linear`` for other optical images. Other SAR images are told
        apart by the sign of their pixels: where at least half are negative they are decibels already and
        ``linear``; where none is they are an intensity or an amplitude and ``db``. Which of those two makes
        no difference as long as the range is measured: 20 log10 is twice 10 log10, so both reach the same
        [0, 1] values. Anything between, and floats that end exactly at 1, which somebody has rescaled, are
        not guessed but refused. ``reason`` says what was taken and why.

        Args:
            rule: ``auto``, ``uint8``, ``linear`` (also for decibels), ``db`` (10 log10 of intensities) or
                ``amplitude`` (20 log10). The last three take their range from the 0.5th and 99.5th percentile
                unless ``:LOW:HIGH`` follows, in stored values for ``linear``, in decibels for the others.

        Raises:
            StatisticsError: The images are all of one value, the rule does not suit them, or ``auto`` cannot
                tell what they are.
        """
        self.reason = ""
        if ":" in rule:
            return Scaling.parse(rule)
        if rule == "auto":
            rule, self.reason = self._automatic()
        if rule == "uint8":
            if self.native != "uint8":
                raise StatisticsError(
                    f"scaling uint8 does not suit {self.native} images; use linear, db or amplitude"
                )
            return Scaling()
        logarithmic = rule in ("db", "amplitude")
        if not logarithmic and rule != "linear":
            return Scaling.parse(rule)
        counts = self._counts().sum(axis=0)
        if logarithmic:
            counts[: int(float_bins(np.zeros(1))[0]) + 1 if self.native == "float32" else 1] = 0
        if not counts.any():
            raise StatisticsError(f"no {self.modality} pixel has a value that scaling {rule} can use")
        bounds = np.array(self._percentiles(counts, _CLIPPED))
        low, high = decibels(bounds, rule) if logarithmic else bounds
        if not low < high:
            raise StatisticsError(
                f"the {self.modality} images are of the single value {low:g}; nothing to learn"
            )
        return Scaling(rule, float(low), float(high))

    def _automatic(self) -> tuple[str, str]:
        """Rule and reason."""
        if self.native == "uint8":
            return "uint8", ""
        if self.modality != "sar":
            return "linear", ""
        number = self._counts().sum()
        share = self.negatives / max(int(number), 1)
        option = f"--{self.modality}-scaling"
        choices = (
            f"say what they are: {option} linear (decibels, or values scaled before), {option} db "
            f"(intensity) or {option} amplitude"
        )
        if share >= 0.5:
            return "linear", f"auto: {share:.0%} of the pixels are negative, so they are decibels already"
        if share > 0:
            raise StatisticsError(
                f"{share:.2%} of the {self.modality} pixels are negative, too many for an intensity or an "
                f"amplitude, too few for decibels; {choices}"
            )
        if self.native == "float32" and self.highest == 1:
            raise StatisticsError(
                f"the {self.modality} pixels are floats that end exactly at 1, so they were scaled by a rule "
                f"that the files do not tell; {choices}"
            )
        return "db", (
            "auto: no pixel is negative, so they are intensities or amplitudes, taken as intensities; with a "
            "measured range amplitudes reach the same [0, 1] values"
        )

    def _counts(self) -> np.ndarray:
        """(channels, bins) counts of all images, with the channels they are read with."""
        channels = self.channels
        total = np.zeros((channels, _BINS[self.native]), dtype=np.int64)
        for (_, have), counts in self.histograms.items():
            total += counts[:channels] if have >= channels else np.repeat(counts, channels, axis=0)
        return total

    def _percentiles(self, counts: np.ndarray, shares: Sequence[float]) -> list[float]:
        """Stored values that the given percentages of the counted pixels do not exceed."""
        reached = np.cumsum(counts)
        wanted = [reached[-1] * share / 100 for share in shares]
        places = [int(np.searchsorted(reached, value)) for value in wanted]
        if self.native != "float32":
            return [float(place) for place in places]
        edges = float_edges()
        found = []
        for place, value in zip(places, wanted, strict=True):
            below = reached[place] - counts[place]
            part = (value - below) / counts[place]
            low, high = np.clip(edges[place : place + 2], self.lowest, self.highest)
            found.append(float(low + part * (high - low)))
        return found

    def percentiles(self, scaling: Scaling) -> dict[str, tuple[float, ...]]:
        """Percentage to the [0, 1] value of each channel that so many of its pixels do not exceed."""
        by_channel = [
            scaling.apply(np.array(self._percentiles(counts, _KEPT)))
            if counts.any()
            else np.zeros(len(_KEPT))
            for counts in self._counts()
        ]
        return {
            str(share): tuple(float(values[place]) for values in by_channel)
            for place, share in enumerate(_KEPT)
        }

    def moments(self, scaling: Scaling) -> "Moments":
        """What the second pass over float images begins with."""
        return Moments(
            scaling=scaling,
            channels=self.channels,
            select=self.select,
            bands=self.bands,
            percentiles=self.percentiles(scaling),
            reason=self.reason,
        )

    def statistics(self, scaling: Scaling) -> SourceStatistics:
        """Exact statistics of integer images.

        Raises:
            StatisticsError: The images are float (use ``moments``), constant, or do not agree.
        """
        if self.native == "float32":
            raise StatisticsError("float images need a second pass")
        total = self._counts()
        values = scaling.apply(np.arange(_BINS[self.native])).astype(np.float64)
        number = total.sum(axis=1)
        mean = total @ values / number
        variance = np.array(
            [counts @ (values - m) ** 2 / n for counts, m, n in zip(total, mean, number, strict=True)]
        )
        return SourceStatistics(
            channels=len(mean),
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(variance).tolist()),
            scaling=scaling,
            pixels="uint8" if scaling.rule == "uint8" and not self.nonfinite else "float32",
            images=self.images,
            pixel_count=self.pixel_count,
            bands=self.bands,
            select=self.select,
            percentiles=self.percentiles(scaling),
            reason=self.reason,
        )


@dataclass
class Moments:
    """Second pass over float images: mean and deviation of the scaled values.

    Attributes:
        scaling: The rule found by the first pass.
        channels: Channels found by the first pass.
        select: Stored channel numbers that are read, in order; empty where all are.
        bands: Names of the channels that are read.
        percentiles: Found by the first pass.
        reason: Why the first pass chose the rule.
    """

    scaling: Scaling
    channels: int
    select: tuple[int, ...] = ()
    bands: tuple[str, ...] = ()
    percentiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    reason: str = ""
    images: int = 0
    pixel_count: int = 0
    number: np.ndarray = field(default_factory=lambda: np.zeros(1))
    total: np.ndarray = field(default_factory=lambda: np.zeros(1))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, picture: Picture) -> None:
        """Counts one image in."""
        pixels = np.asarray(with_channels(select_channels(picture, self.select), self.channels))
        values = self.scaling.apply(pixels.reshape(-1, self.channels)).astype(np.float64)
        self.images += 1
        self.pixel_count += len(values)
        self.number = self.number + np.isfinite(values).sum(axis=0)
        self.total = self.total + np.nansum(values, axis=0)
        self.squares = self.squares + np.nansum(values**2, axis=0)

    def fresh(self) -> "Moments":
        """The same rule, nothing counted."""
        return Moments(scaling=self.scaling, channels=self.channels, select=self.select)

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
            bands=self.bands,
            select=self.select,
            percentiles=self.percentiles,
            reason=self.reason,
        )
