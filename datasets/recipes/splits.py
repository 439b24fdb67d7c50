"""Which split a sample belongs to: drawn by a stated rule, or read from list files."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recipes.candidates import Candidates
from recipes.listing import IMAGE_SUFFIXES, sorted_places
from recipes.plan import Kept, PrepareError, write_whole

SPLITS = ("train", "val", "test")

RULE = (
    "for each class (number k; samples without one class number are k = 0): the sorted groups (of a sample "
    "without a scene: its key), permuted by numpy.random.default_rng([seed, k]); a whole number n takes the "
    "first n, a share s the first round(s x count), splits in the order written; what is left is the rest"
)


def draw(candidates: Candidates, amounts: Mapping[str, float], rest: str, seed: int) -> None:
    """Sets the split of each candidate by ``RULE``.

    Args:
        candidates: All samples.
        amounts: Split to a share between 0 and 1 (a float) or a number of groups of each class (an int).
        rest: Split of what is not drawn.
        seed: Seed of the draw.

    Raises:
        PrepareError: An amount is neither, or a class has fewer groups than the whole numbers ask for.
    """
    splits = [rest, *amounts]
    coded = candidates.column("group").combine_chunks().dictionary_encode()
    groups, names = coded.indices.to_numpy(), coded.dictionary
    labels = candidates.class_numbers()
    drawn = np.zeros(len(names), dtype=np.int32)
    for label in dict.fromkeys(labels.tolist()):
        members = np.unique(groups[labels == label])
        ordered = members[sorted_places(names.take(pa.array(members)))]
        order = np.random.default_rng([seed, label]).permutation(len(ordered))
        start = 0
        for number, (split, amount) in enumerate(amounts.items(), 1):
            wanted = _count(split, amount, len(ordered))
            if start + wanted > len(ordered):
                raise PrepareError(
                    f"class {label} has {len(ordered)} samples, {split} and before ask for more"
                )
            drawn[ordered[order[start : start + wanted]]] = number
            start += wanted
    candidates.replace("split", pa.array(splits).take(pa.array(drawn[groups])))


def _count(split: str, amount: Any, of: int) -> int:
    if isinstance(amount, int) and not isinstance(amount, bool) and amount >= 1:
        return amount
    if isinstance(amount, float) and 0 < amount < 1:
        return round(of * amount)
    raise PrepareError(f"the draw of {split} is a share between 0 and 1 or a whole number, got {amount!r}")


def write_lists(out: Path, candidates: Candidates) -> dict[str, dict[str, Any]]:
    """Writes ``splits/<split>.txt`` with a key a line, sorted; returns their lengths and SHA-256."""
    keys, splits = candidates.column("key"), candidates.column("split")
    facts = {}
    for split in sorted(pc.unique(splits).to_pylist()):
        names = keys.filter(pc.equal(splits, split)).combine_chunks()
        text = "".join(f"{names[int(place)].as_py()}\n" for place in sorted_places(names))
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
            for form in (stem(name), stem(first_word)):
                if form not in self._split:
                    self._exact.setdefault(form, name)
            bare = stem(first_word).rsplit("/", 1)[-1]
            if bare != name:
                self._bare[bare] = None if bare in self._bare or bare in self._split else name

    def split_of(self, names: Iterable[str]) -> str | None:
        """Split of a sample, looked for under each of its names; None: it is in no list.

        A name without its folders counts only where it is the name of one line.
        """
        listed = list(names)
        exact = [self._named(form) for name in listed for form in (name, stem(name))]
        bare = [self._bare.get(last, self._named(last)) for name in listed if (last := _last(name))]
        for entry in (*exact, *bare):
            if entry is not None:
                self._met.add(entry)
                return self._split[entry]
        return None

    def _named(self, form: str) -> str | None:
        """The line that a name is a form of."""
        return form if form in self._split else self._exact.get(form)

    def unmet(self) -> list[tuple[str, str]]:
        """Split and name of the lines that no sample has."""
        return [(split, name) for name, split in self._split.items() if name not in self._met]


def stem(name: str) -> str:
    """A name without the suffix of an image or of an annotation."""
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix.lower() in (*IMAGE_SUFFIXES, ".npy", ".xml", ".json") else name


def _last(name: str) -> str:
    return stem(name).rsplit("/", 1)[-1]


def _lines(path: Path, column: str | int | None) -> Iterator[str]:
    try:
        with open(path, newline="") as text:
            if isinstance(column, str):
                rows = csv.DictReader(text)
                if column not in (rows.fieldnames or [column]):
                    known = ", ".join(rows.fieldnames or [])
                    raise PrepareError(f"split list {path} has no column {column!r}; it has {known}")
                yield from (name for row in rows if (name := (row[column] or "").strip()))
            else:
                for line in filter(None, map(str.strip, text)):
                    words = [line] if column is None else line.replace(",", " ").split()
                    if len(words) <= (column or 0):
                        raise PrepareError(f"split list {path}: the line {line!r} has no column {column}")
                    yield words[column or 0]
    except OSError as error:
        raise PrepareError(f"split list {path}: {error.strerror}") from None


def list_writer(candidates: Candidates, seed: int) -> Any:
    """What writes the lists of a draw beside the index."""

    def write(out: Path, kept: Kept) -> dict[str, object]:
        return {"split rule": f"{RULE}; seed {seed}", "split lists": write_lists(out, candidates)}

    return write
