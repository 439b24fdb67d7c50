"""The result card: what an evaluation found, on what, by which rules, and when two of them may be ranked."""

import hashlib
import json
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from codemae.evaluation.tables import as_table

Protocol = Literal["paper", "official", "clean"]
SelectedBy = Literal["last", "val", "test"]

CARD_NAME = "results.json"
MUST_AGREE = (
    "task",
    "dataset",
    "split_hash",
    "statistics_hash",
    "protocol",
    "selected_by",
    "metric",
    "shots",
    "few_shot",
    "settings",
)
SHOWN = ("encoder", "checkpoint_hash", "modality", "size", "normalisation", "bands", "seeds")
MINDFUL = ("modality", "size", "normalisation", "bands")  # differences that do not forbid a ranking


class CardError(ValueError):
    """A file is not a result card."""


class NotComparableError(ValueError):
    """Two cards differ in a field that makes their figures incomparable."""


@dataclass(kw_only=True)
class Card:
    """What ``results.json`` holds; no dates and no timings, so the same run writes the same file.

    Attributes:
        task: "linear_probing", "classification", ...
        dataset: Names of the index's sources.
        split_hash: Of the rows trained on and evaluated.
        statistics_hash: Of the means and deviations of the data.
        encoder: As the user named it.
        checkpoint_hash: sha256 of the encoder's file, or of its weights where there is no file.
        modality: "optical", "sar" or "both".
        protocol: ``clean`` never selects on the evaluated split; ``paper`` takes the last epoch, as papers
            read; ``official`` the best on the evaluated split, as the published code does.
        selected_by: Which split chose the reported epoch; ``last`` means none did.
        metric: "overall_accuracy" or "micro_average_precision".
        seeds: One a value.
        values: The metric of each seed, in percent.
        shots: Training images a class, null for all.
        few_shot: How they are drawn; null for all.
        size: Side of the square images in pixels.
        normalisation: Whose mean and deviation the images were standardised by: "dataset" or "encoder".
        bands: The rule that filled bands the dataset lacks and for which; null where nothing was filled.
        settings: Of the training.
        metrics: Further figures of the same run, a value a seed, by name; not what cards are ranked by.
        also: The same run's figure under other rules of selection, by ``selected_by``.
        versions: Of the libraries that computed it.
    """

    task: str
    dataset: str
    split_hash: str
    statistics_hash: str
    encoder: str
    checkpoint_hash: str
    modality: str
    protocol: Protocol
    selected_by: SelectedBy
    metric: str
    seeds: list[int]
    values: list[float]
    shots: int | None = None
    few_shot: str | None = None
    size: int | None = None
    normalisation: str = "dataset"
    bands: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    also: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: library_versions())

    @property
    def mean(self) -> float:
        """Mean of the seeds' values."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Sample standard deviation of the seeds' values; 0 with one seed."""
        return sample_std(self.values)

    def save(self, path: str | Path) -> None:
        """Writes the card as JSON, completely or not at all.

        Raises:
            CardError: A value is not finite, or there is not one value a seed.
        """
        if len(self.values) != len(self.seeds) or not self.values:
            raise CardError(
                f"a card needs a value a seed: {len(self.values)} values, {len(self.seeds)} seeds"
            )
        for name, values in {self.metric: self.values, **self.metrics}.items():
            if not all(math.isfinite(value) for value in values):
                raise CardError(f"a figure is not finite: {name} {values}")
        content = asdict(self) | {"mean": self.mean, "std": self.std}
        write_atomically(Path(path), (json.dumps(content, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> "Card":
        """Reads a card, or the card in a folder.

        Raises:
            CardError: No such file, no JSON, or a field is missing or unknown.
        """
        path = Path(path)
        path = path / CARD_NAME if path.is_dir() else path
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            raise CardError(
                f"no result card at {path}; an evaluation writes {CARD_NAME} in its output folder"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CardError(f"{path} is not a result card: {error}") from None
        if not isinstance(content, dict):
            raise CardError(f"{path} is not a result card: it holds a {type(content).__name__}")
        known = {entry.name for entry in fields(cls)}
        content = {key: value for key, value in content.items() if key not in ("mean", "std")}
        if unknown := sorted(set(content) - known):
            raise CardError(f"{path} has fields no card has: {', '.join(unknown)}")
        try:
            return cls(**content)
        except TypeError as error:
            raise CardError(f"{path} is not a result card: {error}") from None

    def sentence(self) -> str:
        """The figure in words."""
        shots = f"{self.shots}-shot ({self.few_shot})" if self.shots else "all training images"
        return (
            f"{self.dataset}, {self.modality}, {shots}, {self.protocol} protocol ({self.selected_by}): "
            f"{self.metric.replace('_', ' ')} {self.mean:.2f} +- {self.std:.2f} % over "
            f"{len(self.seeds)} {'seed' if len(self.seeds) == 1 else 'seeds'} with {self.encoder}"
        )


def sample_std(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def library_versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    names = ("codemae", "torch", "torchvision", "timm", "torchmetrics", "numpy", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that other processes see whole or not at all, and replaces the one of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def joint_hash(parts: Sequence[str]) -> str:
    """One short hash of several, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def compare(*paths: str | Path, markdown: bool = False) -> str:
    """Sets cards side by side and says which figure is higher.

    Args:
        *paths: Two cards or more, or the folders of them.
        markdown: A Markdown table in place of aligned columns.

    Returns:
        A table and a verdict: of two the difference, seed by seed where both ran the same seeds; of more the
        order, each with its difference from the first named.

    Raises:
        CardError: A path holds no card, or there are fewer than two.
        NotComparableError: They answer different questions; the message has the table and each field that
            differs with its values.
    """
    if len(paths) < 2:
        raise CardError("name at least two cards to compare")
    cards = [Card.load(path) for path in paths]
    rows = [["", *map(str, paths)]]
    rows += [
        [name, *_side_by_side([getattr(card, name) for card in cards])] for name in (*MUST_AGREE, *SHOWN)
    ]
    rows += [["figure", *(f"{card.mean:.2f} +- {card.std:.2f} %" for card in cards)]]
    shared = [name for name in cards[0].metrics if all(name in card.metrics for card in cards)]
    rows += [[name, *(_figure(card.metrics[name]) for card in cards)] for name in shared]
    table = as_table(rows, markdown)

    first = cards[0]
    differing = [name for name in MUST_AGREE if any(getattr(c, name) != getattr(first, name) for c in cards)]
    if differing:
        values = {name: _side_by_side([getattr(card, name) for card in cards]) for name in differing}
        reasons = "\n".join(f"  {name}: {' against '.join(found)}" for name, found in values.items())
        raise NotComparableError(
            f"the results are not comparable, so they are not ranked\n{table}\n\nthey differ in\n{reasons}\n"
            "Evaluate all with the same value of each."
        )
    return f"{table}\n\n{_verdict(*cards) if len(cards) == 2 else _order(paths, cards)}"


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.2f} +- {sample_std(values):.2f} %"


def _order(paths: Sequence[str | Path], cards: Sequence[Card]) -> str:
    """From the highest figure down, each with its distance to the first card named."""
    places = sorted(range(len(cards)), key=lambda place: -cards[place].mean)
    lines = [
        f"{rank}. {paths[place]}: {cards[place].mean:.2f} ({cards[place].mean - cards[0].mean:+.2f})"
        for rank, place in enumerate(places, start=1)
    ]
    notes = [name for name in MINDFUL if any(getattr(c, name) != getattr(cards[0], name) for c in cards)]
    note = f"\nMind that they differ in {', '.join(notes)}." if notes else ""
    return "\n".join(lines) + note


def _verdict(a: Card, b: Card) -> str:
    notes = [name for name in MINDFUL if getattr(a, name) != getattr(b, name)]
    note = f" Mind that they differ in {', '.join(notes)}." if notes else ""
    if a.seeds == b.seeds:
        gains = [right - left for left, right in zip(a.values, b.values, strict=True)]
        gain, spread = statistics.fmean(gains), f" (seed by seed, std {sample_std(gains):.2f})"
    else:
        gain, spread = b.mean - a.mean, f" (different seeds; stds {a.std:.2f} and {b.std:.2f})"
    if gain == 0:
        return f"the figures are equal.{note}"
    higher = "the second" if gain > 0 else "the first"
    return f"{higher} is higher by {abs(gain):.2f} points{spread}.{note}"


def _side_by_side(values: Sequence[Any]) -> list[str]:
    """Values in words; of settings only the keys in which they differ."""
    if all(isinstance(value, dict) for value in values):
        if all(value == values[0] for value in values):
            return ["the same"] * len(values)
        keys = [
            key
            for key in dict.fromkeys(key for value in values for key in value)
            if any(value.get(key) != values[0].get(key) for value in values)
        ]
        return [" ".join(f"{key}={value.get(key)}" for key in keys) for value in values]
    return [_shown(value) for value in values]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)
