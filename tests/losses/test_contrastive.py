import math

import numpy as np
import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.losses.contrastive import symmetric_info_nce

WORLD, ROWS, WIDTH, T = 2, 3, 5, 0.07


def slow_loss(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Eq. 4 with its one half, by loops."""
    u = [row / math.sqrt(sum(x * x for x in row)) for row in first]
    v = [row / math.sqrt(sum(x * x for x in row)) for row in second]
    total = 0.0
    for a, b in ((u, v), (v, u)):
        for i in range(len(a)):
            similarity = [math.exp(float(np.dot(a[i], b[j])) / temperature) for j in range(len(b))]
            total -= math.log(similarity[i] / sum(similarity))
    return total / (2 * len(u))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_loss_equals_a_double_loop(temperature: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    loss = symmetric_info_nce(torch.tensor(first), torch.tensor(second), temperature)
    assert loss.item() == pytest.approx(slow_loss(first, second, temperature), rel=1e-5)


def test_loss_by_hand() -> None:
    # Two orthogonal pairs at temperature 1: each row sees e^1 for its own and e^0 for the other.
    loss = symmetric_info_nce(torch.eye(2), torch.eye(2), 1.0)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1)))


def test_identical_embeddings_give_the_log_of_the_batch() -> None:
    same = torch.ones(8, 3)
    assert symmetric_info_nce(same, same).item() == pytest.approx(math.log(8), rel=1e-5)


def test_loss_is_symmetric_and_forgets_length() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    loss = symmetric_info_nce(first, second)
    torch.testing.assert_close(symmetric_info_nce(second, first), loss)
    torch.testing.assert_close(symmetric_info_nce(5 * first, 0.1 * second), loss)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(y)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(WORLD * ROWS, WIDTH, generator=generator) for _ in range(2))
    return x, y


def rank_step(gather_gradient: bool) -> tuple[float, list[Tensor]]:
    model = TwoHeads()
    mine = slice(distributed.rank() * ROWS, (distributed.rank() + 1) * ROWS)
    x, y = data()
    wrapped = DistributedDataParallel(model)
    loss = symmetric_info_nce(*wrapped(x[mine], y[mine]), T, gather_gradient=gather_gradient)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.ddp
def test_ddp_value_and_gradient_equal_one_process_with_the_whole_batch() -> None:
    model = TwoHeads()
    loss = symmetric_info_nce(*model(*data()), T)
    loss.backward()
    results = run_on_ranks(rank_step, True, world_size=WORLD)
    assert np.mean([value for value, _ in results]) == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients in results:
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.ddp
def test_ddp_without_gather_gradient_treats_other_ranks_as_constants() -> None:
    results = run_on_ranks(rank_step, False, world_size=WORLD)
    model, (x, y) = TwoHeads(), data()
    whole = symmetric_info_nce(*model(x, y), T).item()
    assert np.mean([value for value, _ in results]) == pytest.approx(whole, rel=1e-5)

    for rank in range(WORLD):
        first, second = model(x, y)
        own = torch.arange(WORLD * ROWS).div(ROWS, rounding_mode="floor")[:, None] == rank
        u = torch.nn.functional.normalize(torch.where(own, first, first.detach()))
        v = torch.nn.functional.normalize(torch.where(own, second, second.detach()))
        rows = torch.arange(rank * ROWS, (rank + 1) * ROWS)
        log_p, log_q = (u @ v.T / T).log_softmax(1), (v @ u.T / T).log_softmax(1)
        # DDP averages over ranks, so each rank's own loss counts by one over their number.
        (-0.5 * (log_p[rows, rows] + log_q[rows, rows]).mean() / WORLD).backward()
    for _, gradients in results:
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
