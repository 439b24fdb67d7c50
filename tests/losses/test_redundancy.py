import math

import numpy as np
import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.losses.redundancy import cross_correlation, redundancy_loss, vicreg_terms

WORLD, ROWS, WIDTH, DIM = 2, 4, 5, 3


def slow_correlation(first: np.ndarray, second: np.ndarray) -> list[list[float]]:
    """Eq. 1 of DeCUR, by loops, on columns without their mean; the batch norm's 1e-5 beside each variance."""
    n, k = first.shape
    columns = []
    for embedding in (first, second):
        mean = [sum(embedding[b][i] for b in range(n)) / n for i in range(k)]
        columns.append([[embedding[b][i] - mean[i] for b in range(n)] for i in range(k)])
    norms = [[math.sqrt(sum(x * x for x in column) + n * 1e-5) for column in side] for side in columns]
    return [
        [
            sum(columns[0][i][b] * columns[1][j][b] for b in range(n)) / (norms[0][i] * norms[1][j])
            for j in range(k)
        ]
        for i in range(k)
    ]


def slow_redundancy(correlation: list[list[float]], weight: float, target: float) -> float:
    total = 0.0
    for i, row in enumerate(correlation):
        for j, value in enumerate(row):
            total += (target - value) ** 2 if i == j else weight * value**2
    return total


def embeddings(seed: int = 0, rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(rows, DIM)) * 3 + 1
    return first, first @ rng.normal(size=(DIM, DIM)) + 0.1 * rng.normal(size=(rows, DIM))


def test_correlation_equals_a_triple_loop() -> None:
    first, second = embeddings()
    found = cross_correlation(torch.tensor(first), torch.tensor(second))
    np.testing.assert_allclose(found.numpy(), slow_correlation(first, second), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", [1.0, 0.0])
def test_redundancy_equals_a_double_loop(target: float) -> None:
    first, second = embeddings()
    loss = redundancy_loss(
        cross_correlation(torch.tensor(first), torch.tensor(second)), 0.0051, target=target
    )
    assert loss.item() == pytest.approx(
        slow_redundancy(slow_correlation(first, second), 0.0051, target), rel=1e-4
    )


def test_redundancy_by_hand() -> None:
    # C = [[1, 1/2], [0, -1]]: to the identity (0 + 4) + 0.1 * 1/4, to zero (1 + 1) + 0.1 * 1/4.
    correlation = torch.tensor([[1.0, 0.5], [0.0, -1.0]])
    assert redundancy_loss(correlation, 0.1).item() == pytest.approx(4.025)
    assert redundancy_loss(correlation, 0.1, target=0.0).item() == pytest.approx(2.025)
    assert redundancy_loss(correlation[:0, :0], 0.1).item() == 0


@pytest.mark.parametrize("rows", [8, 32])
def test_unrelated_embeddings_have_the_loss_of_chance(rows: int) -> None:
    dim, draws, weight = 12, 400, 0.0051
    first, second = torch.randn(2, draws, rows, dim, generator=torch.Generator().manual_seed(0))
    correlations = [cross_correlation(a, b) for a, b in zip(first, second, strict=True)]
    chance = (dim + weight * dim * (dim - 1)) / (rows - 1)
    for target, expected in ((0.0, chance), (1.0, dim + chance)):
        found = torch.stack([redundancy_loss(c, weight, target=target) for c in correlations]).mean()
        assert found.item() == pytest.approx(expected, rel=0.05)


def test_correlation_forgets_scale_and_offset() -> None:
    first, second = (torch.tensor(x) for x in embeddings())
    torch.testing.assert_close(
        cross_correlation(7 * first + 5, second / 3 - 2),
        cross_correlation(first, second),
        rtol=1e-3,
        atol=1e-4,
    )


def test_gradient_equals_finite_differences() -> None:
    first, second = embeddings()

    def value(x: np.ndarray) -> float:
        correlation = slow_correlation(x, second)
        return slow_redundancy(correlation, 0.0051, 1.0)

    tensor = torch.tensor(first, dtype=torch.float32, requires_grad=True)
    redundancy_loss(cross_correlation(tensor, torch.tensor(second))).backward()
    assert tensor.grad is not None
    for b, i in ((0, 0), (3, 1), (5, 2)):
        step = np.zeros_like(first)
        step[b, i] = 1e-4
        slope = (value(first + step) - value(first - step)) / 2e-4
        assert tensor.grad[b, i].item() == pytest.approx(slope, rel=2e-2, abs=1e-4)


def slow_vicreg(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    n, k = first.shape
    invariance = sum((first[b][i] - second[b][i]) ** 2 for b in range(n) for i in range(k)) / (n * k)
    variance = covariance = 0.0
    for z in (first, second):
        mean = [sum(z[b][i] for b in range(n)) / n for i in range(k)]
        for i in range(k):
            for j in range(k):
                c = sum((z[b][i] - mean[i]) * (z[b][j] - mean[j]) for b in range(n)) / (n - 1)
                if i == j:
                    variance += max(0.0, 1 - math.sqrt(c + 1e-4)) / k / 2
                else:
                    covariance += c**2 / k
    return invariance, variance, covariance


def test_vicreg_equals_loops() -> None:
    first, second = (0.2 * x for x in embeddings())
    terms = vicreg_terms(torch.tensor(first), torch.tensor(second))
    expected = slow_vicreg(first, second)
    assert expected[1] > 0.05
    found = (terms.invariance.item(), terms.variance.item(), terms.covariance.item())
    assert found == pytest.approx(expected, rel=1e-4)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, DIM)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(y)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(WORLD * ROWS, WIDTH, generator=generator) for _ in range(2))
    return x, y


def loss_of(kind: str, first: Tensor, second: Tensor) -> Tensor:
    if kind == "vicreg":
        terms = vicreg_terms(first, second)
        return 25 * terms.invariance + 25 * terms.variance + terms.covariance
    correlation = cross_correlation(first, second, gather_gradient=kind == "redundancy")
    return redundancy_loss(correlation[:2, :2]) + redundancy_loss(correlation[2:, 2:], target=0.0)


def rank_step(kind: str) -> tuple[float, list[Tensor]]:
    model = TwoHeads()
    mine = slice(distributed.rank() * ROWS, (distributed.rank() + 1) * ROWS)
    x, y = data()
    wrapped = DistributedDataParallel(model)
    loss = loss_of(kind, *wrapped(x[mine], y[mine]))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.ddp
@pytest.mark.parametrize("kind", ["redundancy", "vicreg"])
def test_ddp_value_and_gradient_equal_one_process_with_the_whole_batch(kind: str) -> None:
    model = TwoHeads()
    loss = loss_of(kind, *model(*data()))
    loss.backward()
    results = run_on_ranks(rank_step, kind, world_size=WORLD)
    assert np.mean([value for value, _ in results]) == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients in results:
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.ddp
def test_ddp_without_gather_gradient_has_the_value_and_half_the_product_gradient() -> None:
    model = TwoHeads()
    loss = loss_of("redundancy", *model(*data()))
    loss.backward()
    results = run_on_ranks(rank_step, "local", world_size=WORLD)
    for value, gradients in results:
        assert value == pytest.approx(loss.item(), rel=1e-5)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(gradient, parameter.grad / WORLD, rtol=1e-3, atol=1e-5)
