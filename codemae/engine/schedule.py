"""Learning rate as a pure function of the step."""

import math
from typing import Literal

Shape = Literal["cosine", "poly"]


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    minimum: float = 0.0,
    shape: Shape = "cosine",
    power: float = 1.0,
) -> float:
    """Linear warm-up, then down to the minimum.

    With x the share of the steps after the warm-up that are done, the rate falls by (1 + cos(pi x)) / 2 or by
    (1 - x) ** power.

    Args:
        step: Steps done so far; 0 for the first one.
        total_steps: Steps of the run.
        warmup_steps: The rate rises linearly and reaches ``peak`` with the last of these.
        peak: Highest rate.
        minimum: What it tends to.
        shape: ``cosine``, or ``poly`` as segmentation is trained.
        power: Of ``poly``; 1 is a straight line.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    fraction = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    share = 0.5 * (1 + math.cos(math.pi * fraction)) if shape == "cosine" else (1 - fraction) ** power
    return minimum + (peak - minimum) * share


def peak_rate(base_lr: float, lr: float | None, pairs_per_step: int) -> float:
    """``lr`` where it is given, else ``base_lr`` per 256 images; a pair counts as two images."""
    return base_lr * 2 * pairs_per_step / 256 if lr is None else lr
