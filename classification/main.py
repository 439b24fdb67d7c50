"""Fine-tuning: how well an encoder classifies once all of it is trained, by the published protocols."""

import copy
import dataclasses
import math
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from codemae.checkpoint import CheckpointError, load_strictly
from codemae.config import load_config, save_config, to_dict
from codemae.data.augmentation import (
    AugmentationConfig,
    AugmentationError,
    ClassificationImages,
    ShuffledBatches,
)
from codemae.data.index import Index, open_index
from codemae.distributed import gather_objects, is_main, process_group, rank, world_size
from codemae.engine.best_step import BestStep, share_buffers, write_lines
from codemae.engine.interruption import Interrupted
from codemae.engine.supervised import (
    Checkpoints,
    SupervisedError,
    SupervisedSettings,
    SupervisedStep,
    train_supervised,
)
from codemae.evaluation.card import CARD_NAME, Card, joint_hash, sample_std
from codemae.evaluation.class_metrics import class_metrics
from codemae.evaluation.features import encoder_hash, rows_hash
from codemae.evaluation.metrics import metric_of, score
from codemae.evaluation.protocol import (
    USER_ERRORS,
    EvaluationConfig,
    ProtocolError,
    check_labels,
    count_classes,
    device_of,
    labelled_rows,
    load_named,
    own_inputs,
    usable_rows,
)
from codemae.models.classifier import Classifier, Head
from codemae.models.layer_decay import LayerDecayError, Variant, parameter_groups

