"""A tiny index of optical and SAR images with masks, whose colours follow the masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data_makers import picture, save

from codemae.data.index import write_index
from codemae.data.statistics import IndexStatistics, SourceStatistics

SPLITS = {"train": 4, "val": 2, "test": 2}


def make_scenes(folder: Path, values: Sequence[Any] = (0, 255), side: int = 64, bands: int = 3) -> Path:
    """Two groups of stripes a mask, in the first two stored values; returns the index folder."""
    rows = []
    for split, count in SPLITS.items():
        for number in range(count):
            name = f"{split}{number}"
            classes = (np.add.outer(np.arange(side), np.arange(side) * number) // 16) % 2
            optical = picture(number, side, bands) // 3 + (classes[..., None] * 120).astype(np.uint8)
            sar = picture(number + 50, side, 1) // 3 + (classes * 90).astype(np.uint8)
            save(folder / "images/opt" / f"{name}.png", optical)
            save(folder / "images/sar" / f"{name}.png", sar)
            save(folder / "images/mask" / f"{name}.png", np.array(values, dtype=np.uint8)[classes])
            sides = {"optical": f"opt/{name}.png", "sar": f"sar/{name}.png", "mask": f"mask/{name}.png"}
            rows.append({"source": "made", "split": split, "group": name, **sides})
    optical_statistics = SourceStatistics(channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    sar_statistics = SourceStatistics(channels=1, mean=(0.3,), std=(0.1,))
    sources = {"made": {"optical": optical_statistics, "sar": sar_statistics}}
    classes_of = tuple(f"class {number}" for number in range(len(values)))
    write_index(
        folder / "index", rows, IndexStatistics(sources=sources, classes=classes_of), folder / "images"
    )
    return folder / "index"
