"""Scaling, mean and standard deviation of each source, and the file that holds them."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FILE_NAME = "stats.yaml"
_RULES = ("uint8", "linear", "db", "amplitude")
_DARKEST = 1e-10
_OPTIONAL = ("bands", "select", "percentiles", "reason")


class StatisticsError(ValueError):
    """The statistics of an index are missing, damaged or contradict each other."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """The rule that maps stored pixel values onto [0, 1].

    Attributes:
        rule: ``uint8`` (value / 255), ``linear`` ((value - low) / (high - low)), ``db`` (10 log10 of an
            intensity, then linear) or ``amplitude`` (20 log10, then linear). All but the first clip to
            [0, 1].
        low: Stored value (``linear``) or decibels (``db``, ``amplitude``) that become 0.
        high: What becomes 1.
    """

    rule: str = "uint8"
    low: float = 0.0
    high: float = 255.0

    def __post_init__(self) -> None:
        if self.rule not in _RULES:
            raise StatisticsError(f"unknown scaling {self.rule!r}; known: {', '.join(_RULES)}")
        if not self.low < self.high:
            raise StatisticsError(f"scaling {self.rule} needs low < high, got {self.low} and {self.high}")

    def __str__(self) -> str:
        return self.rule if self.rule == "uint8" else f"{self.rule}:{self.low:.9g}:{self.high:.9g}"

    @classmethod
    def parse(cls, text: str) -> "Scaling":
        """Reads what ``str`` wrote: ``uint8``, or ``linear``, ``db`` or ``amplitude`` with ``:LOW:HIGH``."""
        rule, *bounds = str(text).split(":")
        if rule == "uint8" and not bounds:
            return cls()
        try:
            low, high = (float(bound) for bound in bounds)
        except ValueError:
            raise StatisticsError(
                f"scaling {text!r} is none of uint8, linear:LOW:HIGH, db:LOW:HIGH (intensity), "
                f"amplitude:LOW:HIGH; correct it, on the command line or in {FILE_NAME}"
            ) from None
        return cls(rule, low, high)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Stored values to float32 in [0, 1]; NaN stays NaN, infinities become NaN."""
        scaled = values.astype(np.float32)
        if self.rule == "uint8":
            return scaled / np.float32(255)
        scaled[~np.isfinite(scaled)] = np.nan
        if self.rule != "linear":
            scaled = decibels(scaled, self.rule)
        return np.clip((scaled - np.float32(self.low)) / np.float32(self.high - self.low), 0, 1)


