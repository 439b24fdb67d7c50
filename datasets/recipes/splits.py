"""Which split a sample belongs to: drawn by a stated rule, or read from list files."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recipes.plan import IMAGE_SUFFIXES, Candidate, Kept, PrepareError, write_whole

SPLITS = ("train", "val", "test")

RULE = (
    "for each class (number k; samples without one class number are k = 0): the sorted groups (of a sample "
    "without a scene: its key), permuted by numpy.random.default_rng([seed, k]); a whole number n takes the "
    "first n, a share s the first round(s x count), splits in the order written; what is left is the rest"
)


def class_of(candidate: Candidate) -> int:
    """The class that a draw is stratified by."""
    return candidate.label if isinstance(candidate.label, int) else 0


def draw(candidates: Iterable[Candidate], amounts: Mapping[str, float], rest: str, seed: int) -> None:
    """Sets the split of each candidate by ``RULE``.

    Args:
        candidates: All samples.
        amounts: Split to a share between 0 and 1 (a float) or a number of groups of each class (an int).
        rest: Split of what is not drawn.
        seed: Seed of the draw.

    Raises:
        PrepareError: An amount is neither, or a class has fewer groups than the whole numbers ask for.
    """
    listed = list(candidates)
    groups: dict[int, set[str]] = defaultdict(set)
    for candidate in listed:
        groups[class_of(candidate)].add(candidate.group)
    drawn: dict[str, str] = {}
    for label, names in groups.items():
        ordered = sorted(names)
        order = np.random.default_rng([seed, label]).permutation(len(ordered))
        start = 0
        for split, amount in amounts.items():
            wanted = _count(split, amount, len(ordered))
            if start + wanted > len(ordered):
                raise PrepareError(
                    f"class {label} has {len(ordered)} samples, {split} and before ask for more"
                )
            drawn |= {ordered[place]: split for place in order[start : start + wanted]}
            start += wanted
    for candidate in listed:
        candidate.split = drawn.get(candidate.group, rest)


def _count(split: str, amount: Any, of: int) -> int:
    if isinstance(amount, int) and not isinstance(amount, bool) and amount >= 1:
        return amount
    if isinstance(amount, float) and 0 < amount < 1:
        return round(of * amount)
    raise PrepareError(f"the draw of {split} is a share between 0 and 1 or a whole number, got {amount!r}")


def write_lists(out: Path, candidates: Iterable[Candidate]) -> dict[str, dict[str, Any]]:
    """Writes ``splits/<split>.txt`` with a key a line, sorted; returns their lengths and SHA-256."""
    keys: dict[str, list[str]] = defaultdict(list)
    for candidate in candidates:
        keys[candidate.split].append(candidate.key)
    facts = {}
    for split, names in sorted(keys.items()):
        text = "".join(f"{name}\n" for name in sorted(names))
        write_whole(out / "splits" / f"{split}.txt", text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        facts[split] = {"file": f"splits/{split}.txt", "lines": len(names), "sha256": digest}
    return facts


class Lists:
    """Names in list files, each of one split.

    A line is a key or a file name, its suffix and the folders before it optional; what follows a blank or a
    comma (a class number, say) is only looked at where the whole line names nothing.
    """

    def __init__(
        self,
        files: Mapping[str, Iterable[Path]],
        column: str | int | None = None,
        first_wins: bool = False,
    ) -> None:
        self.repeated: dict[str, str] = {}
        self._split: dict[str, str] = {}
        self._met: set[str] = set()
        self._bare: dict[str, str | None] = {}
        for split, paths in files.items():
            for path in paths:
                for name in _lines(path, column):
                    if self._split.setdefault(name, split) != split and first_wins:
                        self.repeated[name] = f"{self._split[name]}, not {split}"
                    elif self._split[name] != split:
                        raise PrepareError(
                            f"{name!r} is in the {self._split[name]} list and in the {split} list ({path})"
                        )
        self._exact: dict[str, str] = {}
        for name in self._split:
            first_word = name.replace(",", " ").split()[0]
            for form in (name, stem(name), stem(first_word)):
                self._exact.setdefault(form, name)
            bare = stem(first_word).rsplit("/", 1)[-1]
            self._bare[bare] = None if bare in self._bare else name

    def split_of(self, names: Iterable[str]) -> str | None:
        """Split of a sample, looked for under each of its names; None: it is in no list.

        A name without its folders counts only where it is the name of one line.
        """
        listed = list(names)
        exact = [self._exact.get(form) for name in listed for form in (name, stem(name))]
        bare = [self._bare.get(stem(name).rsplit("/", 1)[-1]) for name in listed]
        for entry in (*exact, *bare):
            if entry is not None:
                self._met.add(entry)
                return self._split[entry]
        return None

    def unmet(self) -> list[tuple[str, str]]:
        """Split and name of the lines that no sample has."""
        return [(split, name) for name, split in self._split.items() if name not in self._met]


def stem(name: str) -> str:
    """A name without the suffix of an image or of an annotation."""
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix.lower() in (*IMAGE_SUFFIXES, ".npy", ".xml", ".json") else name


def _lines(path: Path, column: str | int | None) -> list[str]:
    try:
        text = path.read_text()
    except OSError as error:
        raise PrepareError(f"split list {path}: {error.strerror}") from None
    if isinstance(column, str):
        rows = list(csv.DictReader(text.splitlines()))
        if rows and column not in rows[0]:
            raise PrepareError(f"split list {path} has no column {column!r}; it has {', '.join(rows[0])}")
        return [row[column].strip() for row in rows if row[column].strip()]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines if column is None else [line.replace(",", " ").split()[column] for line in lines]


def list_writer(candidates: list[Candidate], seed: int) -> Any:
    """What writes the lists of a draw beside the index."""

    def write(out: Path, kept: Kept) -> dict[str, object]:
        return {"split rule": f"{RULE}; seed {seed}", "split lists": write_lists(out, candidates)}

    return write
