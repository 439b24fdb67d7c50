"""Fine-tuning: how well an encoder classifies once all of it is trained, by the published protocols."""

import copy
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from codemae.checkpoint import WeightsError
from codemae.config import load_config, save_config
from codemae.data.augmentation import (
    AugmentationConfig,
    AugmentationError,
    ClassificationImages,
    ShuffledBatches,
)
from codemae.data.images import ImageError, PathError
from codemae.data.index import Index, IndexFileError, open_index
from codemae.data.statistics import StatisticsError
from codemae.engine.supervised import (
    SupervisedError,
    SupervisedSettings,
    SupervisedStep,
    train_supervised,
)
from codemae.evaluation.card import CARD_NAME, Card, joint_hash, sample_std
from codemae.evaluation.carving import CarvingError
from codemae.evaluation.class_metrics import class_metrics
from codemae.evaluation.features import file_hash, rows_hash, weights_hash
from codemae.evaluation.few_shot import FewShotError
from codemae.evaluation.metrics import metric_of, score
from codemae.evaluation.protocol import (
    EvaluationConfig,
    ProtocolError,
    check_labels,
    check_modalities,
    count_classes,
    device_of,
    labelled_rows,
    own_inputs,
    usable_rows,
)
from codemae.models.classifier import Classifier, Head
from codemae.models.factory import load_encoder
from codemae.models.layer_decay import LayerDecayError, Variant, parameter_groups

USER_ERRORS = (
    IndexFileError,
    StatisticsError,
    PathError,
    ImageError,
    WeightsError,
    FewShotError,
    CarvingError,
    AugmentationError,
    LayerDecayError,
    SupervisedError,
    ProtocolError,
)


class ClassificationError(ValueError):
    """Encoder and data do not fit each other or what was asked for."""


@dataclass(kw_only=True)
class DataConfig:
    """What is classified.

    Attributes:
        index: Folders of labelled indexes, with commas between.
        train_split: Rows to train on.
        test_split: Rows the figure is measured on.
        val_split: Rows choices are made on under ``clean``; null carves them from the training split.
        batch_size: Images a call in evaluation.
        num_workers: Processes that decode images.
    """

    index: list[str]
    train_split: str = "train"
    test_split: str = "test"
    val_split: str | None = None
    batch_size: int = 64
    num_workers: int = 0


@dataclass(kw_only=True)
class LayerDecayConfig:
    """Layer-wise decay of the learning rate; ``codemae layer-decay ARCH`` prints the scales.

    Attributes:
        variant: How layers are numbered.
        decay: Factor from a layer to the one before it; 1 for none.
    """

    variant: Variant = "official"
    decay: float = 0.85


