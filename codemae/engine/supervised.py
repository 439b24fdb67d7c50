"""The loop of supervised training: one model, one loss, one process."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from codemae.engine.optim import set_learning_rate
from codemae.engine.randomness import seed_step
from codemae.engine.schedule import learning_rate

T = TypeVar("T")

MOST_SKIPPED = 10


class SupervisedError(RuntimeError):
    """Training cannot go on."""


@dataclass(kw_only=True)
class SupervisedSettings:
    """How a model is trained.

    Attributes:
        epochs: Passes over the training images.
        warmup_epochs: Of linear warm-up.
        batch_size: Samples the model sees at a time.
        grad_accum_steps: Such batches a step.
        base_lr: Learning rate per 256 samples of a step.
        lr: Learning rate as such, instead of ``base_lr``.
        min_lr: Where the cosine ends.
        betas: Of AdamW.
        weight_decay: Of parameters that have any.
        clip_grad: Largest norm of the gradient; null does not clip.
        amp: Type of autocast; float32 is none, float16 scales the loss.
    """

    epochs: int = 100
    warmup_epochs: float = 5
    batch_size: int = 32
    grad_accum_steps: int = 1
    base_lr: float = 1e-3
    lr: float | None = None
    min_lr: float = 1e-6
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.05
    clip_grad: float | None = None
    amp: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accum_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must be at least 1")
        if len(self.betas) != 2:
            raise ValueError(f"optim.betas: AdamW takes 2 numbers, got {self.betas}")

    def peak(self, batch_size: int) -> float:
        """Highest learning rate of steps of so many samples."""
        return self.base_lr * batch_size / 256 if self.lr is None else self.lr


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedStep:
    """What a step was.

    Attributes:
        step: Steps done, this one included.
        loss: Mean over its batches.
        grad_norm: Before clipping.
        lr: Of parameters with scale 1.
        finite: Whether loss and gradient were; if not, no weight moved.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    finite: bool


def train_supervised(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    batches: Iterable[T],
    loss_of: Callable[[T], Tensor],
    settings: SupervisedSettings,
    *,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    device: torch.device,
    seed: int,
    after_step: Callable[[SupervisedStep], None],
) -> None:
    """Trains with AdamW, linear warm-up and a cosine.

    All random numbers that model and loss draw are functions of the seed and the step, so the same call gives
    the same weights, to the last bit on a CPU. The model is in training mode at every step, whatever
    ``after_step`` did with it. A step whose loss or gradient is not finite moves nothing.

    Args:
        model: On its device.
        groups: Parameters for the optimizer; ``lr_scale`` multiplies a group's rate.
        batches: At least ``total_steps * settings.grad_accum_steps`` of them.
        loss_of: Loss of a batch, computed under autocast.
        settings: Of the training.
        total_steps: Optimizer steps.
        warmup_steps: Of them, those of the warm-up.
        peak: Highest learning rate.
        device: Of the model.
        seed: Of all that is drawn.
        after_step: Called after each step, for evaluation and logs.

    Raises:
        SupervisedError: The batches ran out, or ten steps in a row were not finite.
    """
    betas = (settings.betas[0], settings.betas[1])
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, weight_decay=settings.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "float16")
    dtype = getattr(torch, settings.amp)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    stream: Iterator[T] = iter(batches)
    skipped = 0
    for step in range(total_steps):
        micro_batches = list(islice(stream, settings.grad_accum_steps))
        if len(micro_batches) < settings.grad_accum_steps:
            raise SupervisedError(f"the batches ran out after {step} of {total_steps} steps")
        model.train()
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part, batch in enumerate(micro_batches):
            seed_step(seed, step, part)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                loss = loss_of(batch) / len(micro_batches)
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        rate = learning_rate(
            step, total_steps=total_steps, warmup_steps=warmup_steps, peak=peak, minimum=settings.min_lr
        )
        finite = math.isfinite(total) and math.isfinite(float(norm))
        if finite:
            if settings.clip_grad is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip_grad, norm)
            set_learning_rate(optimizer, rate)
            scaler.step(optimizer)
        scaler.update()
        skipped = 0 if finite else skipped + 1
        if skipped > MOST_SKIPPED:
            raise SupervisedError(
                f"{skipped} steps in a row had a loss or gradient that is not finite, the last at step "
                f"{step + 1}; lower the learning rate, or set --optim.clip_grad 1"
            )
        after_step(SupervisedStep(step=step + 1, loss=total, grad_norm=float(norm), lr=rate, finite=finite))
