import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.losses.contrastive import nt_xent, prediction_loss, queue_info_nce, symmetric_info_nce

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
def test_ddp_without_gather_gradient_treats_every_key_as_a_constant() -> None:
    results = run_on_ranks(rank_step, False, world_size=WORLD)
    model, (x, y) = TwoHeads(), data()
    whole = symmetric_info_nce(*model(x, y), T).item()
    assert np.mean([value for value, _ in results]) == pytest.approx(whole, rel=1e-5)

    for rank in range(WORLD):
        u, v = (torch.nn.functional.normalize(embedded) for embedded in model(x, y))
        rows = torch.arange(rank * ROWS, (rank + 1) * ROWS)
        log_p, log_q = (u @ v.detach().T / T).log_softmax(1), (v @ u.detach().T / T).log_softmax(1)
        # DDP averages over ranks, so each rank's own loss counts by one over their number.
        (-0.5 * (log_p[rows, rows] + log_q[rows, rows]).mean() / WORLD).backward()
    for _, gradients in results:
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [symmetric_info_nce, nt_xent])
def test_one_process_has_the_whole_gradient_with_or_without_gather_gradient(
    loss: Callable[..., Tensor],
) -> None:
    gradients = []
    for gather_gradient in (True, False):
        model = TwoHeads()
        loss(*model(*data()), T, gather_gradient=gather_gradient).backward()
        gradients.append([p.grad for p in model.parameters()])
    for with_gather, without in zip(*gradients, strict=True):
        assert with_gather.abs().sum() > 0 and torch.equal(with_gather, without)


def slow_queue_loss(queries: np.ndarray, keys: np.ndarray, queue: np.ndarray, temperature: float) -> float:
    """Eq. 1 of MoCo, by loops."""
    total = 0.0
    for query, key in zip(queries, keys, strict=True):
        q, k = query / math.sqrt(sum(query**2)), key / math.sqrt(sum(key**2))
        own = math.exp(float(q @ k) / temperature)
        others = sum(math.exp(float(q @ negative) / temperature) for negative in queue)
        total -= math.log(own / (own + others))
    return total / len(queries)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_queue_loss_equals_a_double_loop(temperature: float) -> None:
    rng = np.random.default_rng(0)
    queries, keys, queue = (rng.normal(size=(count, 6)) for count in (4, 4, 9))
    queue /= np.linalg.norm(queue, axis=1, keepdims=True)
    loss = queue_info_nce(*(torch.tensor(x) for x in (queries, keys, queue)), temperature)
    assert loss.item() == pytest.approx(slow_queue_loss(queries, keys, queue, temperature), rel=1e-5)


def test_queue_loss_by_hand() -> None:
    # The query is its key, and orthogonal to the single negative: e^1 against e^1 + e^0.
    loss = queue_info_nce(torch.tensor([[2.0, 0]]), torch.tensor([[3.0, 0]]), torch.tensor([[0.0, 1]]), 1.0)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1)))


def test_neither_keys_nor_queue_get_a_gradient() -> None:
    torch.manual_seed(0)
    queries, keys, queue = (torch.randn(3, 4, requires_grad=True) for _ in range(3))
    (queue_info_nce(queries, keys, queue) + prediction_loss(queries, keys)).backward()
    assert queries.grad is not None and keys.grad is None and queue.grad is None


def test_prediction_loss_is_the_squared_distance_of_unit_vectors() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    distances = [
        sum((a / math.sqrt(sum(a**2)) - b / math.sqrt(sum(b**2))) ** 2)
        for a, b in zip(first, second, strict=True)
    ]
    loss = prediction_loss(torch.tensor(first), torch.tensor(second))
    assert loss.item() == pytest.approx(np.mean(distances), rel=1e-5)
    assert prediction_loss(torch.ones(2, 3), -torch.ones(2, 3)).item() == pytest.approx(4)


def queue_losses(model: nn.Module, rows: slice) -> Tensor:
    x, y = data()
    queries, keys = model(x[rows], y[rows])
    queue = torch.nn.functional.normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(2)))
    return queue_info_nce(queries, keys.detach(), queue) + prediction_loss(keys, queries.detach())


def queue_rank_step() -> tuple[float, list[Tensor]]:
    model = TwoHeads()
    mine = slice(distributed.rank() * ROWS, (distributed.rank() + 1) * ROWS)
    wrapped = DistributedDataParallel(model)
    loss = queue_losses(wrapped, mine)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.ddp
def test_ddp_queue_and_prediction_losses_equal_one_process_with_the_whole_batch() -> None:
    model = TwoHeads()
    loss = queue_losses(model, slice(None))
    loss.backward()
    results = run_on_ranks(queue_rank_step, world_size=WORLD)
    assert np.mean([value for value, _ in results]) == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients in results:
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


def slow_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """SimCLR's Eq. 1 over both kinds, by loops."""
    z = [row / math.sqrt(sum(x * x for x in row)) for row in (*first, *second)]
    count, total = len(first), 0.0
    for i in range(2 * count):
        similarity = [math.exp(float(np.dot(z[i], other)) / temperature) for other in z]
        total -= math.log(similarity[(i + count) % (2 * count)] / (sum(similarity) - similarity[i]))
    return total / (2 * count)


def test_nt_xent_equals_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    loss = nt_xent(torch.tensor(first), torch.tensor(second), 0.5)
    assert loss.item() == pytest.approx(slow_nt_xent(first, second, 0.5), rel=1e-5)


def test_nt_xent_by_hand() -> None:
    # Two orthogonal pairs at temperature 1: e^1 for the counterpart, e^0 for each of the two others.
    assert nt_xent(torch.eye(2), torch.eye(2), 1.0).item() == pytest.approx(-math.log(math.e / (math.e + 2)))