@dataclass(kw_only=True)
class ClassifyConfig(EvaluationConfig):
    """Keys of the command line and of ``configs/*.yaml``.

    Attributes:
        encoder: FILE, released NAME, random:ARCH, random:FILE, timm:NAME or efficientnet_lite0.
        data: What is classified.
        modality: Which images; with ``both`` the encoder sees each and the head their features side by side.
        output_dir: Folder of ``results.json``, ``config.yaml`` and ``metrics.jsonl``.
        shots: Training images a class; null takes all.
        few_shot: ``per_class`` draws them of each class, ``official`` shots x classes from the whole split.
        fraction: Share of the labels that may be used, of each class alike; 1 takes all.
        seeds: How many: 0, 1, ...
        protocol: ``clean`` opens the test split when all is trained, ``paper`` reports the last epoch,
            ``official`` the best evaluated epoch on the test split.
        select: Under ``clean``: ``val`` reports the epoch best on validation images, ``last`` the last and
            needs none.
        val_fraction: Share of each class carved off for validation; with shots as many more of each instead.
        evaluate_every: Epochs between evaluations on the split that selects.
        head: Of the classifier; ``batch_norm`` is that of the SAR target benchmarks.
        drop_path: Largest stochastic depth rate of the encoder; without effect on timm models.
        layer_decay: Of the learning rate.
        augmentation: Of the images.
        optim: How the classifier is trained.
        size: Side of the images; the encoder's own when null.
        normalize: Whose mean and deviation standardise the images; ``auto`` takes the encoder's for published
            image models (timm:NAME, efficientnet_lite0) and the dataset's for all others.
        init_seed: Of the weights of ``random:`` encoders.
        device: Where to run.
    """

    data: DataConfig
    seeds: int = 1
    evaluate_every: int = 5
    head: Head = "norm"
    drop_path: float = 0.1
    layer_decay: LayerDecayConfig = field(default_factory=LayerDecayConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optim: SupervisedSettings = field(default_factory=SupervisedSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluate_every < 1:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Labelled rows of an index.

    Attributes:
        index: The index.
        rows: Those that have all modalities asked for.
        labels: (n,) class numbers or (n, K) zeros and ones.
    """

    index: Index
    rows: np.ndarray
    labels: Tensor

    def part(self, places: Tensor) -> "Split":
        """Some of the rows."""
        return Split(index=self.index, rows=self.rows[places.numpy()], labels=self.labels[places])


@dataclass
class Chosen:
    """The classifier of one seed that is reported.

    Attributes:
        state: Its weights.
        epoch: Epochs done.
        figure: On the split that selected it; none where none did.
        last: The last epoch's figure on that split.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    figure: float = float("-inf")
    last: float = float("-inf")


def main(argv: Sequence[str] | None = None) -> Card:
    """Fine-tunes an encoder once a seed, writes the card and prints the figure."""
    config = load_config(ClassifyConfig, argv, description=__doc__ or "")
    try:
        card = Classification(config).run()
    except (*USER_ERRORS, ClassificationError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(card.sentence())
    return card


class Classification:
    """One run: all seeds of one encoder on one dataset."""

    def __init__(self, config: ClassifyConfig) -> None:
        self.config = config
        if config.data.train_split == config.data.test_split:
            raise ClassificationError(
                f"--data.train_split and --data.test_split are both {config.data.test_split!r}"
            )
        self.folder = Path(config.output_dir)
        self.device = device_of(config)
        self.train = open_split(config, config.data.train_split)
        self.num_classes = count_classes(self.train.index, self.train.labels)
        self._check(self.train)
        self.encoder: Any = load_for(config, self.train.index)
        self.size = config.size or self.encoder.img_size
        self.inputs = own_inputs(config, self.encoder)
        self.test: Split | None = None

    def run(self) -> Card:
        """Trains every seed, evaluates each and writes the card."""
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        save_config(config, self.folder / "config.yaml")
        (self.folder / "metrics.jsonl").write_text("")
        parts = [self._choose_rows(seed) for seed in range(config.seeds)]
        if config.selected_by == "test":
            self._open_test()
        chosen = [self._train(seed, *part) for seed, part in enumerate(parts)]
        # Under clean and paper the test split is opened only here, with every seed trained and chosen.
        test = self._open_test()
        model = self._classifier(0)
        values: list[float] = []
        metrics: dict[str, list[float]] = {}
        for choice in chosen:
            model.load_state_dict(choice.state)
            logits = self._logits(model, test)
            values.append(score(logits, test.labels))
            for name, value in class_metrics(logits, test.labels).items():
                metrics.setdefault(name, []).append(value)
        card = self._card(test, values, metrics, [choice.last for choice in chosen])
        card.save(self.folder / CARD_NAME)
        return card

    def _open_test(self) -> Split:
        if self.test is None:
            self.test = open_split(self.config, self.config.data.test_split)
            self._check(self.test)
        return self.test

    def _check(self, split: Split) -> None:
        check_labels(split.index, split.rows, split.labels, self.num_classes, self.train.labels.ndim)

    def _choose_rows(self, seed: int) -> tuple[Split, Split | None]:
        """What one seed trains on and, where validation selects, what it is validated on."""
        config, train = self.config, self.train
        carve = config.selected_by == "val" and config.data.val_split is None
        rows, held_out = labelled_rows(
            config, train.index, train.rows, train.labels, self.num_classes, seed, carve=carve
        )
        if held_out is not None:
            return train.part(rows), train.part(held_out)
        if config.selected_by != "val" or config.data.val_split is None:
            return train.part(rows), None
        val = open_split(config, config.data.val_split)
        self._check(val)
        return train.part(rows), val

    def _classifier(self, seed: int) -> Classifier:
        encoder = copy.deepcopy(self.encoder)
        model = Classifier(
            encoder, self.config.modalities, self.num_classes, head=self.config.head, seed=seed
        )
        return model.to(self.device)

    def _train(self, seed: int, train: Split, val: Split | None) -> Chosen:
        config, optim = self.config, self.config.optim
        model = self._classifier(seed)
        images = self._images(train, train_mode=True, seed=seed)
        mixing = config.augmentation.mixing(self.num_classes, train.labels.ndim == 2)
        batch_size = min(optim.batch_size, len(train.rows))
        if mixing is not None and batch_size % 2:
            batch_size -= 1
        if batch_size < 2:
            raise ClassificationError(f"seed {seed} has {len(train.rows)} training images; 2 are needed")
        sampler = ShuffledBatches(len(images), batch_size, optim.epochs, seed)
        accumulation = min(optim.grad_accum_steps, sampler.batches)
        settings = dataclasses.replace(optim, grad_accum_steps=accumulation)
        steps = sampler.batches // accumulation
        loader = DataLoader(images, batch_sampler=sampler, num_workers=config.data.num_workers)
        judge = val if val is not None else self.test
        chosen, losses, since = Chosen(), [], time.perf_counter()

        def loss_of(batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
            return classification_loss(model, *batch, mixing, config.augmentation.smoothing, self.device)

        def after_step(report: SupervisedStep) -> None:
            nonlocal since
            losses.append(report.loss)
            epoch, rest = divmod(report.step, steps)
            if rest:
                return
            last = epoch == optim.epochs
            line: dict[str, Any] = {"seed": seed, "epoch": epoch, "step": report.step, "lr": report.lr}
            line |= {"loss": float(np.mean(losses)), "grad_norm": report.grad_norm}
            losses.clear()
            if judge is not None and (last or epoch % config.evaluate_every == 0):
                figure = score(self._logits(model, judge), judge.labels)
                line["test" if judge is self.test else "val"] = figure
                chosen.last = figure
                if figure > chosen.figure:
                    chosen.figure, chosen.epoch, chosen.state = figure, epoch, host_state(model)
            elif judge is None and last:
                chosen.epoch, chosen.state = epoch, host_state(model)
            line["seconds"] = round(time.perf_counter() - since, 2)
            since = time.perf_counter()
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

        train_supervised(
            model,
            parameter_groups(
                model, "encoder", config.layer_decay.variant, config.layer_decay.decay, optim.weight_decay
            ),
            loader,
            loss_of,
            settings,
            total_steps=steps * optim.epochs,
            warmup_steps=round(steps * optim.warmup_epochs),
            peak=optim.peak(optim.batch_size * optim.grad_accum_steps),
            device=self.device,
            seed=seed,
            after_step=after_step,
        )
        held_out = f", {chosen.figure:.2f} % on {len(judge.rows)} held-out images" if judge else ""
        print(f"seed {seed}: {len(train.rows)} images, epoch {chosen.epoch} reported{held_out}", flush=True)
        return chosen

    def _images(self, split: Split, *, train_mode: bool, seed: int = 0) -> ClassificationImages:
        return ClassificationImages(
            split.index,
            self.config.modalities,
            self.size,
            split.rows,
            split.labels,
            self.config.augmentation,
            train=train_mode,
            seed=seed,
            inputs=self.inputs,
        )

    @torch.no_grad()
    def _logits(self, model: nn.Module, split: Split) -> Tensor:
        """(n, K) logits in float32 on the CPU."""
        count, size = len(split.rows), self.config.data.batch_size
        batches = [
            [(0, place) for place in range(start, min(start + size, count))]
            for start in range(0, count, size)
        ]
        images = self._images(split, train_mode=False)
        loader = DataLoader(images, batch_sampler=batches, num_workers=self.config.data.num_workers)
        model.eval()
        dtype = getattr(torch, self.config.optim.amp)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = [model(to_device(sides, self.device)).float().cpu() for sides, _ in loader]
        return torch.cat(logits)

    def _card(
        self, test: Split, values: list[float], metrics: dict[str, list[float]], last: list[float]
    ) -> Card:
        config = self.config
        also = {}
        if config.selected_by == "test":
            also["paper"] = {
                "selected_by": "last",
                "values": last,
                "mean": float(np.mean(last)),
                "std": sample_std(last),
            }
        return Card(
            task="classification",
            dataset="+".join(sorted(self.train.index.source_counts(config.modalities[0]))),
            split_hash=joint_hash(
                [rows_hash(self.train.index, self.train.rows), rows_hash(test.index, test.rows)]
            ),
            statistics_hash=self.train.index.statistics_hash(),
            encoder=config.encoder,
            checkpoint_hash=(
                file_hash(config.encoder) if Path(config.encoder).is_file() else weights_hash(self.encoder)
            ),
            modality=config.modality,
            protocol=config.protocol,
            selected_by=config.selected_by,
            metric=metric_of(test.labels),
            seeds=list(range(config.seeds)),
            values=values,
            shots=config.shots,
            few_shot=config.few_shot if config.shots else None,
            size=self.size,
            normalisation="dataset" if self.inputs is None else "encoder",
            settings={
                "head": config.head,
                "drop_path": config.drop_path,
                "layer_decay": asdict(config.layer_decay),
                "augmentation": asdict(config.augmentation),
                "optim": asdict(config.optim),
                "evaluate_every": config.evaluate_every,
                "fraction": config.fraction,
                "val_fraction": config.val_fraction,
                "val_split": config.data.val_split,
            },
            metrics=metrics,
            also=also,
        )


def classification_loss(
    model: nn.Module,
    images: dict[str, Tensor],
    labels: Tensor,
    mixing: Any,
    smoothing: float,
    device: torch.device,
) -> Tensor:
    """Cross-entropy of one label an image, soft margin of several; of mixed images where asked."""
    sides, labels = to_device(images, device), labels.to(device)
    if mixing is not None:
        # One draw of mixing must hold for both modalities, so they pass through it as one stack of channels.
        counts = [side.shape[1] for side in sides.values()]
        mixed, labels = mixing(torch.cat(list(sides.values()), dim=1), labels)
        sides = dict(zip(sides, mixed.split(counts, dim=1), strict=True))
    logits = model(sides).float()
    if labels.ndim == 1:
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    if mixing is not None and not mixing.multi_label:
        return SoftTargetCrossEntropy()(logits, labels)
    return functional.multilabel_soft_margin_loss(logits, labels.float())


def open_split(config: ClassifyConfig, name: str) -> Split:
    """The rows of a split that have the modalities asked for.

    Raises:
        IndexFileError: There are none, or they have no labels.
    """
    index = open_index(config.data.index, name)
    rows = usable_rows(index, config.modalities)
    return Split(index=index, rows=rows, labels=torch.from_numpy(index.labels(rows)))


def load_for(config: ClassifyConfig, index: Index) -> Any:
    """The encoder, its patch embeddings adapted to the index's channels.

    Raises:
        ClassificationError: There is none of that name, or it has other channels.
        ProtocolError: It has another modality, or no statistics of its own where they are asked for.
    """
    channels = {
        name: max(index.stats(source, name).channels for source in index.source_counts(name))
        for name in config.modalities
    }
    encoder: Any = _load(config, None)
    check_modalities(config, encoder)
    differing = {name: count for name, count in channels.items() if count not in (1, encoder.channels[name])}
    if differing:
        if own_inputs(config, encoder) is not None:
            raise ClassificationError(
                f"{config.encoder} takes {encoder.channels} channels, the dataset has {channels}; "
                "select as many bands when preparing it"
            )
        encoder = _load(config, dict(encoder.channels) | differing)
    return encoder


def _load(config: ClassifyConfig, channels: dict[str, int] | None) -> Any:
    try:
        return load_encoder(
            config.encoder,
            img_size=config.size,
            channels=channels,
            seed=config.init_seed,
            drop_path=config.drop_path,
        )
    except (KeyError, FileNotFoundError, ImportError, ValueError) as error:
        raise ClassificationError(
            f"--encoder {config.encoder}: {error.args[0] if error.args else error}"
        ) from error


def to_device(images: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Images of every modality on a device."""
    return {name: side.to(device, non_blocking=True) for name, side in images.items()}


def host_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


if __name__ == "__main__":
    main()
