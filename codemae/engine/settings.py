"""Every key of a pretraining run but those of the method."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class DataConfig:
    """What is read.

    Attributes:
        index: Folders written by ``datasets/prepare.py``; on the command line separated by commas.
        split: Splits to train on; null takes all rows.
        samples: Rows with both images (``paired``), with one (``unpaired``), or ``both``.
        repeats: Crops of one sample in a batch; decoding, the dearest part of loading, is done once for all.
        num_workers: Loader processes of each rank; 0 loads in the training process.
    """

    index: list[str] = field(default_factory=list)
    split: list[str] | None = field(default_factory=lambda: ["train"])
    samples: Literal["both", "paired", "unpaired"] = "both"
    repeats: int = 1
    num_workers: int = 4

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"data.num_workers counts processes, got {self.num_workers}")


@dataclass(kw_only=True)
class OptimConfig:
    """How the weights move.

    Attributes:
        name: ``adamw`` (torch, fused), ``lars`` or ``adan`` (timm).
        base_lr: Learning rate per 256 images; a pair is two images.
        lr: Learning rate as such, instead of ``base_lr``.
        betas: Two for AdamW, three for Adan.
        momentum: Of LARS.
        bias_lr_scale: Factor on the learning rate of parameters of one dimension (Barlow Twins and DeCUR with
            LARS: 0.0048 / 0.2).
        weight_decay: Of parameters with two dimensions or more; biases and norms have none, nor are they
            adapted by LARS.
        epochs: Passes over the index.
        max_steps: Ends the run, and its schedule, after that many steps where ``epochs`` make more.
        warmup_epochs: Of linear warm-up.
        min_lr: Where the cosine ends.
        clip_grad: Largest norm of the gradient; null does not clip.
        batch_per_gpu: Pairs one process holds at a time.
        grad_accum_steps: Batches whose gradients make one step. Not the same as a larger batch for terms that
            compare samples with each other (contrastive, correlation): they see one batch at a time.
        global_batch: Pairs a step over all processes; given, ``grad_accum_steps`` follows from it.
        amp: Type of autocast; float32 is none, float16 scales the loss.
        compile: Compile the repeated blocks of the method with ``torch.compile``.
    """

    name: Literal["adamw", "lars", "adan"] = "adamw"
    base_lr: float = 1.5e-4
    lr: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    momentum: float = 0.9
    bias_lr_scale: float = 1.0
    weight_decay: float = 0.05
    epochs: float = 100
    max_steps: int | None = None
    warmup_epochs: float = 10
    min_lr: float = 0.0
    clip_grad: float | None = None
    batch_per_gpu: int = 128
    grad_accum_steps: int = 1
    global_batch: int | None = None
    amp: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        wanted = 3 if self.name == "adan" else 2
        if self.name != "lars" and len(self.betas) != wanted:
            raise ValueError(f"optim.betas: {self.name} takes {wanted} numbers, got {self.betas}")
        for key in ("epochs", "batch_per_gpu", "grad_accum_steps"):
            if getattr(self, key) <= 0:
                raise ValueError(f"optim.{key} must be above 0, got {getattr(self, key)}")


@dataclass(kw_only=True)
class LogConfig:
    """What is written down, and how often in steps; 0 for never.

    Attributes:
        every: A line of ``metrics.jsonl``.
        tensorboard: Whether curves and pictures go to ``tensorboard/``.
        pictures_every: The method's pictures, to TensorBoard.
        sentinel_every: The collapse sentinel.
        sentinel_samples: Samples of its frozen probe batch.
    """

    every: int = 20
    tensorboard: bool = True
    pictures_every: int = 1000
    sentinel_every: int = 500
    sentinel_samples: int = 64

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"log.every must be at least 1 step, got {self.every}")


@dataclass(kw_only=True)
class CheckpointConfig:
    """When ``last.pt`` and ``encoder.safetensors`` are written, beside the end of the run; null for never."""

    every_epochs: int | None = 1
    every_steps: int | None = None


@dataclass(kw_only=True)
class PretrainConfig:
    """A pretraining run.

    Attributes:
        method: Name and keys of the method, as its own ``Config`` has them.
        output_dir: The run folder; on several nodes, one they share.
        resume: ``auto`` goes on where the run folder stands, ``never`` insists on an empty one, else a file.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Of initial weights, crops, masks, order and all that methods draw.
    """

    output_dir: str
    method: Any
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    resume: str = "auto"


HARMLESS_KEYS = (
    "output_dir",
    "device",
    "resume",
    "data.index",
    "data.num_workers",
    "optim.batch_per_gpu",
    "optim.grad_accum_steps",
    "optim.compile",
    "log.",
    "checkpoint.",
)
"""What may differ between a run and its continuation: nothing here changes which samples a step sees."""


MOVABLE_KEYS = ("method.encoder.init", "method.okd.teacher.weights", "method.okd.teacher.vault")
"""Paths under which a continuation may find the same content elsewhere; set stays set, empty stays empty."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the pairs of one step are shared out.

    Attributes:
        global_batch: Pairs a step.
        per_rank: Pairs a process holds at a time.
        accumulation: Such batches per process and step.
    """

    global_batch: int
    per_rank: int
    accumulation: int


def plan_batches(optim: OptimConfig, processes: int) -> BatchPlan:
    """Shares out the batch.

    Raises:
        ValueError: ``global_batch`` is no multiple of what all processes hold at a time.
    """
    at_a_time = optim.batch_per_gpu * processes
    if optim.global_batch is None:
        return BatchPlan(
            global_batch=at_a_time * optim.grad_accum_steps,
            per_rank=optim.batch_per_gpu,
            accumulation=optim.grad_accum_steps,
        )
    if optim.global_batch % at_a_time:
        raise ValueError(
            f"optim.global_batch {optim.global_batch} is no multiple of optim.batch_per_gpu "
            f"{optim.batch_per_gpu} x {processes} processes; try --optim.batch_per_gpu "
            f"{_divisor_below(optim.global_batch, processes, optim.batch_per_gpu)}"
        )
    return BatchPlan(
        global_batch=optim.global_batch,
        per_rank=optim.batch_per_gpu,
        accumulation=optim.global_batch // at_a_time,
    )


def _divisor_below(global_batch: int, processes: int, most: int) -> int:
    sizes = (size for size in range(most, 0, -1) if global_batch % (size * processes) == 0)
    return next(sizes, 1)
