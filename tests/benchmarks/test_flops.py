import pytest
import torch
from flops import gflop

from codemae.models.layers import Attention


# In bfloat16 a CPU takes ``ChunkedAttention``, in float32 PyTorch's fused kernel.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operations_of_an_attention_layer_are_counted_by_hand(dtype: torch.dtype) -> None:
    B, N, D = 2, 16, 32
    layer, x = Attention(D, 4).to(dtype), torch.randn(B, N, D, dtype=dtype, requires_grad=True)
    counted = gflop(lambda: layer(x).sum().backward())
    linear = 2 * B * N * D * (3 * D + D)  # qkv and output projection
    attention = 2 * 2 * B * N * N * D  # q k^T and weights v
    assert counted == pytest.approx((3 * linear + attention + 2 * attention) / 1e9)