SEEDS = "seeds"
"""Folder of the checkpoints of a run that is under way."""


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
            needs none; ``auto`` is ``last`` with shots, where images to validate on would be labels beyond
            them, else ``val``.
        val_fraction: Share of each class carved off for validation; with shots as many more of each instead.
        evaluate_every: Epochs between evaluations on the split that selects.
        save_every: Epochs between checkpoints, besides those at the end of a seed and when a signal comes.
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
    save_every: int = 10
    head: Head = "norm"
    drop_path: float = 0.1
    layer_decay: LayerDecayConfig = field(default_factory=LayerDecayConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optim: SupervisedSettings = field(default_factory=SupervisedSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


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
class Chosen(BestStep):
    """The classifier of one seed that is reported, and how its training went; part of its checkpoint.

    Attributes:
        last: The last epoch's figure on the split that selects.
        losses: Of the steps of the epoch under way.
    """

    last: float = float("-inf")
    losses: list[float] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> Card:
    """Fine-tunes an encoder once a seed, writes the card and prints the figure.

    Ends with code 2 after a mistake of the user, 1 where a checkpoint could not be written, 143 and 130 after
    SIGTERM and Ctrl-C: the same command then goes on.
    """
    config = load_config(ClassifyConfig, argv, description=__doc__ or "")
    try:
        device = device_of(config)
    except ProtocolError as error:
        raise SystemExit(_explain(error, 2)) from error
    with process_group(device):
        outcome = _outcome(config, device)
    if isinstance(outcome, int):
        raise SystemExit(outcome)
    return outcome


def _outcome(config: ClassifyConfig, device: torch.device) -> Card | int:
    """The card, or an exit code; whatever holds a process group is gone by then."""
    try:
        card = Classification(config, device).run()
        if is_main():
            print(card.sentence())
        return card
    except (*USER_ERRORS, ClassificationError, AugmentationError, LayerDecayError, SupervisedError) as error:
        return _explain(error, 2)
    except CheckpointError as error:
        return _explain(error, 1)
    except Interrupted as stop:
        if is_main():
            print(f"{stop}; saved. The same command goes on.", file=sys.stderr)
        return stop.exit_code


def _explain(error: Exception, code: int) -> int:
    if is_main():
        print(f"error: {error}", file=sys.stderr)
    return code


class Classification:
    """One run: all seeds of one encoder on one dataset."""

    def __init__(self, config: ClassifyConfig, device: torch.device) -> None:
        self.config = config
        if config.data.train_split == config.data.test_split:
            raise ClassificationError(
                f"--data.train_split and --data.test_split are both {config.data.test_split!r}"
            )
        self.folder = Path(config.output_dir)
        self.device = device
        self.train = open_split(config, config.data.train_split)
        self.num_classes = count_classes(self.train.index, self.train.labels)
        self._check(self.train)
        self.encoder: Any = load_for(config, self.train.index)
        self.size = config.size or self.encoder.img_size
        self.inputs = own_inputs(config, self.encoder)
        self.test: Split | None = None
        self.finished: list[Chosen] = []

    def run(self) -> Card:
        """Trains every seed, evaluates each and writes the card."""
        config = self.config
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            save_config(config, self.folder / "config.yaml")
        parts = [self._choose_rows(seed) for seed in range(config.seeds)]
        if config.selected_by == "test":
            self._open_test()
        for seed, part in enumerate(parts):
            self.finished.append(self._train(seed, *part))
        # Under clean and paper the test split is opened only here, with every seed trained and chosen.
        test = self._open_test()
        model = self._classifier(0)
        values: list[float] = []
        metrics: dict[str, list[float]] = {}
        for choice in self.finished:
            load_strictly(model, choice.state)
            logits = self._logits(model, test)
            values.append(score(logits, test.labels))
            for name, value in class_metrics(logits, test.labels).items():
                metrics.setdefault(name, []).append(value)
        card = self._card(test, values, metrics, [choice.last for choice in self.finished])
        if is_main():
            card.save(self.folder / CARD_NAME)
            shutil.rmtree(self.folder / SEEDS)
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

    def _classifier(self, seed: int) -> nn.Module:
        encoder = copy.deepcopy(self.encoder)
        model: nn.Module = Classifier(
            encoder, self.config.modalities, self.num_classes, head=self.config.head, seed=seed
        )
        if world_size() > 1 and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.device)

    def _train(self, seed: int, train: Split, val: Split | None) -> Chosen:
        config, optim = self.config, self.config.optim
        model = self._classifier(seed)
        images = self._images(train, train_mode=True, seed=seed)
        mixing = config.augmentation.mixing(self.num_classes, train.labels.ndim == 2)
        share = min(optim.batch_size, len(train.rows)) // world_size()
        if mixing is not None:
            share -= share % 2
        if share < 2:
            raise ClassificationError(
                f"seed {seed} has {len(train.rows)} training images in batches of {optim.batch_size}; each "
                f"of {world_size()} processes needs 2 of a batch"
            )
        batch_size = share * world_size()
        accumulation = min(optim.grad_accum_steps, len(train.rows) // batch_size)
        settings = dataclasses.replace(optim, grad_accum_steps=accumulation)
        steps = len(train.rows) // batch_size // accumulation
        total_steps = optim.total_steps(steps)
        epochs = math.ceil(total_steps / steps) + 1
        judge = val if val is not None else self.test
        chosen, since = Chosen(), time.perf_counter()

        def batches(done: int) -> DataLoader[Any]:
            sampler = ShuffledBatches(
                len(images),
                batch_size,
                epochs,
                seed,
                rank=rank(),
                world_size=world_size(),
                start=done * accumulation,
            )
            return DataLoader(images, batch_sampler=sampler, num_workers=config.data.num_workers)

        def loss_of(module: nn.Module, batch: tuple[dict[str, Tensor], Tensor]) -> Tensor:
            return classification_loss(module, *batch, mixing, config.augmentation.smoothing, self.device)

        def after_step(report: SupervisedStep) -> None:
            nonlocal since
            if report.finite:
                chosen.losses.append(report.loss)
            epoch, rest = divmod(report.step, steps)
            last = report.step == total_steps
            if rest and not last:
                return
            line: dict[str, Any] = {"seed": seed, "epoch": epoch, "step": report.step, "lr": report.lr}
            mean = float(np.mean(chosen.losses)) if chosen.losses else None
            line |= {"loss": mean, "grad_norm": report.grad_norm}
            chosen.losses.clear()
            share_buffers(model)
            if judge is not None and (last or epoch % config.evaluate_every == 0):
                figure = score(self._logits(model, judge), judge.labels)
                line["test" if judge is self.test else "val"] = figure
                chosen.last = figure
                chosen.offer(model, report.step, figure)
            elif judge is None and last:
                chosen.offer(model, report.step)
            line["seconds"] = round(time.perf_counter() - since, 2)
            since = time.perf_counter()
            chosen.lines.append(line)
            # The seeds before this one stand first, whether they were trained just now or before a resume.
            lines = [line for choice in (*self.finished, chosen) for line in choice.lines]
            write_lines(self.folder / "metrics.jsonl", lines)

        train_supervised(
            model,
            parameter_groups(
                model, "encoder", config.layer_decay.variant, config.layer_decay.decay, optim.weight_decay
            ),
            batches,
            loss_of,
            settings,
            total_steps=total_steps,
            warmup_steps=optim.warmup(steps),
            peak=optim.peak(optim.batch_size * optim.grad_accum_steps),
            device=self.device,
            seed=seed,
            after_step=after_step,
            checkpoints=Checkpoints(
                folder=self.folder / SEEDS / str(seed),
                every=config.save_every * steps,
                identity=self._identity(),
                notes=chosen,
            ),
        )
        if is_main():
            held = f", {chosen.figure:.2f} % on {len(judge.rows)} held-out images" if judge else ""
            said = f"seed {seed}: {len(train.rows)} images, epoch {chosen.step // steps} reported{held}"
            print(said, flush=True)
        return chosen

    def _identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on: all that decides which weights come out."""
        config = to_dict(self.config)
        for key in ("output_dir", "device", "save_every"):
            del config[key]
        config["data"] = {"train_split": rows_hash(self.train.index, self.train.rows)}
        config["data"]["statistics"] = self.train.index.statistics_hash()
        config["data"]["val_split"] = self.config.data.val_split
        return config | {"encoder_hash": encoder_hash(self.config.encoder, self.encoder)}

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
        """(n, K) logits in float32 on the CPU, on every process, each having computed its share of them."""
        count, size = len(split.rows), self.config.data.batch_size
        starts = range(rank() * size, count, world_size() * size)
        batches = [[(0, place) for place in range(start, min(start + size, count))] for start in starts]
        images = self._images(split, train_mode=False)
        loader = DataLoader(images, batch_sampler=batches, num_workers=self.config.data.num_workers)
        model.eval()
        dtype = getattr(torch, self.config.optim.amp)
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
            mine = [model(to_device(sides, self.device)).float().cpu() for sides, _ in loader]
        parts = gather_objects(mine)
        return torch.cat([part for turn in zip_longest(*parts) for part in turn if part is not None])

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
            checkpoint_hash=encoder_hash(config.encoder, self.encoder),
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
                "val_fraction": config.val_fraction if config.selected_by == "val" else None,
                "val_split": config.data.val_split if config.selected_by == "val" else None,
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
        ClassificationError: It has other channels.
        ProtocolError: There is none of that name, it has another modality, or no statistics of its own where
            they are asked for.
    """
    channels = {
        name: max(index.stats(source, name).channels for source in index.source_counts(name))
        for name in config.modalities
    }
    encoder: Any = load_named(config, drop_path=config.drop_path)
    differing = {name: count for name, count in channels.items() if count not in (1, encoder.channels[name])}
    if differing:
        if own_inputs(config, encoder) is not None:
            raise ClassificationError(
                f"{config.encoder} takes {encoder.channels} channels, the dataset has {channels}; "
                "select as many bands when preparing it"
            )
        encoder = load_named(config, drop_path=config.drop_path, channels=dict(encoder.channels) | differing)
    return encoder


def to_device(images: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Images of every modality on a device."""
    return {name: side.to(device, non_blocking=True) for name, side in images.items()}


if __name__ == "__main__":
    main()
