"""Linear probing: how much a frozen encoder's features already say, by the published protocol."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from codemae.checkpoint import WeightsError
from codemae.config import load_config, save_config
from codemae.data.images import ImageError, PathError
from codemae.data.index import Index, IndexFileError, open_index
from codemae.data.statistics import StatisticsError
from codemae.evaluation.card import CARD_NAME, Card, Protocol, SelectedBy, joint_hash, sample_std
from codemae.evaluation.features import FeatureStore, file_hash, rows_hash, weights_hash
from codemae.evaluation.metrics import metric_of
from codemae.evaluation.probe import (
    FewShot,
    ProbeError,
    ProbeSettings,
    evaluate_probes,
    few_shot_rows,
    normalise_features,
    train_probes,
)
from codemae.models.factory import load_encoder
from codemae.models.lite import LITE_NAME

USER_ERRORS = (IndexFileError, StatisticsError, PathError, ImageError, WeightsError, ProbeError)
Reading = tuple[Protocol, SelectedBy, list[float]]


@dataclass(kw_only=True)
class DataConfig:
    """What is probed.

    Attributes:
        index: Folders of labelled indexes, with commas between.
        train_split: Rows the classifiers train on.
        test_split: Rows the figure is measured on.
        batch_size: Images an encoder call, while features are extracted.
        num_workers: Processes that decode images.
    """

    index: list[str]
    train_split: str = "train"
    test_split: str = "test"
    batch_size: int = 64
    num_workers: int = 0


@dataclass(kw_only=True)
class ProbeConfig:
    """Keys of the command line and of ``configs/*.yaml``.

    Attributes:
        encoder: FILE, released NAME, random:ARCH, random:FILE, timm:NAME or efficientnet_lite0.
        data: What is probed.
        modality: Which images; ``both`` puts the two features side by side.
        output_dir: Folder of ``results.json`` and ``config.yaml``.
        shots: Training images a class; null takes all.
        few_shot: ``per_class`` draws them of each class, ``official`` shots x classes from the whole split.
        seeds: How many: 0, 1, ...
        protocol: ``clean`` reports the last epoch, ``official`` the best evaluated one on the test split.
        size: Side the images are resized to; the encoder's own when null.
        normalize: Whose mean and deviation standardise the images; ``auto`` takes the encoder's for published
            image models (timm:NAME, efficientnet_lite0) and the dataset's for all others.
        init_seed: Of the weights of ``random:`` encoders.
        probe: How the classifier is trained.
        cache_dir: Where features are kept; ``output_dir``/features when null.
        device: Where to run.
    """

    encoder: str
    data: DataConfig
    output_dir: str
    modality: Literal["optical", "sar", "both"] = "optical"
    shots: int | None = None
    few_shot: FewShot = "per_class"
    seeds: int = 5
    protocol: Literal["clean", "official"] = "clean"
    size: int | None = None
    normalize: Literal["auto", "dataset", "encoder"] = "auto"
    init_seed: int = 0
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    cache_dir: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; it must be at least 1")

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities probed."""
        return ("optical", "sar") if self.modality == "both" else (self.modality,)

    @property
    def normalisation(self) -> str:
        """``normalize`` with ``auto`` decided."""
        if self.normalize != "auto":
            return self.normalize
        return "encoder" if self.encoder.startswith("timm:") or self.encoder == LITE_NAME else "dataset"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One side of the probe.

    Attributes:
        index: The rows.
        rows: Those that have all modalities asked for.
        features: (B, D), layer-normalised, modalities side by side.
        labels: (B,) class numbers or (B, K) zeros and ones.
    """

    index: Index
    rows: np.ndarray
    features: Tensor
    labels: Tensor

    @property
    def hash(self) -> str:
        """Names the samples."""
        return rows_hash(self.index, self.rows)


def main(argv: Sequence[str] | None = None) -> Card:
    """Probes an encoder, writes the card and prints the figure."""
    config = load_config(ProbeConfig, argv, description=__doc__ or "")
    try:
        card = probe(config)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    print(card.sentence())
    return card


def probe(config: ProbeConfig) -> Card:
    """Trains on features of the training split, then opens the test split and writes the card."""
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, output_dir / "config.yaml")
    if config.data.train_split == config.data.test_split:
        raise ProbeError(f"--data.train_split and --data.test_split are both {config.data.test_split!r}")
    device = "cuda" if config.device == "auto" and torch.cuda.is_available() else config.device
    device = "cpu" if device == "auto" else device

    train_index = open_index(config.data.index, config.data.train_split)
    store = _feature_store(config, device)

    clock = time.perf_counter()
    train = _split(store, train_index, config.modalities)
    clock = _say(f"features of {len(train.labels)} training images", clock)
    num_classes = _num_classes(train)
    seeds = list(range(config.seeds))
    subsets = [
        few_shot_rows(train.labels, num_classes, config.shots, seed, config.few_shot) for seed in seeds
    ]
    states = train_probes(
        train.features.to(device), train.labels.to(device), num_classes, subsets, seeds, config.probe
    )
    clock = _say(f"{len(seeds)} classifiers on {', '.join(str(len(rows)) for rows in subsets)} images", clock)

    # Only now: nothing that was fitted can depend on the evaluated split.
    test_index = open_index(config.data.index, config.data.test_split)
    test = _split(store, test_index, config.modalities)
    _check_labels(test, num_classes, train.labels.ndim)
    figures = evaluate_probes(states, test.features.to(device), test.labels.to(device))
    _say(f"features and figures of {len(test.labels)} test images", clock)

    card = _card(config, store, train, test, figures)
    card.save(output_dir / CARD_NAME)
    return card


def _load(config: ProbeConfig) -> Any:
    try:
        encoder: Any = load_encoder(config.encoder, img_size=config.size, seed=config.init_seed)
    except (KeyError, FileNotFoundError, ImportError, ValueError) as error:
        raise ProbeError(f"--encoder {config.encoder}: {error.args[0] if error.args else error}") from error
    for modality in config.modalities:
        if modality not in encoder.modalities:
            raise ProbeError(
                f"--modality {config.modality}: {config.encoder} takes only "
                f"{', '.join(encoder.modalities)} images"
            )
    return encoder


def _feature_store(config: ProbeConfig, device: str) -> FeatureStore:
    encoder = _load(config)
    inputs = None
    if config.normalisation == "encoder":
        inputs = getattr(encoder, "inputs", {})
        if missing := [modality for modality in config.modalities if modality not in inputs]:
            raise ProbeError(
                f"--normalize encoder: {config.encoder} has no {' or '.join(missing)} statistics of its own; "
                "use --normalize dataset"
            )
    return FeatureStore(
        encoder,
        file_hash(config.encoder) if Path(config.encoder).is_file() else weights_hash(encoder),
        config.size or encoder.img_size,
        Path(config.cache_dir) if config.cache_dir else Path(config.output_dir) / "features",
        inputs=inputs,
        device=device,
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
    )


def _split(store: FeatureStore, index: Index, modalities: Sequence[str]) -> Split:
    rows = index.paired_rows if len(modalities) == 2 else index.rows_with(modalities[0])
    if not len(rows):
        raise IndexFileError(
            f"{', '.join(index.folders)}: no row of split {index.splits} has {' and '.join(modalities)}; "
            "choose another --modality"
        )
    sides = [store.features(index, modality, rows) for modality in modalities]
    features = torch.cat([normalise_features(side.values) for side in sides], dim=1)
    return Split(index=index, rows=rows, features=features, labels=sides[0].labels)


def _num_classes(train: Split) -> int:
    if train.labels.ndim == 2:
        return train.labels.shape[1]
    return len(train.index.classes) or int(train.labels.max()) + 1


def _check_labels(test: Split, num_classes: int, ndim: int) -> None:
    if test.labels.ndim != ndim or (ndim == 2 and test.labels.shape[1] != num_classes):
        raise ProbeError("one split has a label an image, the other a list of them; prepare both alike")
    if ndim == 1 and (unseen := int(test.labels.max())) >= num_classes:
        raise ProbeError(
            f"the test split has a class {unseen}, the training split only 0 to {num_classes - 1}"
        )


def _card(
    config: ProbeConfig,
    store: FeatureStore,
    train: Split,
    test: Split,
    figures: dict[int, list[float]],
) -> Card:
    last = figures[config.probe.epochs]
    best = [max(values) for values in zip(*figures.values(), strict=True)]
    clean: Reading = ("clean", "last", last)
    official: Reading = ("official", "test", best)
    (protocol, selected_by, values), other = (
        (clean, official) if config.protocol == "clean" else (official, clean)
    )
    return Card(
        task="linear_probing",
        dataset="+".join(sorted(train.index.source_counts(config.modalities[0]))),
        split_hash=joint_hash([train.hash, test.hash]),
        statistics_hash=train.index.statistics_hash(),
        encoder=config.encoder,
        checkpoint_hash=store.checkpoint_hash,
        modality=config.modality,
        protocol=protocol,
        selected_by=selected_by,
        metric=metric_of(test.labels),
        seeds=list(range(config.seeds)),
        values=values,
        shots=config.shots,
        few_shot=config.few_shot if config.shots else None,
        size=store.size,
        normalisation=config.normalisation,
        settings=asdict(config.probe),
        also={
            other[0]: {
                "selected_by": other[1],
                "values": other[2],
                "mean": float(np.mean(other[2])),
                "std": sample_std(other[2]),
            }
        },
    )


def _say(what: str, since: float) -> float:
    now = time.perf_counter()
    print(f"{what}: {now - since:.1f} s", flush=True)
    return now


if __name__ == "__main__":
    main()
