"""Small copies of the layouts of real data, written by code."""

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from codemae.data.index import write_index
from codemae.data.statistics import IndexStatistics, SourceStatistics
from codemae.evaluation.card import Card

SHARED_DATA = Path(
    os.environ.get("CODEMAE_SHARED_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data")
)

ROOT = Path(__file__).resolve().parents[1]


def load_script(path: str) -> ModuleType:
    """A script of the project, such as ``linearprobing/main.py``, as a module that is not run as main."""
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def picture(seed: int, size: int | tuple[int, int] = 32, channels: int = 3) -> np.ndarray:
    """Smooth random uint8 content, (H, W) or (H, W, C)."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng([seed, channels])
    coarse = rng.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BILINEAR))
        for c in range(channels)
    ]
    grain = rng.integers(0, 24, (height, width, channels), dtype=np.uint8)
    pixels = (np.stack(planes, axis=-1) // 2 + grain).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_geotiff(path: Path, bands: np.ndarray, nodata: float | None = None) -> Path:
    """Writes (H, W, C) as a GeoTIFF of its own type."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = bands.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=count, dtype=bands.dtype, nodata=nodata
    ) as dataset:
        dataset.write(np.moveaxis(bands, -1, 0))
    return path


def make_pairs(root: Path, stems: Sequence[str], size: int | tuple[int, int] = 32) -> Path:
    """root/opt/<stem>.png and root/sar/<stem>.png."""
    for seed, stem in enumerate(stems):
        save(root / "opt" / f"{stem}.png", picture(seed, size))
        save(root / "sar" / f"{stem}.png", picture(seed + 1000, size, 1))
    return root


def make_classes(
    root: Path, classes: Sequence[str], per_class: int, size: int = 16, channels: int = 3
) -> Path:
    """root/<class>/<number>.png."""
    for number, name in enumerate(classes):
        for item in range(per_class):
            save(root / name / f"{item:03d}.png", picture(1000 * number + item, size, channels))
    return root


def make_ospretrain(root: Path) -> Path:
    """The released layout in small: listed sources, one held back in part, one as a whole, and the pool."""
    seed = 0
    for source, lists in {
        "QXSLAB_SARPORT": {"train": ["a1", "a2.png"], "test": ["a3"]},
        "DDHR": {"train": ["d1"], "val": ["d2"], "test": ["d3", "d4"]},
        "PIE-RGB-SAR": {"train": ["p1"]},
    }.items():
        for split, names in lists.items():
            for name in names:
                seed += 1
                stem = name.removesuffix(".png")
                save(root / source / "RGB" / f"{stem}.png", picture(seed))
                grey = picture(seed + 500, channels=1)
                save(root / source / "SAR" / f"{stem}.png", np.repeat(grey[..., None], 3, axis=-1))
            (root / source / f"{split}.txt").write_text("\n".join(names) + "\n")
    for item in range(3):
        save(root / "Unpaired" / "RGB" / f"u{item}.png", picture(item + 2000))
        save(root / "Unpaired" / "SAR" / f"u{item}.png", picture(item + 3000, channels=1))
    return root


def statistics(*sources: str) -> IndexStatistics:
    """Made-up statistics of bytes for both modalities of each source."""
    optical = SourceStatistics(channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    sar = SourceStatistics(channels=1, mean=(0.3,), std=(0.1,))
    return IndexStatistics(sources={source: {"optical": optical, "sar": sar} for source in sources})


def make_index(folder: Path, paired: int = 0, optical: int = 0, sar: int = 0, size: int = 24) -> Path:
    """An index of small PNG images under folder/images; returns the index folder."""
    images = folder / "images"
    rows: list[dict[str, object]] = []
    for kind, count in (("paired", paired), ("optical", optical), ("sar", sar)):
        for item in range(count):
            row: dict[str, object] = {"source": "made", "split": "train", "group": f"{kind}{item}"}
            seed = len(rows)
            if kind != "sar":
                save(images / "opt" / f"{kind}{item}.png", picture(seed, size))
                row["optical"] = f"opt/{kind}{item}.png"
            if kind != "optical":
                save(images / "sar" / f"{kind}{item}.png", picture(seed + 1000, size, 1))
                row["sar"] = f"sar/{kind}{item}.png"
            rows.append(row)
    index = folder / "index"
    write_index(index, rows, statistics("made"), images)
    return index


def make_labelled(
    folder: Path,
    *,
    labels: str = "one",
    sides: Sequence[str] = ("optical", "sar"),
    wrong: int | None = None,
    group_size: int = 1,
    train: int = 6,
) -> Path:
    """An index of three classes that brightness, colour and stripes tell apart; returns its folder.

    So many training and four test images a class, 32 px, class by class. ``labels`` is "one", "many" or
    "none"; row ``wrong`` has label 3, outside the class list; so many images of a class share a group.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for split, count in (("train", train), ("test", 4)):
        for klass in range(3):
            for number in range(count):
                pixels = rng.integers(60, 90, (32, 32, 3))
                pixels[..., 1] += 120 * (klass == 1)
                pixels[::4] += 140 * (klass == 2)
                group = f"{split}{klass}{number // group_size}"
                row: dict[str, Any] = {"source": "toy", "split": split, "group": group}
                for side in sides:
                    row[side] = f"{split}/{side}/{klass}_{number}.png"
                    view = pixels if side == "optical" else pixels[..., 1]
                    save(folder / "images" / row[side], view.astype(np.uint8))
                if labels != "none":
                    row["label"] = klass if labels == "one" else sorted({klass, number % 3})
                rows.append(row)
    if wrong is not None:
        rows[wrong]["label"] = 3
    sources = {
        "optical": SourceStatistics(channels=3, mean=(0.3, 0.4, 0.3), std=(0.1, 0.2, 0.1)),
        "sar": SourceStatistics(channels=1, mean=(0.4,), std=(0.2,)),
    }
    described = IndexStatistics(
        sources={"toy": {side: sources[side] for side in sides}},
        classes=() if labels == "none" else ("dark", "green", "striped"),
    )
    write_index(folder / "index", rows, described, folder / "images")
    return folder / "index"


def make_card(**changes: Any) -> Card:
    """A made-up result of three seeds, mean 42 and standard deviation 2."""
    fields: dict[str, Any] = {
        "task": "linear_probing",
        "dataset": "eurosat",
        "split_hash": "aaaa",
        "statistics_hash": "bbbb",
        "encoder": "random:hivit_tiny",
        "checkpoint_hash": "cccc",
        "modality": "optical",
        "protocol": "clean",
        "selected_by": "last",
        "metric": "overall_accuracy",
        "seeds": [0, 1, 2],
        "values": [40.0, 42.0, 44.0],
        "shots": 10,
        "few_shot": "per_class",
        "size": 128,
        "settings": {"epochs": 50},
        "versions": {"torch": "2"},
    }
    return Card(**(fields | changes))
