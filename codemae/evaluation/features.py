"""Frozen features of a labelled split: extracted once, kept on disk."""

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from codemae.checkpoint import InputSpec
from codemae.data.index import Index
from codemae.data.labelled import LabelledImages
from codemae.downloads import file_hash
from codemae.evaluation.card import joint_hash, write_atomically
from codemae.models.bands import BandFilling

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureKey:
    """Everything the features of one split depend on.

    Attributes:
        checkpoint_hash: Of the encoder.
        rows_hash: Of the samples.
        statistics_hash: Of the means and deviations the images are standardised by.
        size: Side of the images in pixels.
        modality: Which images.
        normalisation: "dataset", or the encoder's own statistics in words.
        bands: How the dataset's bands become the encoder's; "" where they are the same.
        version: Of this library, for the same weights in other code give other features.
    """

    checkpoint_hash: str
    rows_hash: str
    statistics_hash: str
    size: int
    modality: str
    normalisation: str
    bands: str
    version: str

    def digest(self) -> str:
        """One name for all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:24]


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """Pooled features of one split.

    Attributes:
        values: (B, D) float32.
        labels: (B,) int64 class numbers, or (B, K) float32 zeros and ones.
    """

    values: Tensor
    labels: Tensor


class AsEncoderSees(Dataset[tuple[Tensor, int | Tensor, int]]):
    """Labelled images with an encoder's bands, standardised by its own statistics if it has any.

    Args:
        images: Standardised by their dataset.
        inputs: The encoder's input contract for their modality; a single channel becomes as many as its
            statistics have. None keeps the dataset's standardisation.
        filling: How the dataset's bands become the encoder's; it works on [0, 1] values with ``inputs``, on
            standardised ones without.
    """

    def __init__(
        self, images: LabelledImages, inputs: InputSpec | None, filling: BandFilling | None = None
    ) -> None:
        self.images = images
        self.inputs = inputs
        self.filling = filling

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> tuple[Tensor, int | Tensor, int]:
        """The item of ``images``, seen as the encoder does."""
        image, label, row = self.images[item]
        if self.inputs is not None:
            index = self.images.index
            statistics = index.stats(index.source(row), self.images.modality).expanded(len(image))
            image = image * _column(statistics.std) + _column(statistics.mean)
        if self.filling is not None:
            image = self.filling(image)
        if self.inputs is not None:
            image = (image - _column(self.inputs.mean)) / _column(self.inputs.std)
        return image, label, row


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values)[:, None, None]


class FeatureStore:
    """Features of one encoder, computed at the first request and read from disk at the next.

    Args:
        encoder: With ``pooled(images, modality) -> (B, D)``.
        checkpoint_hash: Names its weights.
        size: Side of the square images in pixels.
        folder: Where features are kept.
        inputs: The encoder's own input contract by modality, to standardise images by it; by the dataset's
            statistics when None.
        fillings: How a dataset's bands become the encoder's, for the modalities where they differ.
        device: Where the encoder runs.
        batch_size: Images an encoder call.
        num_workers: Processes that decode images.
    """

    def __init__(
        self,
        encoder: nn.Module,
        checkpoint_hash: str,
        size: int,
        folder: Path,
        *,
        inputs: Mapping[str, InputSpec] | None = None,
        fillings: Mapping[str, BandFilling] | None = None,
        device: torch.device | str = "cpu",
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        self.encoder = encoder
        self.checkpoint_hash = checkpoint_hash
        self.size = size
        self.folder = folder
        self.inputs = inputs
        self.fillings = fillings or {}
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def features(self, index: Index, modality: str, rows: np.ndarray | None = None) -> Features:
        """Features of the selected rows of an index that have this modality, or of the given rows."""
        rows = index.rows_with(modality) if rows is None else rows
        path = self.folder / f"{self._key(index, modality, rows).digest()}.npz"
        if (stored := read_features(path)) is not None:
            return stored
        loader = self._loader(index, modality, rows)
        features = extract_features(self.encoder, loader, modality, self.device)
        save_features(path, features)
        return features

    def features_of_places(self, index: Index, modalities: Sequence[str], rows: np.ndarray) -> list[Features]:
        """Features of each modality of rows that have them all.

        An encoder that fuses modalities sees all images of a row together, any other each by itself.
        """
        if len(modalities) == 1 or not getattr(self.encoder, "fuses", False):
            return [self.features(index, modality, rows) for modality in modalities]
        paths = [
            self.folder / f"{self._key(index, modality, rows, together=True).digest()}.npz"
            for modality in modalities
        ]
        stored = [read_features(path) for path in paths]
        if all(features is not None for features in stored):
            return cast(list[Features], stored)
        loaders = [self._loader(index, modality, rows) for modality in modalities]
        found = extract_together(self.encoder, loaders, modalities, self.device)
        for path, features in zip(paths, found, strict=True):
            save_features(path, features)
        return found

    def _loader(self, index: Index, modality: str, rows: np.ndarray) -> DataLoader[Any]:
        images = LabelledImages(index, modality, self.size, rows)
        inputs = None if self.inputs is None else self.inputs[modality]
        dataset = AsEncoderSees(images, inputs, self.fillings.get(modality))
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)

    def _key(self, index: Index, modality: str, rows: np.ndarray, *, together: bool = False) -> FeatureKey:
        return FeatureKey(
            checkpoint_hash=self.checkpoint_hash,
            rows_hash=rows_hash(index, rows),
            statistics_hash=index.statistics_hash(),
            size=self.size,
            modality=f"{modality}, seen with the others" if together else modality,
            normalisation="dataset" if self.inputs is None else repr(self.inputs[modality]),
            bands=repr(self.fillings[modality]) if modality in self.fillings else "",
            version=metadata.version("codemae"),
        )


def rows_hash(index: Index, rows: np.ndarray) -> str:
    """Names the samples of some rows of an index, wherever the data lies."""
    return joint_hash([index.hash(), hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()])


def encoder_hash(name: str, encoder: nn.Module) -> str:
    """Names an encoder's weights: of its file where the name is one, else of the weights themselves."""
    return file_hash(name) if Path(name).is_file() else weights_hash(encoder)


