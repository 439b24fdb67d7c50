import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae.methods.graph import keep_in_graph


class Half(nn.Module):
    """Uses its second layer on some steps only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.always, self.sometimes = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        loss = self.always(x).square().mean()
        if both:
            return loss + self.sometimes(x).square().mean()
        return keep_in_graph(loss, self.sometimes.parameters())


def test_value_and_gradient_stay_and_unused_parameters_get_zeros() -> None:
    model, x = Half(), torch.ones(2, 3)
    loss = model(x, False)
    loss.backward()
    plain = Half()
    expected = plain.always(x).square().mean()
    expected.backward()
    assert loss.item() == expected.item()
    assert torch.equal(model.always.weight.grad, plain.always.weight.grad)  # type: ignore[arg-type]
    assert torch.equal(model.sometimes.weight.grad, torch.zeros(1, 3))  # type: ignore[arg-type]


def ddp_steps() -> list[float]:
    model = DistributedDataParallel(Half())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for both in (True, False, False, True):
        loss = model(torch.ones(2, 3), both)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.ddp
def test_ddp_goes_through_steps_that_leave_parameters_out() -> None:
    model = Half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alone = []
    for both in (True, False, False, True):
        loss = model(torch.ones(2, 3), both)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        alone.append(loss.item())
    for losses in run_on_ranks(ddp_steps):
        assert losses == pytest.approx(alone, rel=1e-6)
