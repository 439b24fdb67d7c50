"""Labelled images of one modality, for evaluation."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from codemae.data.crops import Crop, take_crop
from codemae.data.images import SceneCache, as_read, read_window, size_of
from codemae.data.index import Index, IndexFileError
from codemae.modality import get_modality


class LabelledImages(Dataset[tuple[Tensor, int | Tensor, int]]):
    """Whole images resized to a square and standardised by their own source's statistics.

    Args:
        index: The rows and their files.
        modality: ``optical`` or ``sar``.
        size: Side of the images handed out.
        rows: Index rows to take; by default the selected ones that have this modality.
        cache_bytes: Memory for decoded scenes that serve many windows.

    Attributes:
        labels: (n,) int64 or (n, K) float32, in the order of the items.
        num_classes: Number of classes.
        channels: Channels of the images.

    Raises:
        IndexFileError: A row has no such image or no label.
    """

    def __init__(
        self,
        index: Index,
        modality: str,
        size: int,
        rows: np.ndarray | None = None,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self.index = index
        self.modality = get_modality(modality).name
        self.size = size
        self.rows = index.rows_with(self.modality) if rows is None else np.asarray(rows)
        if not len(self.rows):
            raise IndexFileError(
                f"{', '.join(index.folders)}: no {self.modality} image among the selected rows"
            )
        self.labels = index.labels(self.rows)
        self.num_classes = len(index.classes) or self._counted()
        counts = {
            index.stats(source, self.modality).channels for source in index.source_counts(self.modality)
        }
        self.channels = max(counts)
        self._cache = SceneCache(cache_bytes)

    def _counted(self) -> int:
        return self.labels.shape[1] if self.labels.ndim == 2 else int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Tensor, int | Tensor, int]:
        """Image (C, H, W) float32, label (number, or (K,) float32 of 0 and 1), index row.

        Raises:
            ImageError: The image cannot be read; an evaluation replaces nothing.
        """
        row = int(self.rows[item])
        statistics = self.index.stats(self.index.source(row), self.modality)
        picture = read_window(self.index.location(row, self.modality), self.index.window(row), self._cache)
        picture = as_read(picture, statistics)
        height, width = size_of(picture)
        fill = np.array(statistics.mean, dtype=np.float32)
        as_bytes = statistics.pixels == "uint8"
        pixels = take_crop(picture, Crop(0, 0, height, width), self.size, statistics.scaling, fill, as_bytes)
        unit = torch.tensor(pixels.astype(np.float32)) / (255 if as_bytes else 1)
        wide = statistics.expanded(self.channels)
        unit = unit.expand(self.channels, -1, -1)
        mean, std = (torch.tensor(values)[:, None, None] for values in (wide.mean, wide.std))
        label = torch.from_numpy(self.labels[item]) if self.labels.ndim == 2 else int(self.labels[item])
        return ((unit - mean) / std).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), label, row