def weights_hash(module: nn.Module) -> str:
    """sha256 over the names and values of a module's state, for encoders that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def extract_features(
    encoder: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    modality: str,
    device: torch.device,
) -> Features:
    """Runs an encoder over (images, labels, rows) batches and keeps the mean of its last tokens.

    Args:
        encoder: With ``pooled(images, modality) -> (B, D)``.
        batches: Standardised images (B, C, H, W) with labels.
        modality: Of the images.
        device: To run on; the features come back to the CPU.

    Raises:
        ValueError: A feature is not finite.
    """
    encoder = encoder.to(device).eval()
    pool = cast(Callable[[Tensor, str], Tensor], encoder.pooled)
    values, labels = [], []
    for images, label, rows in batches:
        pooled = pool(images.to(device), modality).float().cpu()
        _check_finite(pooled, rows, modality)
        values.append(pooled)
        labels.append(label)
    return Features(values=torch.cat(values), labels=torch.cat(labels))


@torch.inference_mode()
def extract_together(
    encoder: nn.Module,
    batches: Sequence[Iterable[tuple[Tensor, Tensor, Tensor]]],
    modalities: Sequence[str],
    device: torch.device,
) -> list[Features]:
    """Features of each modality, the encoder seeing all images of a row at once.

    Args:
        encoder: With ``pooled_together({modality: (B, C, H, W)}) -> {modality: (B, D)}``.
        batches: For each modality (images, labels, rows) of the same rows in the same order.
        modalities: Of the batches.
        device: To run on; the features come back to the CPU.

    Raises:
        ValueError: A feature is not finite.
    """
    encoder = encoder.to(device).eval()
    pool = cast(Callable[[dict[str, Tensor]], dict[str, Tensor]], encoder.pooled_together)
    values: dict[str, list[Tensor]] = {modality: [] for modality in modalities}
    labels = []
    for sides in zip(*batches, strict=True):
        images = {name: side[0].to(device) for name, side in zip(modalities, sides, strict=True)}
        for modality, pooled in pool(images).items():
            _check_finite(pooled, sides[0][2], modality)
            values[modality].append(pooled.float().cpu())
        labels.append(sides[0][1])
    return [Features(values=torch.cat(values[name]), labels=torch.cat(labels)) for name in modalities]


def _check_finite(pooled: Tensor, rows: Tensor, modality: str) -> None:
    finite = pooled.isfinite().all(dim=1).cpu()
    if not finite.all():
        raise ValueError(
            f"the encoder's features of row {int(rows[~finite][0])} ({modality}) are not finite; look at "
            "that image with `python datasets/pair_doctor.py`, or check the checkpoint with `codemae models`"
        )


def save_features(path: Path, features: Features) -> None:
    """Writes features, completely or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, values=features.values.numpy(), labels=features.labels.numpy())
    write_atomically(path, buffer.getvalue())


def read_features(path: Path) -> Features | None:
    """Reads features back; None when the file is not there or is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Features(
                values=torch.from_numpy(stored["values"]), labels=torch.from_numpy(stored["labels"])
            )
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        logger.warning("%s is damaged (%s); its features are computed again", path, error)
        return None
