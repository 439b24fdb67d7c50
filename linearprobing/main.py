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

from codemae.config import load_config, save_config
from codemae.data.index import Index, open_index
from codemae.evaluation.card import CARD_NAME, Card, joint_hash, sample_std
from codemae.evaluation.carving import carve_validation
from codemae.evaluation.features import FeatureStore, encoder_hash, rows_hash
from codemae.evaluation.knn import NEIGHBOURS, TEMPERATURE, knn_scores
from codemae.evaluation.metrics import metric_of, score
from codemae.evaluation.probe import (
    ProbeError,
    ProbeSettings,
    best_epochs,
    evaluate_probes,
    normalise_features,
    train_probes,
)
from codemae.evaluation.protocol import (
    USER_ERRORS,
    EvaluationConfig,
    check_labels,
    count_classes,
    device_of,
    groups_of,
    labelled_rows,
    load_named,
    own_inputs,
    usable_rows,
)
from codemae.models.bands import BandFilling, filling_for

HOLD_OUT_SEED = 31


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
class ProbeConfig(EvaluationConfig):
    """Keys of the command line and of ``configs/*.yaml``.

    Attributes:
        encoder: FILE, released NAME, random:ARCH, random:FILE, timm:NAME[:FILE], torchgeo:NAME[:WEIGHTS] or
            efficientnet_lite0.
        data: What is probed.
        modality: Which images; ``both`` puts the two features side by side, which an encoder that fuses
            modalities makes of both images at once.
        output_dir: Folder of ``results.json`` and ``config.yaml``.
        shots: Training images a class; null takes all.
        few_shot: ``per_class`` draws them of each class, ``official`` shots x classes from the whole split.
        fraction: Share of the labels that may be used, of each class alike; 1 takes all.
        seeds: How many: 0, 1, ...
        protocol: ``clean`` never selects on the test split, ``paper`` reports the last epoch, ``official``
            the best evaluated one on the test split.
        select: Under ``clean``: ``val`` reports the epoch that is best on images carved from the training
            split, ``last`` the last and carves none; ``auto`` is ``last`` with shots, where images to
            validate on would be labels beyond them, else ``val``.
        val_fraction: Share of each class that is carved off; with shots as many more of each class instead.
        hold_out: Share of each class of the training split that is set apart, the same images for every seed,
            and takes the test split's place, which is not opened: for choosing settings of a pretraining. 0
            sets none apart.
        neighbours: Of the nearest-neighbour figure; 0 leaves it out.
        size: Side the images are resized to; the encoder's own when null.
        normalize: Whose mean and deviation standardise the images; ``auto`` takes the encoder's for published
            image models that state it (timm:NAME, efficientnet_lite0) and the dataset's for all others.
        bands: What fills bands that the encoder takes and the dataset lacks; ``auto``: the mean of RGB, or of
            VV and VH.
        init_seed: Of the weights of ``random:`` encoders.
        probe: How the classifier is trained.
        cache_dir: Where features are kept; ``output_dir``/features when null.
        device: Where to run.
    """

    data: DataConfig
    hold_out: float = 0.0
    neighbours: int = NEIGHBOURS
    bands: Literal["auto", "repeat", "rgb_mean", "vv_vh_mean", "zero"] = "auto"
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.hold_out < 1:
            raise ValueError(
                f"hold_out is {self.hold_out:g}; it must be 0 (none set apart) or a share below 1, as in 0.5"
            )
        if self.neighbours < 0:
            raise ValueError(f"neighbours is {self.neighbours}; it must be 0 (no such figure) or more")


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
    except (*USER_ERRORS, ProbeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(card.sentence())
    return card


def probe(config: ProbeConfig) -> Card:
    """Trains on features of the training split, then opens the test split and writes the card."""
    output_dir = Path(config.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    save_config(config, output_dir / "config.yaml")
    if config.data.train_split == config.data.test_split:
        raise ProbeError(f"--data.train_split and --data.test_split are both {config.data.test_split!r}")
    device = device_of(config)
    train_index = open_index(config.data.index, config.data.train_split)
    store = _feature_store(config, train_index, device)

    clock = time.perf_counter()
    train = _split(store, train_index, config.modalities)
    clock = _say(f"features of {len(train.labels)} training images", clock)
    held_out = None
    if config.hold_out:
        train, held_out = _set_apart(train, config.hold_out)
    num_classes = count_classes(train_index, train.labels)
    check_labels(train_index, train.rows, train.labels, num_classes, train.labels.ndim)
    seeds = list(range(config.seeds))
    subsets, validations = _subsets(config, train, num_classes, seeds)
    features, labels = train.features.to(device), train.labels.to(device)
    states = train_probes(features, labels, num_classes, subsets, seeds, config.probe)
    chosen = {"last": [config.probe.epochs] * len(seeds)}
    if validations:
        chosen["val"] = best_epochs(states, features, labels, validations)
    clock = _say(f"{len(seeds)} classifiers on {', '.join(str(len(rows)) for rows in subsets)} images", clock)

    # Only now: nothing that was fitted or chosen can depend on the evaluated split.
    test = held_out or _split(store, open_index(config.data.index, config.data.test_split), config.modalities)
    check_labels(test.index, test.rows, test.labels, num_classes, train.labels.ndim)
    queries, answers = test.features.to(device), test.labels.to(device)
    figures = evaluate_probes(states, queries, answers)
    evaluated = "test" if held_out is None else "held-out training"
    clock = _say(f"features and figures of {len(test.labels)} {evaluated} images", clock)
    metrics = {}
    if config.neighbours:
        metrics[f"knn_{metric_of(answers)}"] = _knn(
            config.neighbours, features, labels, num_classes, subsets, queries, answers
        )
        _say(f"{config.neighbours} nearest neighbours", clock)

    readings = {
        rule: [figures[epoch][place] for place, epoch in enumerate(epochs)] for rule, epochs in chosen.items()
    }
    readings["test"] = [max(values) for values in zip(*figures.values(), strict=True)]
    card = _card(config, store, train, test, readings, metrics)
    card.save(output_dir / CARD_NAME)
    return card


def _subsets(
    config: ProbeConfig, train: Split, num_classes: int, seeds: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """The rows each seed trains on, and those it validates on where it does."""
    subsets, validations = [], []
    for seed in seeds:
        rows, validation = labelled_rows(
            config,
            train.index,
            train.rows,
            train.labels,
            num_classes,
            seed,
            carve=config.selected_by == "val",
        )
        subsets.append(rows)
        if validation is not None:
            validations.append(validation)
    return subsets, validations


def _knn(
    neighbours: int,
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    subsets: Sequence[Tensor],
    queries: Tensor,
    answers: Tensor,
) -> list[float]:
    """The nearest-neighbour figure of each seed's training rows."""
    values: list[float] = []
    for place, rows in enumerate(subsets):
        if place and torch.equal(rows, subsets[place - 1]):
            values.append(values[-1])
            continue
        known = rows.to(features.device)
        scores = knn_scores(features[known], labels[known], queries, num_classes, neighbours)
        values.append(score(scores, answers))
    return values


def _feature_store(config: ProbeConfig, index: Index, device: torch.device) -> FeatureStore:
    encoder = load_named(config)
    return FeatureStore(
        encoder,
        encoder_hash(config.encoder, encoder),
        config.size or encoder.img_size,
        Path(config.cache_dir) if config.cache_dir else Path(config.output_dir) / "features",
        inputs=own_inputs(config, encoder),
        fillings=_fillings(config, index, encoder),
        device=device,
        batch_size=config.data.batch_size,
        num_workers=config.data.num_workers,
    )


def _fillings(config: ProbeConfig, index: Index, encoder: Any) -> dict[str, BandFilling]:
    fillings = {}
    for modality in config.modalities:
        described = [index.stats(source, modality) for source in index.source_counts(modality)]
        if not described:
            continue
        widest = max(described, key=lambda statistics: statistics.channels)
        given = widest.bands or widest.channels
        wanted = getattr(encoder, "bands", {}).get(modality) or encoder.channels[modality]
        if (filling := filling_for(modality, given, wanted, config.bands)) is not None:
            fillings[modality] = filling
    return fillings


def _split(store: FeatureStore, index: Index, modalities: Sequence[str]) -> Split:
    rows = usable_rows(index, modalities)
    sides = store.features_of_places(index, modalities, rows)
    features = torch.cat([normalise_features(side.values) for side in sides], dim=1)
    return Split(index=index, rows=rows, features=features, labels=sides[0].labels)


def _set_apart(train: Split, share: float) -> tuple[Split, Split]:
    """Divides a split into the part to train on and the part that stands for the test split."""
    kept, apart = carve_validation(
        train.labels,
        torch.arange(len(train.labels)),
        HOLD_OUT_SEED,
        fraction=share,
        groups=groups_of(train.index, train.rows),
    )
    return _part(train, kept), _part(train, apart)


def _part(split: Split, rows: Tensor) -> Split:
    """The rows at these positions of a split."""
    return Split(
        index=split.index,
        rows=split.rows[rows.numpy()],
        features=split.features[rows],
        labels=split.labels[rows],
    )


def _card(
    config: ProbeConfig,
    store: FeatureStore,
    train: Split,
    test: Split,
    readings: dict[str, list[float]],
    metrics: dict[str, list[float]],
) -> Card:
    settings = asdict(config.probe) | {"fraction": config.fraction}
    if config.selected_by == "val":
        settings["val_fraction"] = config.val_fraction
    if config.hold_out:
        settings["hold_out"] = config.hold_out
    if config.neighbours:
        settings |= {"neighbours": config.neighbours, "knn_temperature": TEMPERATURE}
    fillings = [f"{modality} {filling}" for modality, filling in store.fillings.items()]
    return Card(
        task="linear_probing",
        dataset="+".join(sorted(train.index.source_counts(config.modalities[0]))),
        split_hash=joint_hash([train.hash, test.hash]),
        statistics_hash=train.index.statistics_hash(),
        encoder=config.encoder,
        checkpoint_hash=store.checkpoint_hash,
        modality=config.modality,
        protocol=config.protocol,
        selected_by=config.selected_by,
        metric=metric_of(test.labels),
        seeds=list(range(config.seeds)),
        values=readings[config.selected_by],
        shots=config.shots,
        few_shot=config.few_shot if config.shots else None,
        size=store.size,
        normalisation="dataset" if store.inputs is None else "encoder",
        bands="; ".join(fillings) or None,
        settings=settings,
        metrics=metrics,
        also={
            rule: {"values": values, "mean": float(np.mean(values)), "std": sample_std(values)}
            for rule, values in readings.items()
            if rule != config.selected_by
        },
    )


def _say(what: str, since: float) -> float:
    now = time.perf_counter()
    print(f"{what}: {now - since:.1f} s", flush=True)
    return now


if __name__ == "__main__":
    main()
