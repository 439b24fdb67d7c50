import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.models.sync_norm import with_global_batch_norm

WORLD, ROWS = 2, 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.BatchNorm1d(3, affine=False),
    )


def images() -> Tensor:
    return torch.randn(WORLD * ROWS, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def train(module: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    for _ in range(2):
        module.zero_grad()
        (module(x).sigmoid() ** 3).mean().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None], module.state_dict()


def rank_train() -> tuple[list[Tensor], dict[str, Tensor]]:
    module = with_global_batch_norm(net())
    wrapped = DistributedDataParallel(module)
    mine = images()[distributed.rank() * ROWS : (distributed.rank() + 1) * ROWS]
    gradients, state = train(wrapped, mine)
    return gradients, {name.removeprefix("module."): value for name, value in state.items()}


@pytest.mark.ddp
def test_two_processes_equal_torchs_batch_norm_on_the_whole_batch() -> None:
    expected_gradients, expected_state = train(net(), images())
    for gradients, state in run_on_ranks(rank_train, world_size=WORLD):
        assert state.keys() == expected_state.keys()
        for name, value in expected_state.items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
        for gradient, expected in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_one_process_equals_torch_in_training_and_evaluation() -> None:
    ours, theirs = with_global_batch_norm(net()), net()
    for module in (ours, theirs):
        train(module, images())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert torch.equal(ours.eval()(images()), theirs.eval()(images()))
