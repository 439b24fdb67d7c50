"""What every labelled evaluation shares: which labels it may use, what selects, and whose statistics hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from codemae.checkpoint import WeightsError
from codemae.data.images import ImageError, PathError
from codemae.data.index import Index, IndexFileError
from codemae.data.statistics import StatisticsError
from codemae.distributed import select_device
from codemae.evaluation.card import Protocol, SelectedBy
from codemae.evaluation.carving import CarvingError, carve_validation
from codemae.evaluation.few_shot import FewShot, FewShotError, few_shot_rows, label_fraction_rows
from codemae.models.factory import load_encoder
from codemae.models.lite import LITE_NAME

READY_MADE = ("timm:", "torchgeo:")


class ProtocolError(ValueError):
    """Encoder, data and what was asked for do not fit each other."""


USER_ERRORS = (
    IndexFileError,
    StatisticsError,
    PathError,
    ImageError,
    WeightsError,
    FewShotError,
    CarvingError,
    ProtocolError,
)
"""What a command line answers in one sentence, with exit code 2."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Keys that linear probing and fine-tuning have in common; their own configs say what each means.

    Raises:
        ValueError: A value is out of its range, or two of them say the same thing.
    """

    encoder: str
    output_dir: str
    modality: Literal["optical", "sar", "both"] = "optical"
    shots: int | None = None
    few_shot: FewShot = "per_class"
    fraction: float = 1.0
    seeds: int = 5
    protocol: Protocol = "clean"
    select: Literal["auto", "val", "last"] = "auto"
    val_fraction: float = 0.1
    size: int | None = None
    normalize: Literal["auto", "dataset", "encoder"] = "auto"
    init_seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction:g}; it must be above 0 and at most 1, as in 0.01")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction:g}; it must be between 0 and 1")
        if self.shots is not None and self.fraction < 1:
            raise ValueError("shots and fraction both say how many labels to use; give one of them")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities evaluated."""
        return ("optical", "sar") if self.modality == "both" else (self.modality,)

    @property
    def selected_by(self) -> SelectedBy:
        """Which split chooses the reported epoch."""
        if self.protocol == "clean":
            # With k shots, images to validate on would be labels beyond the k of each class.
            return self.select if self.select != "auto" else "last" if self.shots else "val"
        return "test" if self.protocol == "official" else "last"


def device_of(config: EvaluationConfig) -> torch.device:
    """Where to run.

    Raises:
        ProtocolError: A GPU is asked for and there is none.
    """
    try:
        return select_device(config.device)
    except ValueError as error:
        raise ProtocolError(str(error)) from None


def load_named(config: EvaluationConfig, **choices: Any) -> Any:
    """The encoder that the config names.

    Args:
        config: With its name.
        **choices: Further arguments of ``load_encoder``.

    Raises:
        ProtocolError: There is none of that name, or it does not take the modalities asked for.
        WeightsError: Its file is damaged.
    """
    try:
        encoder: Any = load_encoder(config.encoder, img_size=config.size, seed=config.init_seed, **choices)
    except WeightsError:
        raise
    except (KeyError, FileNotFoundError, ImportError, ValueError) as error:
        raise ProtocolError(
            f"--encoder {config.encoder}: {error.args[0] if error.args else error}"
        ) from error
    for modality in config.modalities:
        if modality not in encoder.modalities:
            raise ProtocolError(
                f"--modality {config.modality}: {config.encoder} takes only "
                f"{', '.join(encoder.modalities)} images"
            )
    return encoder


def own_inputs(config: EvaluationConfig, encoder: Any) -> dict[str, Any] | None:
    """The encoder's input contract by modality where it standardises the images; None where the dataset does.

    ``auto`` takes the encoder's for published image models that state it, the dataset's for all others.

    Raises:
        ProtocolError: The encoder's are asked for and it has none.
    """
    inputs = getattr(encoder, "inputs", {})
    missing = [modality for modality in config.modalities if modality not in inputs]
    ready_made = config.encoder.startswith(READY_MADE) or config.encoder == LITE_NAME
    if config.normalize == "encoder" and missing:
        raise ProtocolError(
            f"--normalize encoder: {config.encoder} has no {' or '.join(missing)} statistics of its own; "
            "use --normalize dataset"
        )
    own = config.normalize == "encoder" or (config.normalize == "auto" and ready_made and not missing)
    return inputs if own else None


def usable_rows(index: Index, modalities: Sequence[str]) -> np.ndarray:
    """Selected rows that have all the modalities.

    Raises:
        IndexFileError: There are none.
    """
    rows = index.paired_rows if len(modalities) == 2 else index.rows_with(modalities[0])
    if not len(rows):
        raise IndexFileError(
            f"{', '.join(index.folders)}: no row of split {index.splits} has {' and '.join(modalities)}; "
            "choose another --modality"
        )
    return rows


def count_classes(index: Index, labels: Tensor) -> int:
    """Number of classes of a training split: of its class list where it has one."""
    if labels.ndim == 2:
        return labels.shape[1]
    return len(index.classes) or int(labels.max()) + 1


def check_labels(index: Index, rows: np.ndarray, labels: Tensor, num_classes: int, ndim: int) -> None:
    """Refuses labels that a classifier has no logit for.

    Args:
        index: Of the rows.
        rows: Index row of each label.
        labels: (B,) class numbers or (B, K) zeros and ones.
        num_classes: K of the training split.
        ndim: Dimensions of the training split's labels.

    Raises:
        ProtocolError: There are some.
    """
    if labels.ndim != ndim or (ndim == 2 and labels.shape[1] != num_classes):
        raise ProtocolError("one split has a label an image, the other a list of them; prepare both alike")
    outside = (labels < 0) | (labels >= num_classes) if ndim == 1 else None
    if outside is not None and outside.any():
        place = int(outside.nonzero()[0])
        raise ProtocolError(
            f"{', '.join(index.folders)}: row {int(rows[place])} of split "
            f"{index.cell(int(rows[place]), 'split')!r} has label {int(labels[place])}, the classes are 0 to "
            f"{num_classes - 1}; prepare the index again with all its classes"
        )


def labelled_rows(
    config: EvaluationConfig,
    index: Index,
    rows: np.ndarray,
    labels: Tensor,
    num_classes: int,
    seed: int,
    *,
    carve: bool,
) -> tuple[Tensor, Tensor | None]:
    """Positions one seed trains on and, where carved, those that its epoch is chosen on.

    Raises:
        FewShotError: The split holds too little.
        CarvingError: Nothing is left to validate on.
    """
    if config.shots is not None:
        train = few_shot_rows(labels, num_classes, config.shots, seed, config.few_shot)
    else:
        train = label_fraction_rows(labels, num_classes, config.fraction, seed)
    if not carve:
        return train, None
    return carve_validation(
        labels,
        train,
        seed,
        fraction=config.val_fraction,
        shots=config.shots,
        groups=groups_of(index, rows),
    )


def groups_of(index: Index, rows: np.ndarray) -> list[str]:
    """The scene or place of each row, by source; rows of one must not stand on both sides of a choice."""
    return [f"{index.source(row)}/{index.cell(row, 'group')}" for row in map(int, rows)]
