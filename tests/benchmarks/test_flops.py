import pytest
import torch
from flops import gflop

from codemae.models.layers import Attention


def test_operations_of_an_attention_layer_are_counted_by_hand() -> None:
    B, N, D = 2, 16, 32
    layer, x = Attention(D, 4), torch.randn(B, N, D, requires_grad=True)
    counted = gflop(lambda: layer(x).sum().backward())
    linear = 2 * B * N * D * (3 * D + D)  # qkv and output projection
    attention = 2 * 2 * B * N * N * D  # q k^T and weights v
    assert counted == pytest.approx((3 * linear + attention + 2 * attention) / 1e9)
