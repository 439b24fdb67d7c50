"""Keys of the command line and of ``configs/*.yaml``."""

from dataclasses import dataclass, field
from typing import Literal

from codemae.data.bitemporal import JointAugmentation
from codemae.engine.schedule import Shape
from codemae.engine.supervised import SupervisedSettings
from codemae.evaluation.card import Protocol, SelectedBy
from codemae.losses.segmentation import DamageTerms
from codemae.models.damage import DamageHead
from codemae.models.layer_decay import Variant
from codemae.scenes.tiling import TilingConfig

Dates = Literal["both", "pre", "post"]

COLOURS: tuple[tuple[int, int, int], ...] = (
    (255, 255, 255),
    (70, 181, 121),
    (228, 189, 139),
    (182, 70, 69),
)
"""Background, intact, damaged, destroyed."""


class DamageError(ValueError):
    """Data, model and what was asked for do not fit each other."""


@dataclass(kw_only=True)
class DataConfig:
    """What is trained and evaluated on.

    Attributes:
        index: Folders of indexes, with commas between.
        train_split: Rows to train on.
        select_split: Rows that choose the reported step under ``clean``; BRIGHT's holdout.
        report_splits: Rows the figures are measured on, each with a card of its own.
        post_modality: Kind of the second date's images.
        classes: Names, background first.
        mask_values: Stored value of each class.
        ignore_values: Stored values that mean no label.
        event: Regular expression whose first group, in a row's group, names its disaster.
        held_out_event: Cross-event transfer: this disaster is left out of training and selection, and only
            its tiles are reported on. Null for none.
        shots: Tiles of that disaster in training, and as many in selection: 0 or 1.
        shot_train: With one shot, a file that lists tiles for training; only the held-out disaster's count.
        shot_select: The same for selection. Without the files the tiles are drawn by the seed.
        cross_event_report: Which tiles of that disaster are reported on: ``all`` that were not trained or
            selected on, or those of the ``split`` named in report_splits.
        num_workers: Processes that decode images.
    """

    index: list[str] = field(default_factory=list)
    train_split: str = "train"
    select_split: str = "holdout"
    report_splits: list[str] = field(default_factory=lambda: ["val", "test"])
    post_modality: Literal["sar", "optical"] = "sar"
    classes: list[str] = field(default_factory=lambda: ["background", "intact", "damaged", "destroyed"])
    mask_values: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    ignore_values: list[int] = field(default_factory=lambda: [255])
    event: str = r"^(.+)_\d+$"
    held_out_event: str | None = None
    shots: Literal[0, 1] = 0
    shot_train: str | None = None
    shot_select: str | None = None
    cross_event_report: Literal["all", "split"] = "all"
    num_workers: int = 0

    def __post_init__(self) -> None:
        if len(self.classes) != len(self.mask_values) or len(self.classes) < 2:
            raise ValueError(
                "data.classes and data.mask_values need one entry a class, background first; got "
                f"{self.classes} and {self.mask_values}"
            )
        if set(self.mask_values) & set(self.ignore_values):
            raise ValueError(
                f"data.mask_values {self.mask_values} and data.ignore_values {self.ignore_values} "
                "share a value"
            )


@dataclass(kw_only=True)
class ModelConfig:
    """The head and how the encoder is trained with it.

    Attributes:
        head: ``damageformer``, ``upernet`` (concatenated dates) or ``difference``.
        width: Channels inside the head.
        drop_path: Largest stochastic depth rate of the encoder.
        variant: How the encoder's layers are numbered for the layer decay.
        layer_decay: Factor of the learning rate from a layer to the one before it; 1 for none.
        checkpoint_activations: Recompute attention blocks in the backward pass to save memory.
        center: Modalities whose images lose their own mean on entry; the encoder's own choice when not given.
        norm_levels: LayerNorm over the channels of each level before the head; see ``DamageModel``.
    """

    head: DamageHead = "damageformer"
    width: int = 256
    drop_path: float = 0.15
    variant: Variant = "official"
    layer_decay: float = 0.85
    checkpoint_activations: bool = False
    center: list[str] | None = None
    norm_levels: bool = False


@dataclass(kw_only=True)
class DamageOptim(SupervisedSettings):
    """The optimizer's settings, with the published ones as defaults: 30,000 steps of 8 pairs, poly.

    Attributes:
        save_every: Steps between two saved states; one is also saved at the end and when asked to stop.
    """

    max_steps: int | None = 30_000
    warmup_steps: int | None = 100
    batch_size: int = 8
    lr: float | None = 1e-4
    min_lr: float = 0.0
    schedule: Shape = "poly"
    save_every: int = 1000


