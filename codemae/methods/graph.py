"""Keeping DDP whole on steps that do not use every parameter."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class _KeepInGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [parameter.detach() for parameter in parameters]
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(parameter) for parameter in ctx.like)


def keep_in_graph(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Returns the loss unchanged, with zero gradients for parameters this step did not use.

    DDP waits for a gradient of every parameter. On unpaired steps the cross-modal modules do not run; this
    hands it their zeros without running them and multiplying the result by zero, and without the graph
    search of ``find_unused_parameters``.
    """
    return _KeepInGraph.apply(loss, *(p for p in parameters if p.requires_grad))
