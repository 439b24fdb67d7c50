"""The loop of supervised training: one model, one loss, on one process or many; it knows no task."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import checkpoint
from codemae.config import diff_configs
from codemae.distributed import all_reduce_sum, broadcast_object, is_main, rank, world_size
from codemae.engine.interruption import Interrupted, Interruption
from codemae.engine.optim import set_learning_rate
from codemae.engine.randomness import seed_step
from codemae.engine.schedule import Shape, learning_rate

T = TypeVar("T")

MOST_SKIPPED_IN_ROW = 10
_SIGNALS = (15, 2)


class SupervisedError(RuntimeError):
    """Training cannot go on, or not from here."""


@dataclass(kw_only=True)
class SupervisedSettings:
    """How a model is trained.

    Attributes:
        epochs: Passes over the training images.
        max_steps: Optimizer steps of the run, instead of ``epochs``.
        warmup_epochs: Of linear warm-up.
        warmup_steps: Of linear warm-up, instead of ``warmup_epochs``.
        batch_size: Samples the model sees at a time, on all processes together.
        grad_accum_steps: Such batches a step.
        base_lr: Learning rate per 256 samples of a step.
        lr: Learning rate as such, instead of ``base_lr``.
        min_lr: Where the schedule ends.
        schedule: After the warm-up: ``cosine``, or ``poly`` as segmentation is trained.
        power: Of ``poly``; 1 is a straight line.
        betas: Of AdamW.
        weight_decay: Of parameters that have any.
        clip_grad: Largest norm of the gradient; null does not clip.
        amp: Type of autocast; float32 is none, float16 scales the loss.
    """

    epochs: int = 100
    max_steps: int | None = None
    warmup_epochs: float = 5
    warmup_steps: int | None = None
    batch_size: int = 32
    grad_accum_steps: int = 1
    base_lr: float = 1e-3
    lr: float | None = None
    min_lr: float = 1e-6
    schedule: Shape = "cosine"
    power: float = 1.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.05
    clip_grad: float | None = None
    amp: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accum_steps", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"optim.{name} is {value}; it must be at least 1")
        if len(self.betas) != 2:
            raise ValueError(f"optim.betas: AdamW takes 2 numbers, got {self.betas}")

    def peak(self, batch_size: int) -> float:
        """Highest learning rate of steps of so many samples."""
        return self.base_lr * batch_size / 256 if self.lr is None else self.lr

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run."""
        return self.epochs * steps_per_epoch if self.max_steps is None else self.max_steps

    def warmup(self, steps_per_epoch: int) -> int:
        """Of them, those of the warm-up."""
        return round(self.warmup_epochs * steps_per_epoch) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedStep:
    """What a step was; the same on every process.

    Attributes:
        step: Steps done, this one included.
        loss: Mean over its batches and over processes.
        grad_norm: Before clipping.
        lr: Of parameters with scale 1.
        finite: Whether loss and gradient were; if not, no weight moved.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    finite: bool


class Notes(Protocol):
    """What a task keeps between steps, such as its best figure; tensors and plain values."""

    def state_dict(self) -> dict[str, Any]:
        """All of it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where training is saved and resumed from.

    Attributes:
        folder: Of ``last.pt``.
        every: Steps between two; 0 saves only at the end and when asked to stop.
        identity: Plain values that must be the same for a resume: the data and the settings.
        notes: What is saved beside weights and moments; its ``state_dict`` must be a copy.
    """

    folder: Path
    every: int = 0
    identity: dict[str, Any] = field(default_factory=dict)
    notes: Notes | None = None


def train_supervised(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    batches: Callable[[int], Iterable[T]],
    loss_of: Callable[[nn.Module, T], Tensor],
    settings: SupervisedSettings,
    *,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    device: torch.device,
    seed: int,
    after_step: Callable[[SupervisedStep], None],
    checkpoints: Checkpoints | None = None,
) -> None:
    """Trains with AdamW, linear warm-up and a cosine or polynomial decay.

    All random numbers that model and loss draw are functions of the seed, the step and the part of the global
    batch, so the same call gives the same weights, to the last bit on a CPU, and so does a run that was
    stopped anywhere and resumed. The model is in training mode at every step, whatever ``after_step`` did
    with it. A step whose loss or gradient is not finite on some process moves nothing on any.

    In a process group the gradients are averaged over ranks, so that the ranks together take the step of one
    process that holds all their batches; plain batch norm sees the batch of its own rank.

    Args:
        model: On its device, the same on every rank.
        groups: Parameters for the optimizer; ``lr_scale`` multiplies a group's rate.
        batches: Given the steps done, this rank's batches from there on:
            ``settings.grad_accum_steps`` a step, of equal size on all ranks.
        loss_of: Loss of a batch, computed under autocast. It must call the module it is given, which in a
            process group is a wrapper of the model.
        settings: Of the training.
        total_steps: Optimizer steps.
        warmup_steps: Of them, those of the warm-up.
        peak: Highest learning rate.
        device: Of the model.
        seed: Of all that is drawn.
        after_step: Called after each step on every rank, for evaluation and logs.
        checkpoints: Where to save, and to resume from if something is there; SIGTERM and Ctrl-C then save
            first. None saves nothing.

    Raises:
        SupervisedError: The batches ran out, ten steps in a row were not finite (saved as it was before
            them), or what was saved belongs to another training.
        codemae.engine.interruption.Interrupted: A signal came; all is saved.
        codemae.checkpoint.CheckpointError: It could not be saved.
    """
    trainer = _Trainer(model, groups, settings, device, seed, checkpoints)
    trainer.resume()
    if trainer.step >= total_steps:
        return
    stream: Iterator[T] = iter(batches(trainer.step))
    with Interruption() if checkpoints else nullcontext() as interruption:
        while trainer.step < total_steps:
            micro_batches = list(islice(stream, settings.grad_accum_steps))
            if len(micro_batches) < settings.grad_accum_steps:
                raise SupervisedError(f"the batches ran out after {trainer.step} of {total_steps} steps")
            rate = learning_rate(
                trainer.step,
                total_steps=total_steps,
                warmup_steps=min(warmup_steps, total_steps),
                peak=peak,
                minimum=settings.min_lr,
                shape=settings.schedule,
                power=settings.power,
            )
            report, signum = trainer.train_step(micro_batches, loss_of, rate, interruption)
            after_step(report)
            every = checkpoints.every if checkpoints else 0
            if signum or trainer.step == total_steps or (every and trainer.step % every == 0):
                trainer.save()
            if signum:
                raise Interrupted(signum)


class _Trainer:
    """A model with its optimizer and loss scaler, and how the two are saved."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[dict[str, Any]],
        settings: SupervisedSettings,
        device: torch.device,
        seed: int,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = device
        self.seed = seed
        self.checkpoints = checkpoints
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=0.0,
            betas=(settings.betas[0], settings.betas[1]),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.module: nn.Module = model
        if world_size() > 1:
            # An encoder has parts that a task leaves out: the other modality's embedding, the pyramid.
            self.module = DistributedDataParallel(
                model,
                device_ids=[device.index] if device.type == "cuda" else None,
                find_unused_parameters=True,
            )
        self.step = 0
        self.skipped = 0
        self.before_skipping: dict[str, Any] = {}

    def train_step(
        self,
        micro_batches: Sequence[T],
        loss_of: Callable[[nn.Module, T], Tensor],
        rate: float,
        interruption: Interruption | None,
    ) -> tuple[SupervisedStep, int]:
        """One step, and a signal that some process caught, or 0."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        total = self._accumulate(micro_batches, loss_of)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        caught = interruption.signum if interruption else 0
        shared = [float(caught == known) for known in _SIGNALS]
        mine = torch.stack([total, norm.double(), *torch.tensor(shared, dtype=torch.float64).to(self.device)])
        loss, mean_norm, *signals = all_reduce_sum(mine, differentiable=False).tolist()
        loss, mean_norm = loss / world_size(), mean_norm / world_size()
        finite = math.isfinite(loss) and math.isfinite(mean_norm)
        if not finite:
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # batch norm took its mean from what is not finite
            self._count_skipped()
        else:
            self.skipped = 0
            if self.settings.clip_grad is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.settings.clip_grad, norm)
            set_learning_rate(self.optimizer, rate)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        report = SupervisedStep(step=self.step, loss=loss, grad_norm=mean_norm, lr=rate, finite=finite)
        return report, next((s for s, count in zip(_SIGNALS, signals, strict=True) if count), 0)

    def _accumulate(self, micro_batches: Sequence[T], loss_of: Callable[[nn.Module, T], Tensor]) -> Tensor:
        """Gradients of all batches; their mean loss, in double precision."""
        dtype, count = getattr(torch, self.settings.amp), len(micro_batches)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for place, batch in enumerate(micro_batches):
            seed_step(self.seed, self.step, rank() * count + place)
            with self._no_sync(last=place == count - 1):
                with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                    loss = loss_of(self.module, batch) / count
                self.scaler.scale(loss).backward()
            total += loss.detach().double()
        return total

    def _no_sync(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def _count_skipped(self) -> None:
        if self.skipped == 0:
            self.before_skipping = self._state()
        self.skipped += 1
        if self.skipped < MOST_SKIPPED_IN_ROW:
            return
        first = self.before_skipping["step"]
        if self.checkpoints:
            self._write(self.before_skipping)
        raise SupervisedError(
            f"{self.skipped} steps in a row had a loss or gradient that is not finite, the first after step "
            f"{first}; lower the learning rate, or set --optim.clip_grad 1"
        )

    def _state(self) -> dict[str, Any]:
        notes = self.checkpoints.notes if self.checkpoints else None
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "skipped": self.skipped,
            "notes": notes.state_dict() if notes else None,
            "identity": self.checkpoints.identity if self.checkpoints else None,
        }

    def save(self) -> None:
        """Writes the state, on the main process; an error is raised on all."""
        if self.checkpoints is not None:
            self._write(self._state())

    def _write(self, state: dict[str, Any]) -> None:
        assert self.checkpoints is not None
        problem = None
        if is_main():
            try:
                self.checkpoints.folder.mkdir(parents=True, exist_ok=True)
                checkpoint.save_run_state(self.checkpoints.folder, state)
            except (OSError, checkpoint.CheckpointError) as error:
                problem = str(error)
        if problem := broadcast_object(problem):
            raise checkpoint.CheckpointError(problem)

    def resume(self) -> None:
        """Goes on from what is saved, if anything is."""
        if self.checkpoints is None or not checkpoint.has_run_state(self.checkpoints.folder):
            return
        state = checkpoint.load_run_state(self.checkpoints.folder)
        differing = diff_configs(state["identity"], self.checkpoints.identity)
        if differing:
            raise SupervisedError(
                f"{self.checkpoints.folder} holds a training that is not this one; choose another "
                "--output_dir, delete it yourself, or set back: "
                + "; ".join(f"{key} was {before!r}, is {now!r}" for key, before, now in differing)
            )
        checkpoint.load_strictly(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.skipped = state["step"], state["skipped"]
        if self.checkpoints.notes is not None:
            self.checkpoints.notes.load_state_dict(state["notes"])
