"""A teacher that follows its student slowly."""

import math

import torch
from torch import nn


def rising_momentum(step: int, total_steps: int, start: float) -> float:
    """Share of the old weights: half a cosine from ``start`` at step 0 to 1 after the last step.

    momentum = 1 - (1 - start) (1 + cos(pi step / total_steps)) / 2, as in BYOL.
    """
    return 1 - (1 - start) * (1 + math.cos(math.pi * min(step, total_steps) / max(total_steps, 1))) / 2


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves every parameter to momentum * teacher + (1 - momentum) * student; buffers keep their own values.

    Args:
        teacher: Of the same structure as the student.
        student: What it follows.
        momentum: Share of the teacher's old weights.
    """
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new.detach(), 1 - momentum)
