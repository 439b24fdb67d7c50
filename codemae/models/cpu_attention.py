"""Attention for bfloat16 on a CPU, a few heads at a time so that their scores stay in the cache."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CACHED_SCORES = 640 * 1024
"""Scores a chunk holds at most: 1.25 MiB of bfloat16, what two cores keep in their second-level caches."""


class ChunkedAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v, forward and backward, chunk after chunk of heads.

    PyTorch's fused kernel takes 1.5 to 4 times as long in its bfloat16 backward pass at 49 and 196 tokens;
    written out over all heads at once, the scores of a decoder layer (10 MB at 8 images of 196 tokens) pass
    through memory again and again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All of (B, heads, N, d); keys and values may have another length than the queries."""
        shape = q.shape
        q, k, v = (side.flatten(0, 1).contiguous() for side in (q, k, v))
        weights = q.new_empty(len(q), q.shape[1], k.shape[1])
        out, zero = torch.empty_like(q), q.new_zeros(())
        for part in _chunks(weights):
            scores = torch.baddbmm(zero, q[part], k[part].transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5)
            torch.softmax(scores, dim=-1, out=weights[part])
            torch.bmm(weights[part], v[part], out=out[part])
        ctx.save_for_backward(q, k, v, weights)
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        q, k, v, weights = ctx.saved_tensors
        heads, scale, zero = gradient.shape[:2], q.shape[-1] ** -0.5, q.new_zeros(())
        gradient = gradient.flatten(0, 1).contiguous()
        grad_q, grad_k, grad_v = (torch.empty_like(side) for side in (q, k, v))
        for part in _chunks(weights):
            torch.bmm(weights[part].transpose(1, 2), gradient[part], out=grad_v[part])
            grad_weights = torch.bmm(gradient[part], v[part].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights[part], -1, q.dtype)
            torch.baddbmm(zero, grad_scores, k[part], beta=0, alpha=scale, out=grad_q[part])
            torch.baddbmm(zero, grad_scores.transpose(1, 2), q[part], beta=0, alpha=scale, out=grad_k[part])
        return grad_q.unflatten(0, heads), grad_k.unflatten(0, heads), grad_v.unflatten(0, heads)


def _chunks(weights: Tensor) -> list[slice]:
    count = max(1, _CACHED_SCORES // (weights.shape[1] * weights.shape[2]))
    return [slice(start, start + count) for start in range(0, len(weights), count)]
