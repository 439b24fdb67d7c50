import pytest
import torch
import torch.nn.functional as F
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed

WORLD, ROWS, WIDTH = 2, 3, 5


def _model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 4)


def _data() -> Tensor:
    return torch.randn(WORLD * ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def _mine(data: Tensor) -> Tensor:
    return data[distributed.rank() * ROWS : (distributed.rank() + 1) * ROWS]


def _whole_contrast(z: Tensor) -> Tensor:
    return F.cross_entropy(z @ z.T, torch.arange(len(z)).roll(1))


def _part_contrast(z: Tensor) -> Tensor:
    """This rank's rows of the contrast, against the columns of all ranks."""
    everything = distributed.all_gather(z)
    first = distributed.rank() * ROWS
    targets = torch.arange(WORLD * ROWS).roll(1)[first : first + ROWS]
    return F.cross_entropy(z @ everything.T, targets)


def _correlation(mean_over_batch: Tensor) -> Tensor:
    return (mean_over_batch**3).sum()


LOSSES = {
    "every rank computes the whole loss": lambda z: _whole_contrast(distributed.all_gather(z)),
    "every rank computes its rows": _part_contrast,
    "mean": lambda z: _correlation(distributed.all_reduce_mean(z.T @ z / len(z))),
    "sum": lambda z: _correlation(distributed.all_reduce_sum(z.T @ z) / (WORLD * ROWS)),
}
ORACLES = {
    "every rank computes the whole loss": _whole_contrast,
    "every rank computes its rows": _whole_contrast,
    "mean": lambda z: _correlation(z.T @ z / len(z)),
    "sum": lambda z: _correlation(z.T @ z / len(z)),
}


def _ddp_step(name: str) -> tuple[float, Tensor, Tensor]:
    model = _model()
    wrapped = DistributedDataParallel(model)
    loss = LOSSES[name](wrapped(_mine(_data())))
    loss.backward()
    mean = distributed.all_reduce_mean(loss.detach(), differentiable=False)
    return float(mean), model.weight.grad.clone(), model.bias.grad.clone()


@pytest.mark.ddp
@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_and_gradient_under_ddp_equal_one_process_with_the_whole_batch(name):
    model = _model()
    loss = ORACLES[name](model(_data()))
    loss.backward()

    for value, weight, bias in run_on_ranks(_ddp_step, name):
        assert value == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(weight, model.weight.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bias, model.bias.grad, rtol=1e-4, atol=1e-6)


def _values() -> dict[str, object]:
    rank = distributed.rank()
    tensor = torch.tensor([[float(rank), 1.0]], requires_grad=True)
    apart = distributed.all_gather(tensor, differentiable=False)
    return {
        "rank": (rank, distributed.world_size(), distributed.is_main()),
        "gathered": distributed.all_gather(tensor).tolist(),
        "apart_needs_gradient": apart.requires_grad,
        "sum": distributed.all_reduce_sum(tensor).tolist(),
        "mean": distributed.all_reduce_mean(tensor).tolist(),
        "input_unchanged": tensor.tolist(),
        "all": distributed.all_true(True, torch.device("cpu")),
        "not_all": distributed.all_true(rank == 0, torch.device("cpu")),
        "said": distributed.broadcast_object({"from": rank}),
        "told": distributed.gather_objects(f"rank {rank}"),
    }


@pytest.mark.ddp
def test_collectives_on_two_ranks():
    for rank, values in enumerate(run_on_ranks(_values)):
        assert values["rank"] == (rank, 2, rank == 0)
        assert values["gathered"] == [[0.0, 1.0], [1.0, 1.0]]
        assert values["apart_needs_gradient"] is False
        assert values["sum"] == [[1.0, 2.0]]
        assert values["mean"] == [[0.5, 1.0]]
        assert values["input_unchanged"] == [[float(rank), 1.0]]
        assert (values["all"], values["not_all"]) == (True, False)
        assert values["said"] == {"from": 0}
        assert values["told"] == ["rank 0", "rank 1"]


def test_without_a_group_every_answer_is_that_of_one_process():
    values = _values()
    assert values["rank"] == (0, 1, True)
    assert values["gathered"] == values["sum"] == values["mean"] == [[0.0, 1.0]]
    assert values["apart_needs_gradient"] is False
    assert values["said"] == {"from": 0} and values["told"] == ["rank 0"]


def test_asking_for_a_gpu_that_is_not_there_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.select_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device cpu or auto"):
        distributed.select_device("cuda")


def test_more_processes_than_gpus_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="smaller --nproc_per_node"):
        distributed.select_device("cuda")
