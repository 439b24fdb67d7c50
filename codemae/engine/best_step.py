"""The step of a supervised training that is reported, and the lines of its log, kept across a resume."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codemae.distributed import broadcast_object, is_main, world_size
from codemae.evaluation.card import write_atomically


@dataclass
class BestStep:
    """The step that is reported; a task's notes in ``codemae.engine.supervised.Checkpoints``.

    Attributes:
        state: Its weights, on the CPU.
        step: Steps done.
        figure: On the split that chose it; minus infinity where none did.
        lines: Of ``metrics.jsonl``, so that a resumed run writes none twice.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    figure: float = float("-inf")
    lines: list[dict[str, Any]] = field(default_factory=list)

    def offer(self, model: nn.Module, step: int, figure: float | None = None) -> None:
        """Keeps the weights if the figure is the highest so far, the first of equals; without one always.

        A figure that is not a number counts as lower than any other.
        """
        if figure is not None:
            figure = float("-inf") if math.isnan(figure) else figure
            if self.state and figure <= self.figure:
                return
            self.figure = figure
        self.step, self.state = step, host_state(model)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all fields, for tensors are never written to in place."""
        return {name: list(value) if isinstance(value, list) else value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes all fields."""
        vars(self).update(state)


def host_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def share_buffers(model: nn.Module) -> None:
    """Gives every process the main one's buffers, for plain batch norm counts its own process's samples.

    What the processes evaluate together is then one model. Every process calls it.
    """
    if world_size() == 1:
        return
    shared = broadcast_object({name: buffer.cpu() for name, buffer in model.named_buffers()})
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(shared[name])


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Writes JSON lines on the main process, in place of whatever an attempt that was cut off left there."""
    if is_main():
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
