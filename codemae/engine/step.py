"""One optimizer step, agreed upon by all processes."""

import math
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import checkpoint
from codemae.data.batch import Batch
from codemae.distributed import all_reduce_sum, rank, world_size
from codemae.engine.compilation import compile_blocks
from codemae.engine.interruption import Interruption
from codemae.engine.optim import build_optimizer, set_learning_rate
from codemae.engine.randomness import seed_step
from codemae.engine.settings import OptimConfig
from codemae.methods.base import Method, Progress

_SIGNALS = (15, 2)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step was; the same on every process, ``bad`` aside.

    Attributes:
        finite: Whether loss and gradient were finite; if not, no weight moved.
        loss: Sum of the terms, mean over ranks.
        terms: Each term, mean over ranks.
        grad_norm: Of the averaged gradient, before clipping.
        pairs: Samples of the global batch.
        bad_samples: Of them, those replaced because they could not be read.
        nonfinite_pixels: NaN and infinite values in the images.
        samples: Checksum of which samples, crops and masks the global batch had.
        signum: A signal that some process caught, or 0.
        waited: Seconds this process waited for data.
        bad: This process's sentences about bad samples.
    """

    finite: bool
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    pairs: int
    bad_samples: int
    nonfinite_pixels: int
    samples: int
    signum: int
    waited: float
    bad: Sequence[str]


class Learner:
    """A method with its optimizer and loss scaler.

    Args:
        method: On its device.
        config: Of the optimizer.
        device: Of this process.
        seed: The run's seed.
    """

    def __init__(self, method: Method, config: OptimConfig, device: torch.device, seed: int) -> None:
        self.method = method
        self.config = config
        self.device = device
        self.seed = seed
        self.optimizer = build_optimizer(method, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
        if config.compile:
            compile_blocks(method)
        self.module: nn.Module = method
        if world_size() > 1:
            on_gpu = device.type == "cuda"
            self.module = DistributedDataParallel(
                method, device_ids=[device.index] if on_gpu else None, gradient_as_bucket_view=True
            )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision in which losses are computed."""
        dtype = getattr(torch, self.config.amp)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def step(
        self,
        micro_batches: Sequence[Batch],
        progress: Progress,
        *,
        rate: float,
        waited: float,
        interruption: Interruption,
    ) -> StepReport:
        """Moves the weights once, unless the loss or the gradient of any process is not finite."""
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._accumulate(micro_batches, progress)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        report = self._agree(micro_batches, terms, norm, waited, interruption)
        if report.finite:
            if self.config.clip_grad is not None:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_grad, norm)
            set_learning_rate(self.optimizer, rate)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        return report

    def _accumulate(self, micro_batches: Sequence[Batch], progress: Progress) -> dict[str, Tensor]:
        count = len(micro_batches)
        means: dict[str, Tensor] = {}
        for place, batch in enumerate(micro_batches):
            seed_step(self.seed, progress.step, rank() * count + place)
            with self._no_sync(last=place == count - 1):
                with self.autocast():
                    terms = self.module(batch.to(self.device), progress)
                    loss = torch.stack([term.float() for term in terms.values()]).sum() / count
                self.scaler.scale(loss).backward()
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + term.detach().double() / count
        return means

    def _no_sync(self, last: bool) -> AbstractContextManager[Any]:
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def _agree(
        self,
        micro_batches: Sequence[Batch],
        terms: dict[str, Tensor],
        norm: Tensor,
        waited: float,
        interruption: Interruption,
    ) -> StepReport:
        """Shares everything the processes must agree on in one sum, and waits for the device once."""
        pairs = sum(len(batch) for batch in micro_batches)
        bad = [sentence for batch in micro_batches for sentence in batch.bad]
        counts = [
            pairs,
            len(bad),
            sum(batch.nonfinite for batch in micro_batches),
            sum(
                fingerprint(batch, rank() * pairs + place * len(batch))
                for place, batch in enumerate(micro_batches)
            ),
            *(interruption.signum == known for known in _SIGNALS),
        ]
        on_host = torch.tensor(counts, dtype=torch.float64).to(self.device, non_blocking=True)
        summed = all_reduce_sum(torch.cat([torch.stack([*terms.values(), norm.double()]), on_host]), False)
        values = summed.tolist()
        means = [value / world_size() for value in values[: len(terms) + 1]]
        loss = math.fsum(means[:-1])
        every_pair, every_bad, nonfinite, samples, *signals = (int(value) for value in values[len(means) :])
        return StepReport(
            finite=math.isfinite(loss) and math.isfinite(means[-1]),
            loss=loss,
            terms=dict(zip(terms, means[:-1], strict=True)),
            grad_norm=means[-1],
            pairs=every_pair,
            bad_samples=every_bad,
            nonfinite_pixels=nonfinite,
            samples=samples % 2**32,
            signum=next((known for known, count in zip(_SIGNALS, signals, strict=True) if count), 0),
            waited=waited,
            bad=bad,
        )

    def state_dict(self) -> dict[str, Any]:
        """Weights, moments and scale."""
        return {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``; strict."""
        checkpoint.load_strictly(self.method, state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def fingerprint(batch: Batch, first: int) -> int:
    """Checksum of a batch's rows, crops and mask noise, and of where each sample stands in the global batch.

    Sums over the parts of a global batch are equal however it is shared out.

    Args:
        batch: On the host.
        first: Position of its first sample in the global batch.
    """
    positions = torch.arange(first, first + len(batch), dtype=torch.int64)[:, None]
    parts = [positions, *(batch.rows[name][:, None] for name in sorted(batch.rows))]
    parts += [*(batch.crops[name] for name in sorted(batch.crops)), batch.mask_noise]
    columns = [part.contiguous().numpy().view(np.uint8) for part in parts if part.numel()]
    return sum(zlib.crc32(row) for row in np.concatenate(columns, axis=1))
