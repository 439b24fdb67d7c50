"""Process group, ranks and collectives; without a group every answer is that of a single process.

Gradients follow one convention. DistributedDataParallel averages parameter gradients over ranks, so the
loss of the whole batch is the mean of the losses of the ranks. A differentiable collective therefore sums,
in its backward, the gradients that all ranks hold for this rank's input: under DDP the parameters then get
exactly the gradient of one process that held the whole batch, whether each rank computes the whole loss or
only its own rows of it.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Index of this process among all; 0 without a group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes; 1 without a group."""
    return dist.get_world_size() if is_distributed() else 1


def local_rank() -> int:
    """Index of this process on its node, as torchrun says; 0 without it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if is_distributed():
        dist.barrier()


def select_device(name: str = "auto") -> torch.device:
    """The device of this process.

    Args:
        name: ``auto`` (an accelerator if there is one), ``cpu`` or ``cuda``.

    Raises:
        ValueError: ``cuda`` is asked for and there is none, or there are fewer than processes on this node.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu or auto")
    if local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank()} of this node has no GPU: torch sees {torch.cuda.device_count()}; "
            "start torchrun with a smaller --nproc_per_node"
        )
    return torch.device("cuda", local_rank())


@contextmanager
def process_group(device: torch.device, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Joins the process group that torchrun announces in the environment; does nothing without one.

    Nothing built inside, such as a DDP module, may be referred to when the context ends: torch deadlocks
    when the last reference to a group goes with such a module after the group was left. After an error the
    group is therefore left to the end of the process, which also lets torchrun see the error at once.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=timeout, device_id=device if on_gpu else None
    )
    yield
    gc.collect()
    dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Concatenates over ranks; the gradient of a rank's part is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = tensor.shape[0]
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[rank() * ctx.rows : (rank() + 1) * ctx.rows]


class _Sum(torch.autograd.Function):
    """Sums over ranks, forward and backward."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def all_gather(tensor: Tensor, differentiable: bool = True) -> Tensor:
    """Concatenates the tensors of all ranks along dimension 0, in rank order.

    Args:
        tensor: Of the same shape on every rank.
        differentiable: Whether gradients reach the parts of all ranks; else none reaches any part,
            this rank's own included.
    """
    if not is_distributed():
        return tensor if differentiable else tensor.detach()
    tensor = tensor.contiguous()
    if differentiable:
        return _Gather.apply(tensor)
    with torch.no_grad():
        return _Gather.apply(tensor.detach())


def all_reduce_sum(tensor: Tensor, differentiable: bool = True) -> Tensor:
    """Sum over ranks, as a new tensor."""
    if not is_distributed():
        return tensor if differentiable else tensor.detach()
    if differentiable:
        return _Sum.apply(tensor)
    with torch.no_grad():
        return _Sum.apply(tensor.detach())


def all_reduce_mean(tensor: Tensor, differentiable: bool = True) -> Tensor:
    """Mean over ranks, as a new tensor."""
    total = all_reduce_sum(tensor, differentiable)
    return total if world_size() == 1 else total / world_size()


def all_true(flag: bool, device: torch.device) -> bool:
    """Whether the flag holds on every rank."""
    if not is_distributed():
        return flag
    count = torch.tensor(float(flag), device=device)
    dist.all_reduce(count)
    return int(count.item()) == world_size()


def broadcast_object(value: T) -> T:
    """The value of rank 0, on every rank."""
    if not is_distributed():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The values of all ranks in rank order, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
