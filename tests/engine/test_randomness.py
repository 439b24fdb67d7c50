import random

import numpy as np
import torch

from codemae.checkpoint import load_run_state, save_run_state
from codemae.engine.randomness import rng_state, seed_step, set_rng_state, undisturbed_generators


def draws() -> tuple[float, ...]:
    return (
        *torch.rand(2).tolist(),
        *np.random.rand(2).tolist(),
        np.random.randn(),
        random.random(),
        random.gauss(0, 1),
    )


def test_a_step_and_part_draw_the_same_always_and_others_differ():
    def after(*words: int) -> tuple[float, ...]:
        seed_step(*words)
        return draws()

    assert after(1, 2, 3) == after(1, 2, 3)
    different = {after(seed, step, part) for seed in (0, 1) for step in (0, 1, 2) for part in (0, 1)}
    assert len(different) == 12


def test_states_survive_a_checkpoint(tmp_path):
    seed_step(5, 6, 7)
    draws()
    save_run_state(tmp_path, {"rng": rng_state()})
    expected = draws()
    seed_step(0, 0, 0)
    set_rng_state(load_run_state(tmp_path)["rng"])
    assert draws() == expected


def test_what_is_drawn_inside_leaves_no_trace():
    seed_step(1, 1, 1)
    expected = draws()
    seed_step(1, 1, 1)
    with undisturbed_generators():
        seed_step(9, 9, 9)
        draws()
    assert draws() == expected
