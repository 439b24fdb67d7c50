"""Pooled features of images that need no labels: a folder of files, or an index."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from codemae.data.crops import Crop, take_crop
from codemae.data.images import Location, Window, as_read, read_picture, size_of
from codemae.data.index import open_index
from codemae.data.statistics import Scaling, SourceStatistics
from codemae.models.factory import load_encoder

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
DEFAULT_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class NamedFeatures:
    """Features of images and where each came from.

    Attributes:
        values: (n, D) float32.
        names: Path of each image, relative to the folder searched or to the index's root.
        rows: Index row of each image, or None for a folder.
    """

    values: np.ndarray
    names: list[str]
    rows: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class _Place:
    location: Location
    window: Window | None
    statistics: SourceStatistics


class _WholeImages(Dataset[Tensor]):
    def __init__(self, places: Sequence[_Place], size: int, channels: int) -> None:
        self.places, self.size, self.channels = places, size, channels

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> Tensor:
        place = self.places[item]
        statistics = place.statistics
        picture = as_read(read_picture(place.location, place.window), statistics)
        height, width = size_of(picture)
        fill = np.array(statistics.mean, dtype=np.float32)
        pixels = take_crop(picture, Crop(0, 0, height, width), self.size, statistics.scaling, fill, False)
        mean, std = (torch.tensor(values)[:, None, None] for values in (statistics.mean, statistics.std))
        unit = torch.from_numpy(np.ascontiguousarray(pixels))
        return ((unit - mean) / std).nan_to_num(nan=0.0).expand(self.channels, -1, -1)


def embed_folder(
    encoder: str,
    folder: Path,
    modality: str,
    *,
    size: int | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> NamedFeatures:
    """Features of every image below a folder, standardised as the encoder's own file says.

    Raises:
        FileNotFoundError: The folder holds no image.
        ValueError: The encoder does not know how this modality is standardised.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no image ({', '.join(SUFFIXES)}) in {folder}; check --images")
    model = load_encoder(encoder)
    inputs = getattr(model, "inputs", None) or {}
    if modality not in inputs:
        raise ValueError(
            f"{encoder} does not say by which mean and std its {modality} images are standardised; make an "
            f"index with `python datasets/prepare.py folder --root {folder} ...`, which measures them, and "
            "use --data.index"
        )
    spec = inputs[modality]
    channels = len(spec.mean)
    statistics = SourceStatistics(
        channels=channels,
        mean=tuple(spec.mean),
        std=tuple(spec.std),
        scaling=Scaling.parse(spec.scaling),
        pixels="float32",
    )
    places = [_Place(location=Location(str(path)), window=None, statistics=statistics) for path in paths]
    values = _encode(model, places, modality, channels, size, batch_size, device)
    return NamedFeatures(values=values, names=[str(path.relative_to(folder)) for path in paths])


def embed_index(
    encoder: str,
    folders: Sequence[str | Path],
    modality: str,
    *,
    split: str | None = None,
    size: int | None = None,
    batch_size: int = 32,
    device: str = "cpu",
) -> NamedFeatures:
    """Features of every image of a modality in an index, standardised by each source's own statistics.

    Raises:
        ValueError: The index holds no such image.
    """
    index = open_index(folders, split)
    rows = [int(row) for row in index.rows_with(modality)]
    if not rows:
        raise ValueError(f"no {modality} image among the selected rows of {', '.join(index.folders)}")
    channels = max(index.stats(s, modality).channels for s in index.source_counts(modality))
    places = [
        _Place(
            location=index.location(row, modality),
            window=index.window(row),
            statistics=index.stats(index.source(row), modality),
        )
        for row in rows
    ]
    values = _encode(load_encoder(encoder), places, modality, channels, size, batch_size, device)
    return NamedFeatures(values=values, names=[str(index.cell(row, modality)) for row in rows], rows=rows)


def write_features(path: Path, features: NamedFeatures) -> Path:
    """Writes ``.npz`` (values, names, rows) or ``.parquet`` (name, row, feature list).

    Raises:
        ValueError: The path ends otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {"values": features.values, "names": np.array(features.names)}
        if features.rows is not None:
            arrays["rows"] = np.array(features.rows, dtype=np.int64)
        np.savez(path, **arrays)
    elif path.suffix == ".parquet":
        values = pa.FixedSizeListArray.from_arrays(
            pa.array(features.values.ravel()), features.values.shape[1]
        )
        columns: dict[str, object] = {"name": features.names, "feature": values}
        if features.rows is not None:
            columns["row"] = pa.array(features.rows, pa.int64())
        pq.write_table(pa.table(columns), path)
    else:
        raise ValueError(f"features are written to .npz or .parquet, not {path.name!r}")
    return path


@torch.inference_mode()
def _encode(
    model: nn.Module,
    places: Sequence[_Place],
    modality: str,
    channels: int,
    size: int | None,
    batch_size: int,
    device: str,
) -> np.ndarray:
    model = model.to(device).eval()
    images = _WholeImages(places, size or input_size(model), channels)
    pooled = [
        model.pooled(batch.to(device), modality).float().cpu()  # type: ignore[operator]
        for batch in DataLoader(images, batch_size=batch_size)
    ]
    return torch.cat(pooled).numpy()


def input_size(encoder: nn.Module) -> int:
    """The side in pixels an encoder is laid out for."""
    return int(getattr(encoder, "img_size", DEFAULT_SIZE))
