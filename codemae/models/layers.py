"""Transformer pieces shared by encoders, decoders and heads.

Shape letters, used everywhere in this library: B batch, C channels, H W pixels, h w patch grid, N tokens,
M kept tokens, D width, P patch side, V views, K classes.
"""

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from codemae.models.cpu_attention import ChunkedAttention

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by PyTorch's fused kernel, all of (B, heads, N, d).

    In bfloat16 on a CPU by ``ChunkedAttention``, which is faster there.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return cast(Tensor, ChunkedAttention.apply(q, k, v))
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(d)) v, by PyTorch's fused kernel.

    Args:
        dim: Width D.
        num_heads: Heads; D must be a multiple.

    Shape:
        (B, N, D) -> (B, N, D).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attends each token to all tokens of its image."""
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class CrossAttention(nn.Module):
    """Tokens of one image ask those of another; the answer is returned without residual.

    Args:
        dim: Width D of queries, keys, values.
        num_heads: Heads.
        pre_norm: LayerNorm on queries and on keys/values, each its own.
        output_projection: A last Linear over the heads.
        bias: Bias in the query and key/value maps.

    Shape:
        queries (B, N, D), context (B, L, D) -> (B, N, D).
    """

    def __init__(
        self, dim: int, num_heads: int, *, pre_norm: bool, output_projection: bool, bias: bool
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of {num_heads} heads")
        self.num_heads = num_heads
        self.n_q = LayerNorm(dim) if pre_norm else nn.Identity()
        self.n_kv = LayerNorm(dim) if pre_norm else nn.Identity()
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim) if output_projection else nn.Identity()

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """What each query token finds in the context."""
        B, N, D = queries.shape
        q = self.q(self.n_q(queries)).view(B, N, self.num_heads, -1).transpose(1, 2)
        k, v = (
            self.kv(self.n_kv(context))
            .view(B, -1, 2, self.num_heads, D // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))


class Block(nn.Module):
    """Pre-norm residual block: attention (none where ``num_heads`` is 0), then a GELU MLP.

    Args:
        dim: Width D.
        num_heads: Heads; 0 makes an MLP-only block, which accepts any leading dimensions.
        mlp_ratio: Hidden width of the MLP over D.
        drop_path: Probability that a sample skips a residual branch in training.

    Shape:
        (..., D) -> (..., D); (B, N, D) with attention.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1: nn.Module | None = LayerNorm(dim) if num_heads else None
        self.attn: nn.Module | None = Attention(dim, num_heads) if num_heads else None
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """One residual step."""
        if self.attn is not None and self.norm1 is not None:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_linear_xavier(module: nn.Module) -> None:
    """Initialises every Linear as MAE does: Xavier uniform weights, zero biases. For ``Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
