import dataclasses
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn

from codemae.checkpoint import load_run_state
from codemae.distributed import rank, world_size
from codemae.engine.interruption import Interrupted
from codemae.engine.schedule import learning_rate
from codemae.engine.supervised import (
    Checkpoints,
    SupervisedError,
    SupervisedSettings,
    SupervisedStep,
    train_supervised,
)

CPU = torch.device("cpu")


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(count)
    ]


def run(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], scale: float = 1.0, **changes: object
) -> list[SupervisedStep]:
    settings = dataclasses.replace(SupervisedSettings(lr=0.1, weight_decay=0.2, min_lr=0.01), **changes)
    reports: list[SupervisedStep] = []
    train_supervised(
        model,
        [{"params": list(model.parameters()), "weight_decay": 0.2, "lr_scale": scale}],
        lambda done: batches[done * settings.grad_accum_steps :],
        lambda module, batch: (module(batch[0]) - batch[1]).square().mean(),
        settings,
        total_steps=len(batches) // settings.grad_accum_steps,
        warmup_steps=2,
        peak=0.1,
        device=CPU,
        seed=0,
        after_step=reports.append,
    )
    return reports


def adam_by_hand(batches: list[tuple[Tensor, Tensor]], rates: list[float], clip: float | None) -> Tensor:
    """AdamW as its paper writes it, on the weight and bias of one linear layer, in double precision."""
    first = linear()
    theta = torch.cat([first.weight[0], first.bias]).detach().double()
    m, v = torch.zeros(4).double(), torch.zeros(4).double()
    for step, ((x, y), rate) in enumerate(zip(batches, rates, strict=True), 1):
        design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
        gradient = 2 * design.T @ (design @ theta - y[:, 0].double()) / len(x)
        if clip is not None and gradient.norm() > clip:
            gradient = gradient * clip / gradient.norm()
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        theta = theta * (1 - rate * 0.2)
        theta = theta - rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
    return theta


@pytest.mark.parametrize(("scale", "clip"), [(1.0, None), (0.5, None), (1.0, 0.3)])
def test_the_weights_are_those_of_adamw_by_hand(scale: float, clip: float | None) -> None:
    batches, model = data(6), linear()
    reports = run(model, batches, scale, clip_grad=clip)
    # Warm-up 1/2, 2/2, then half a cosine from 0.1 to 0.01 over four steps.
    cosine = [0.01 + 0.09 * 0.5 * (1 + math.cos(math.pi * part / 4)) for part in range(4)]
    rates = [0.05, 0.1, *cosine]
    assert [report.lr for report in reports] == pytest.approx(rates)
    expected = adam_by_hand(batches, [rate * scale for rate in rates], clip)
    found = torch.cat([model.weight[0], model.bias]).detach().double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_accumulating_two_batches_equals_one_of_both() -> None:
    small = data(8)
    large = [
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
        for a, b in zip(small[::2], small[1::2], strict=True)
    ]
    accumulated, whole = linear(), linear()
    run(accumulated, small, grad_accum_steps=2)
    run(whole, large)
    torch.testing.assert_close(accumulated.weight, whole.weight)


def test_the_same_call_twice_gives_the_same_bits_with_dropout() -> None:
    def weights(noise: int) -> Tensor:
        model = nn.Sequential(linear(), nn.Dropout(0.5))
        torch.manual_seed(noise)
        run(model, data(5))
        return model[0].weight.detach()

    assert torch.equal(weights(1), weights(2))


def test_the_model_is_in_training_mode_after_an_evaluation() -> None:
    model, modes = linear(), []

    def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        modes.append(module.training)
        return module(batch[0]).square().mean()

    train_supervised(
        model,
        [{"params": list(model.parameters())}],
        lambda done: data(3),
        loss_of,
        SupervisedSettings(),
        total_steps=3,
        warmup_steps=0,
        peak=0.1,
        device=CPU,
        seed=0,
        after_step=lambda report: model.eval() and None,
    )
    assert modes == [True] * 3


def test_a_step_that_is_not_finite_moves_nothing_and_many_in_a_row_end_the_run() -> None:
    bad = (torch.full((4, 3), torch.nan), torch.zeros(4, 1))
    model, start = linear(), linear()
    reports = run(model, [bad, bad])
    assert [report.finite for report in reports] == [False, False]
    assert torch.equal(model.weight, start.weight)
    with pytest.raises(SupervisedError, match="10 steps in a row.*clip_grad"):
        run(linear(), [bad] * 20)


