import json
import math
from pathlib import Path

import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import nn

from codemae.distributed import rank
from codemae.engine.best_step import BestStep, host_state, share_buffers, write_lines


def holding(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [([1.0, 3.0, 2.0], 2), ([3.0, 3.0], 1), ([math.nan, 0.5], 2), ([0.5, math.nan], 1), ([math.nan] * 2, 1)],
)
def test_the_first_of_the_highest_figures_is_kept(figures: list[float], chosen: int) -> None:
    best = BestStep()
    for step, figure in enumerate(figures, start=1):
        best.offer(holding(step), step, figure)
    assert best.step == chosen and best.state["weight"].item() == chosen


def test_without_figures_the_last_offer_is_kept_as_a_copy() -> None:
    best, model = BestStep(), holding(1)
    best.offer(holding(7), 1)
    best.offer(model, 2)
    nn.init.constant_(model.weight, 9)
    assert (best.step, best.figure, best.state["weight"].item()) == (2, -math.inf, 1)


def test_what_was_saved_does_not_change_when_training_goes_on() -> None:
    best = BestStep(lines=[{"step": 1}])
    best.offer(holding(1), 1, 5.0)
    saved = best.state_dict()
    best.lines.append({"step": 2})
    best.offer(holding(2), 2, 6.0)
    again = BestStep(lines=[{"step": 8}])
    again.load_state_dict(saved)
    assert (again.step, again.figure, again.lines) == (1, 5.0, [{"step": 1}])
    assert again.state["weight"].item() == 1


def test_lines_replace_those_of_an_attempt_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    write_lines(path, [{"step": 1}, {"step": 2, "loss": 0.5}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2, "loss": 0.5},
    ]


def shared() -> dict[str, torch.Tensor]:
    norm = nn.BatchNorm1d(2)
    norm(torch.full((3, 2), 1.0 + rank()) * torch.tensor([[1.0], [2.0], [3.0]]))
    share_buffers(norm)
    return host_state(norm)


@pytest.mark.ddp
def test_every_process_gets_the_batch_statistics_of_the_main_one() -> None:
    # Rank 0 saw 1, 2 and 3: mean 2, and a tenth of it enters the running mean; rank 1 saw twice that.
    for state in run_on_ranks(shared):
        torch.testing.assert_close(state["running_mean"], torch.tensor([0.2, 0.2]))
