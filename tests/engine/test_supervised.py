import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from codemae.engine.supervised import (
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
        batches,
        lambda batch: (model(batch[0]) - batch[1]).square().mean(),
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

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        modes.append(model.training)
        return model(batch[0]).square().mean()

    train_supervised(
        model,
        [{"params": list(model.parameters())}],
        data(3),
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
    with pytest.raises(SupervisedError, match="11 steps in a row.*clip_grad"):
        run(linear(), [bad] * 20)


def test_too_few_batches_are_an_error() -> None:
    model = linear()
    with pytest.raises(SupervisedError, match="ran out after 2 of 3 steps"):
        train_supervised(
            model,
            [{"params": list(model.parameters())}],
            data(2),
            lambda batch: model(batch[0]).mean(),
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