def test_too_few_batches_are_an_error() -> None:
    model = linear()
    with pytest.raises(SupervisedError, match="ran out after 2 of 3 steps"):
        train_supervised(
            model,
            [{"params": list(model.parameters())}],
            lambda done: data(2),
            lambda module, batch: module(batch[0]).mean(),
            SupervisedSettings(),
            total_steps=3,
            warmup_steps=0,
            peak=0.1,
            device=CPU,
            seed=0,
            after_step=lambda report: None,
        )


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="optim.epochs is 0"):
        SupervisedSettings(epochs=0)
    assert SupervisedSettings(base_lr=1e-3).peak(32) == pytest.approx(1.25e-4)
    assert SupervisedSettings(lr=0.5).peak(32) == 0.5


def test_steps_may_be_counted_instead_of_epochs() -> None:
    by_epoch = SupervisedSettings(epochs=3, warmup_epochs=0.5)
    assert (by_epoch.total_steps(10), by_epoch.warmup(10)) == (30, 5)
    by_step = SupervisedSettings(max_steps=30_000, warmup_steps=100)
    assert (by_step.total_steps(10), by_step.warmup(10)) == (30_000, 100)
    with pytest.raises(ValueError, match="optim.max_steps is 0"):
        SupervisedSettings(max_steps=0)


def test_the_polynomial_schedule_reaches_the_optimizer() -> None:
    reports = run(linear(), data(6), schedule="poly", power=2.0)
    # Warm-up 1/2, 2/2, then 0.01 + 0.09 (1 - x)^2 at x = 0, 1/4, 1/2, 3/4.
    assert [report.lr for report in reports] == pytest.approx([0.05, 0.1, 0.1, 0.060625, 0.0325, 0.015625])
    straight = [learning_rate(s, total_steps=4, warmup_steps=0, peak=1.0, shape="poly") for s in range(5)]
    assert straight == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


class Journal:
    """A task's notes: the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses = list(state["losses"])


def network() -> nn.Sequential:
    """With what could break an exact resume: dropout and batch statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def train(
    folder: Path | None,
    *,
    steps: int = 12,
    every: int = 0,
    identity: str = "a",
    at_step: Callable[[SupervisedStep], None] | None = None,
    batches: list[tuple[Tensor, Tensor]] | None = None,
    **changes: Any,
) -> tuple[list[float], dict[str, Tensor]]:
    """A run of two batches a step, in a folder; the loss of each step and the weights at its end."""
    changes = {"lr": 0.05, "grad_accum_steps": 2, "clip_grad": 1.0} | changes
    settings = SupervisedSettings(**changes)
    model, journal, samples = network(), Journal(), batches or data(2 * steps)

    def after_step(report: SupervisedStep) -> None:
        journal.losses.append(report.loss)
        if at_step is not None:
            at_step(report)

    kept = folder and Checkpoints(folder=folder, every=every, identity={"data": identity}, notes=journal)
    train_supervised(
        model,
        [{"params": list(model.parameters()), "lr_scale": 0.5}],
        lambda done: samples[done * settings.grad_accum_steps :],
        lambda module, batch: (module(batch[0]) - batch[1]).square().mean(),
        settings,
        total_steps=steps,
        warmup_steps=3,
        peak=0.05,
        device=CPU,
        seed=4,
        after_step=after_step,
        checkpoints=kept or None,
    )
    return journal.losses, model.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("stop", [1, 5, 11])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_and_resumed_the_bits_are_the_same(
    tmp_path: Path, stop: int, signum: signal.Signals
) -> None:
    losses, weights = train(None)

    def send(report: SupervisedStep) -> None:
        if report.step == stop:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted) as stopped:
        train(tmp_path, at_step=send)
    assert stopped.value.exit_code == 128 + signum
    state = load_run_state(tmp_path)
    assert state["step"] == stop + 1 and state["notes"]["losses"] == losses[: stop + 1]
    resumed, final = train(tmp_path)
    assert resumed == losses and same(weights, final)
    again, unchanged = train(tmp_path, at_step=lambda report: pytest.fail("it was done"))
    assert again == losses and same(weights, unchanged)


