"""Synthetic pairs on disk: picture folders, a table of labels and factors, and an index over them."""

import csv
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codemae.data.index import write_index
from codemae.data.statistics import IndexStatistics, SourceStatistics
from codemae.data.synthetic.factors import FACTOR_SIDES, SCENES, SynthesisOptions
from codemae.data.synthetic.noise import stream
from codemae.data.synthetic.pair import synthesise
from codemae.modality import MODALITY_NAMES

SOURCE = "synthetic"
LABELS_NAME = "labels.csv"
UNPAIRED_SPLIT = "unpaired"


@dataclass(frozen=True)
class _Task:
    """One place to synthesise and which of its pictures to keep."""

    split: str
    number: int
    seed: int
    scene: int
    modalities: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.split}_{self.number:06d}"

    def path(self, modality: str) -> str:
        folder = f"unpaired/{modality}" if self.split == UNPAIRED_SPLIT else modality
        return f"{folder}/{self.name}.png"


@dataclass(frozen=True)
class _Written:
    """What the table and the statistics need to know of one finished place."""

    task: _Task
    factors: dict[str, int | float]
    sums: dict[str, tuple[NDArray[np.float64], NDArray[np.float64], int]]


def write_dataset(
    directory: str | os.PathLike[str],
    *,
    train: int,
    test: int = 0,
    unpaired: int = 0,
    size: int = 128,
    seed: int = 0,
    options: SynthesisOptions | None = None,
    workers: int = 1,
) -> Path:
    """Writes pictures, `labels.csv`, `index.parquet` and `stats.yaml` into one folder: an index folder.

    ::

        directory/optical/train_000000.png   sar/train_000000.png   ...   optical/test_000000.png   ...
        directory/unpaired/optical/unpaired_000000.png   unpaired/sar/unpaired_000001.png   ...

    The label is the scene class; classes are equally frequent unless the options pin one. Every picture
    of the unpaired pool shows a place of its own and has no label; the pool is the split `unpaired`.

    Args:
        directory: Where to; made if missing, files of the same name are replaced.
        train: Pairs in the split `train`.
        test: Pairs in the split `test`.
        unpaired: Pictures of each modality in the split `unpaired`.
        size: Side of the pictures in pixels.
        seed: Seed of the dataset; more pairs of a split leave its first ones and all others alone.
        options: How pairs are made; the defaults if None.
        workers: Processes that synthesise. Above 1 the calling script needs `if __name__ == "__main__"`.

    Returns:
        The folder, to open with `codemae.data.index.open_index`.

    Raises:
        ValueError: No training pair is asked for, or a count is negative.
    """
    if train < 1 or test < 0 or unpaired < 0:
        raise ValueError(f"needs train >= 1, test >= 0 and unpaired >= 0, got {train}, {test} and {unpaired}")
    options = options or SynthesisOptions()
    root = Path(directory)
    folders = [root / modality for modality in MODALITY_NAMES]
    folders += [root / UNPAIRED_SPLIT / modality for modality in MODALITY_NAMES if unpaired]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(train, test, unpaired, seed, options)
    written = list(_run(partial(_write_place, root=root, size=size, options=options), tasks, workers))
    _write_labels(root / LABELS_NAME, written)
    rows = [_row(task) for task in tasks]
    write_index(root, rows, _statistics(written), root)
    return root


def read_factors(directory: str | os.PathLike[str], split: str) -> dict[str, dict[str, float]]:
    """The factors of the places of one split, by the place's name, which is its row's group."""
    with open(Path(directory) / LABELS_NAME, newline="") as handle:
        lines = [line for line in csv.DictReader(handle) if line["split"] == split]
    return {line["name"]: {factor: float(line[factor]) for factor in FACTOR_SIDES} for line in lines}


def _tasks(train: int, test: int, unpaired: int, seed: int, options: SynthesisOptions) -> list[_Task]:
    def task(split: str, number: int, modalities: tuple[str, ...]) -> _Task:
        place = int(stream(seed, f"dataset {split} {number}").integers(2**63))
        scene = number % len(SCENES) if options.scene is None else options.scene
        return _Task(split, number, place, scene, modalities)

    tasks = [task("train", number, MODALITY_NAMES) for number in range(train)]
    tasks += [task("test", number, MODALITY_NAMES) for number in range(test)]
    for start, modality in enumerate(MODALITY_NAMES):
        numbers = range(start * unpaired, (start + 1) * unpaired)
        tasks += [task(UNPAIRED_SPLIT, number, (modality,)) for number in numbers]
    return tasks


def _run(work: "partial[_Written]", tasks: Sequence[_Task], workers: int) -> Iterator[_Written]:
    if workers <= 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, tasks, chunksize=32)


def _write_place(task: _Task, *, root: Path, size: int, options: SynthesisOptions) -> _Written:
    pair = synthesise(task.seed, size, replace(options, scene=task.scene))
    sums = {}
    for modality in task.modalities:
        picture: NDArray[np.uint8] = getattr(pair, modality)
        Image.fromarray(picture).save(root / task.path(modality), compress_level=1)
        values = picture.reshape(size * size, -1).astype(np.float64) / 255
        sums[modality] = (values.sum(axis=0), (values**2).sum(axis=0), size * size)
    return _Written(task, pair.factors, sums)


def _row(task: _Task) -> dict[str, str | int]:
    row: dict[str, str | int] = {"source": SOURCE, "split": task.split, "group": task.name}
    row |= {modality: task.path(modality) for modality in task.modalities}
    return row if task.split == UNPAIRED_SPLIT else row | {"label": task.scene}


def _write_labels(path: Path, written: Sequence[_Written]) -> None:
    """Writes a line a place: split, label, seed and every factor."""
    with open(path, "w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["name", "split", "modalities", "label", "class", "seed", *FACTOR_SIDES])
        for place in written:
            task = place.task
            facts: list[str | int | float] = [task.name, task.split, "+".join(task.modalities)]
            facts += [task.scene, SCENES[task.scene], task.seed]
            table.writerow(facts + [_plain(place.factors[name]) for name in FACTOR_SIDES])


def _plain(value: int | float) -> int | float:
    return round(value, 6) if isinstance(value, float) else value


def _statistics(written: Sequence[_Written]) -> IndexStatistics:
    """Mean and standard deviation over everything but the test split."""
    sides = {}
    for modality in MODALITY_NAMES:
        parts = [w.sums[modality] for w in written if w.task.split != "test" and modality in w.sums]
        count = sum(part[2] for part in parts)
        mean = sum((part[0] for part in parts), np.zeros(1)) / count
        square = sum((part[1] for part in parts), np.zeros(1)) / count
        std = np.sqrt(np.maximum(square - mean**2, 1e-12))
        sides[modality] = SourceStatistics(
            channels=len(mean),
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            images=len(parts),
            pixel_count=count,
        )
    return IndexStatistics(sources={SOURCE: sides}, classes=SCENES)
