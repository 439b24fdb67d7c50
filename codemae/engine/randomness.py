"""The generators that methods may draw from, as functions of the step."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def seed_step(seed: int, step: int, part: int) -> None:
    """Seeds torch, NumPy and Python for one part of one step.

    Args:
        seed: The run's seed.
        step: Steps done so far.
        part: Which part of the global batch, counted over ranks and then accumulated batches; two processes
            therefore draw the same drop path as one that accumulates twice.
    """
    words = np.random.SeedSequence((seed & 0xFFFFFFFF, step, part)).generate_state(2, np.uint32)
    mixed = int(words[0]) << 32 | int(words[1])
    torch.manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)
    np.random.seed(words[0])
    random.seed(mixed)


def rng_state() -> dict[str, Any]:
    """State of all generators in tensors and plain values, which can be read back without pickled code."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
        "numpy": [torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Puts all generators back to a state of ``rng_state``."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Whatever is drawn inside leaves all generators as they were."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