def test_killed_between_two_checkpoints_it_goes_on_from_the_last(tmp_path: Path) -> None:
    losses, weights = train(None)

    class PowerLossError(Exception):
        pass

    def die(report: SupervisedStep) -> None:
        if report.step == 9:
            raise PowerLossError

    with pytest.raises(PowerLossError):
        train(tmp_path, every=4, at_step=die)
    assert load_run_state(tmp_path)["step"] == 8
    resumed, final = train(tmp_path, every=4)
    assert resumed == losses and same(weights, final)


def test_what_was_saved_by_another_training_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    with pytest.raises(SupervisedError, match="another --output_dir.*set back: data was 'a', is 'b'"):
        train(tmp_path, steps=4, identity="b")


def test_ten_steps_that_are_not_finite_leave_a_checkpoint_from_before_them(tmp_path: Path) -> None:
    good = data(24)
    spoiled = [*good[:8], *[(torch.full((4, 3), torch.nan), torch.zeros(4, 1))] * 30]
    with pytest.raises(SupervisedError, match="10 steps in a row.*the first after step 4"):
        train(tmp_path, steps=19, batches=spoiled)
    state = load_run_state(tmp_path)
    assert state["step"] == 4 and len(state["notes"]["losses"]) == 4
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    resumed, final = train(tmp_path, batches=good)
    losses, weights = train(None, batches=good)
    assert resumed == losses and same(weights, final)


def test_bfloat16_trains_in_bfloat16_and_close_to_float32(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()
    exact, half = linear(), linear()
    batches = data(6)
    run(exact, batches)

    def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        output = module(batch[0])
        seen.add(output.dtype)
        return (output.float() - batch[1]).square().mean()

    train_supervised(
        half,
        [{"params": list(half.parameters()), "weight_decay": 0.2}],
        lambda done: batches,
        loss_of,
        SupervisedSettings(lr=0.1, weight_decay=0.2, min_lr=0.01, amp="bfloat16"),
        total_steps=6,
        warmup_steps=2,
        peak=0.1,
        device=CPU,
        seed=0,
        after_step=lambda report: None,
    )
    assert seen == {torch.bfloat16} and half.weight.dtype == torch.float32
    # A step moves a weight by about the rate, whose sum is 0.4; bfloat16 has 8 bits.
    torch.testing.assert_close(half.weight, exact.weight, atol=0.02, rtol=0)
    assert not torch.equal(half.weight, exact.weight)


def train_on_ranks(folder: str | None, stop: int) -> tuple[list[float], dict[str, Tensor]]:
    """This rank's half of the batches; rank 1 alone is sent a signal after a step, where one is named."""
    mine = [batch for number, batch in enumerate(data(24)) if number % world_size() == rank()]

    def send(report: SupervisedStep) -> None:
        if report.step == stop and rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    place = Path(folder) if folder else None
    changes: dict[str, Any] = {"grad_accum_steps": 2 // world_size(), "batches": mine, "at_step": send}
    try:
        return train(place, **changes)
    except Interrupted:
        return [], {}


@pytest.mark.ddp
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    losses, weights = train(None, batches=data(24))
    both = run_on_ranks(train_on_ranks, None, 0)
    for found, final in both:
        assert found == pytest.approx(losses, rel=1e-5)
        for name, value in final.items():
            if "running" not in name and "tracked" not in name:  # a rank's batch norm sees its own batch
                torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-5)


@pytest.mark.ddp
def test_a_signal_to_one_process_stops_and_saves_all_and_they_resume_exactly(tmp_path: Path) -> None:
    whole = run_on_ranks(train_on_ranks, str(tmp_path / "whole"), 0)
    stopped = run_on_ranks(train_on_ranks, str(tmp_path / "stopped"), 5)
    assert [losses for losses, _ in stopped] == [[], []]
    assert load_run_state(tmp_path / "stopped")["step"] == 6
    resumed = run_on_ranks(train_on_ranks, str(tmp_path / "stopped"), 0)
    assert [losses for losses, _ in resumed] == [losses for losses, _ in whole]
    assert same(resumed[0][1], whole[0][1])