def decibels(values: np.ndarray, rule: str = "db") -> np.ndarray:
    """10 log10 of intensities, 20 log10 of amplitudes; the darkest value told apart is 1e-10.

    Args:
        values: Stored values; zero and less count as the darkest.
        rule: ``db`` for intensities, ``amplitude``.
    """
    factor = 20 if rule == "amplitude" else 10
    return factor * np.log10(np.maximum(values, np.asarray(_DARKEST, values.dtype)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStatistics:
    """What one modality of one source looks like.

    Attributes:
        channels: Channels its images are read with.
        mean: Mean of each channel on [0, 1] values.
        std: Standard deviation of each channel on [0, 1] values.
        scaling: The rule that makes [0, 1] values of stored ones.
        pixels: ``uint8`` where images stay bytes until the device, ``float32`` where they do not.
        computed: How the numbers came about: ``measured`` or ``published``.
        images: How many images were measured.
        pixel_count: How many pixels were.
        bands: Names of the channels that are read, where they have any.
        select: Stored channel numbers that are read, in order; empty where all are.
        percentiles: Percentage (``1``, ``2``, ``50``, ``98``, ``99``) to the [0, 1] value of each channel.
        reason: Why the scaling is what it is, where a rule chose it among several readings.
    """

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scaling: Scaling = Scaling()
    pixels: str = "uint8"
    computed: str = "measured"
    images: int = 0
    pixel_count: int = 0
    bands: tuple[str, ...] = ()
    select: tuple[int, ...] = ()
    percentiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    reason: str = ""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise StatisticsError(
                f"{self.channels} channels need as many means and deviations, got {self.mean} and {self.std}"
            )
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(self.std)) or min(self.std) <= 0:
            raise StatisticsError(f"mean {self.mean} and std {self.std} must be finite, std above 0")
        if self.pixels not in ("uint8", "float32"):
            raise StatisticsError(f"pixels are uint8 or float32, got {self.pixels!r}")
        for what, given in (("bands", self.bands), ("select", self.select)):
            if given and len(given) != self.channels:
                raise StatisticsError(f"{what} {list(given)} must name each of the {self.channels} channels")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        plain = asdict(self)
        plain |= {"mean": [round(v, 6) for v in self.mean], "std": [round(v, 6) for v in self.std]}
        plain |= {"bands": list(self.bands), "select": list(self.select), "scaling": str(self.scaling)}
        plain["percentiles"] = {k: [round(v, 6) for v in values] for k, values in self.percentiles.items()}
        return {name: value for name, value in plain.items() if name not in _OPTIONAL or value}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "SourceStatistics":
        """What ``to_dict`` wrote.

        Raises:
            StatisticsError: A key is missing or unknown, or a value is impossible.
        """
        values = dict(plain)
        try:
            values["mean"] = tuple(float(v) for v in values["mean"])
            values["std"] = tuple(float(v) for v in values["std"])
            values["scaling"] = Scaling.parse(values["scaling"])
            values["bands"] = tuple(str(name) for name in values.get("bands", ()))
            values["select"] = tuple(int(number) for number in values.get("select", ()))
            percentiles = values.get("percentiles", {}).items()
            values["percentiles"] = {str(k): tuple(float(v) for v in each) for k, each in percentiles}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise StatisticsError(f"statistics entry {dict(plain)} is not complete: {error}") from None

    @property
    def stored_channels(self) -> int:
        """Least number of stored channels that an image of all those read has."""
        return max(self.select, default=self.channels - 1) + 1

    def expanded(self, channels: int) -> "SourceStatistics":
        """The same statistics for images whose single channel is repeated.

        Raises:
            StatisticsError: There is more than one channel and another count is wanted.
        """
        if channels == self.channels:
            return self
        if self.channels != 1:
            raise StatisticsError(f"images of {self.channels} channels cannot become images of {channels}")
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain |= {"channels": channels, "mean": self.mean * channels, "std": self.std * channels}
        plain |= {"bands": self.bands * channels, "select": self.select * channels}
        plain["percentiles"] = {share: values * channels for share, values in self.percentiles.items()}
        return SourceStatistics(**plain)


@dataclass(kw_only=True)
class IndexStatistics:
    """All of ``stats.yaml``.

    Attributes:
        sources: Source name to modality name to statistics.
        classes: Class names, where rows have labels.
    """

    sources: dict[str, dict[str, SourceStatistics]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        sources = {
            source: {modality: statistics.to_dict() for modality, statistics in sorted(sides.items())}
            for source, sides in sorted(self.sources.items())
        }
        return {"format": 1, "sources": sources} | ({"classes": list(self.classes)} if self.classes else {})

    def hash(self) -> str:
        """Hash of all that standardises: selection, scaling, mean, std and channels of every source."""
        keys = ("channels", "mean", "std", "scaling", "select")
        facts = {
            source: {
                modality: {k: v for k, v in statistics.to_dict().items() if k in keys}
                for modality, statistics in sides.items()
            }
            for source, sides in self.sources.items()
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_statistics(folder: str | os.PathLike[str]) -> IndexStatistics:
    """Reads ``stats.yaml`` of an index folder.

    Raises:
        StatisticsError: It is missing or not what ``datasets/prepare.py`` writes.
    """
    path = Path(folder) / FILE_NAME
    try:
        plain = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise StatisticsError(
            f"no {FILE_NAME} in {folder}: an index needs the mean and std of each source; "
            "write both again with python datasets/prepare.py"
        ) from None
    except yaml.YAMLError as error:
        raise StatisticsError(f"{path} is not YAML: {error}") from None
    if not isinstance(plain, dict) or plain.get("format") != 1 or not isinstance(plain.get("sources"), dict):
        raise StatisticsError(
            f"{path} is not a statistics file of format 1; write it again with datasets/prepare.py"
        )
    try:
        sources = {
            source: {modality: SourceStatistics.from_dict(entry) for modality, entry in sides.items()}
            for source, sides in plain["sources"].items()
        }
    except StatisticsError as error:
        raise StatisticsError(f"{path}: {error}") from None
    return IndexStatistics(sources=sources, classes=tuple(str(name) for name in plain.get("classes", ())))


def mixture(parts: list[tuple[SourceStatistics, float]]) -> SourceStatistics:
    """Mean and standard deviation of several sources taken together.

    Args:
        parts: Statistics and weight (number of images) of each source.
    """
    channels = max(statistics.channels for statistics, _ in parts)
    wide = [statistics.expanded(channels) for statistics, _ in parts]
    weights = np.array([weight for _, weight in parts], dtype=np.float64)
    weights /= weights.sum()
    means = np.array([statistics.mean for statistics in wide])
    squares = np.array([statistics.std for statistics in wide]) ** 2 + means**2
    mean = weights @ means
    std = np.sqrt(weights @ squares - mean**2)
    scalings = {statistics.scaling for statistics in wide}
    return SourceStatistics(
        channels=channels,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        scaling=wide[0].scaling if len(scalings) == 1 else Scaling("linear", 0.0, 1.0),
        pixels="uint8" if all(statistics.pixels == "uint8" for statistics in wide) else "float32",
        computed="mixture of " + ", ".join(sorted({statistics.computed for statistics in wide})),
        images=sum(statistics.images for statistics in wide),
        pixel_count=sum(statistics.pixel_count for statistics in wide),
    )