@dataclass(kw_only=True)
class InferConfig:
    """What ``infer`` maps.

    Attributes:
        pre: The scene before, optical; its grid is the map's.
        post: The scene after, of whatever grid.
        resampling: How the second scene is brought onto the first's grid.
        min_pixels: Smallest building that is outlined.
    """

    pre: str | None = None
    post: str | None = None
    resampling: Literal["nearest", "bilinear", "cubic", "average"] = "bilinear"
    min_pixels: int = 16


@dataclass(kw_only=True)
class RobustnessConfig:
    """What ``robustness`` does to the second date.

    Attributes:
        shifts: Misregistration in pixels, in a direction drawn for each tile.
        looks: Looks of the speckle it is multiplied by.
        split: Rows to measure on; the first of ``data.report_splits`` when not given.
    """

    shifts: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4, 6, 8])
    looks: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    split: str | None = None


@dataclass(kw_only=True)
class BrightConfig:
    """All keys of ``bright/main.py``; each command reads those it needs.

    Attributes:
        output_dir: Folder of ``results.json``, ``damage.safetensors``, ``config.yaml``, ``metrics.jsonl``.
        encoder: FILE, released NAME, random:ARCH or random:FILE; for ``train``.
        trained: Folder of the trained model; ``output_dir`` when not given.
        protocol: ``clean`` chooses the step on ``data.select_split``; ``paper`` takes the last; ``official``
            the best on the first of ``data.report_splits``, as the published code does.
        evaluate_every: Steps between evaluations of the split that selects; the last step is always one.
        metric: The figure that selects and ranks: mean_iou, or iou_<class>.
        dates: Which dates ``evaluate`` gives the model.
        hide_images: Whether ``pictures`` shows only where the map is right and wrong, for images that may not
            be passed on.
        split: Rows of ``evaluate``, ``submit`` and ``pictures``; ``data.report_splits`` when not given.
        data: What is trained and evaluated on.
        model: The head.
        loss: Weights of the terms; with ``post_localisation`` above 0 the model also answers where only the
            second date is there.
        augmentation: Of training.
        optim: Of training.
        tiling: Windows of evaluation and inference.
        infer: The scenes of ``infer``.
        robustness: The disturbances of ``robustness``.
        seed: Of the head's weights and of all that is drawn.
        init_seed: Of ``random:`` encoders.
        sync_batch_norm: Whether batch norm sees the batches of all processes.
        resume: ``auto`` goes on from ``output_dir`` where there is a state, ``never`` refuses such a folder.
        device: Where to run.
    """

    output_dir: str
    encoder: str = ""
    trained: str | None = None
    protocol: Protocol = "clean"
    evaluate_every: int = 1000
    metric: str = "mean_iou"
    dates: Dates = "both"
    hide_images: bool = False
    split: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: DamageTerms = field(default_factory=DamageTerms)
    augmentation: JointAugmentation = field(default_factory=JointAugmentation)
    optim: DamageOptim = field(default_factory=DamageOptim)
    tiling: TilingConfig = field(default_factory=TilingConfig)
    infer: InferConfig = field(default_factory=InferConfig)
    robustness: RobustnessConfig = field(default_factory=RobustnessConfig)
    seed: int = 729729
    init_seed: int = 0
    sync_batch_norm: bool = True
    resume: Literal["auto", "never"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.evaluate_every < 1:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; it must be at least 1")
        known = ["mean_iou", *(f"iou_{name}" for name in self.data.classes)]
        if self.metric not in known:
            raise ValueError(f"metric is {self.metric!r}; known: {', '.join(known)}")
        if not self.data.report_splits:
            raise ValueError("data.report_splits names no split")
        if self.loss.post_localisation and self.model.head != "damageformer":
            raise ValueError(
                "loss.post_localisation needs the damageformer head; "
                f"the {self.model.head} head needs both dates"
            )

    @property
    def selected_by(self) -> SelectedBy:
        """Which split chooses the reported step."""
        chosen: dict[Protocol, SelectedBy] = {"clean": "val", "paper": "last", "official": "test"}
        return chosen[self.protocol]

    @property
    def judge_split(self) -> str | None:
        """Split that the step is chosen on; None under ``paper``."""
        splits = {"clean": self.data.select_split, "official": self.data.report_splits[0]}
        return splits.get(self.protocol)
