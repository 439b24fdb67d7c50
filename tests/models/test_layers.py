import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor

from codemae.models import cpu_attention
from codemae.models.layers import Attention, Block, CrossAttention, attend


def slow_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query at a time, in double precision."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for n in range(q.shape[2]):
                scores = torch.stack([(q[b, h, n].double() * key.double()).sum() for key in k[b, h]])
                weights = torch.exp(scores / q.shape[3] ** 0.5)
                out[b, h, n] = ((weights / weights.sum())[:, None] * v[b, h].double()).sum(0)
    return out


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_equals_a_triple_loop_and_so_does_its_gradient(
    dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 4).to(dtype).requires_grad_() for _ in range(3))
    expected = slow_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v).double(), expected, rtol=tolerance, atol=tolerance)
    wanted = torch.autograd.grad(expected.square().sum(), (q, k, v))
    found = torch.autograd.grad(attend(q, k, v).square().sum(), (q, k, v))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=5 * tolerance, atol=10 * tolerance)


def test_attention_in_chunks_of_heads_equals_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_CACHED_SCORES", 2 * 6 * 9)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.bfloat16).requires_grad_() for n in (6, 9, 9))
    answers = []
    for attention in (attend, F.scaled_dot_product_attention):
        out = attention(q, k, v)
        answers.append([out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))])
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2)


def test_cross_attention_reads_the_context_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(8, 2, pre_norm=True, output_projection=True, bias=True)
    queries, context = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    answer = layer(queries, context)
    torch.testing.assert_close(layer(queries, context[:, torch.randperm(5)]), answer)
    torch.testing.assert_close(layer(queries[:, :1], context), answer[:, :1])
    assert not torch.allclose(layer(queries, 2 * context + torch.randn(1, 5, 8)), answer)


def test_a_width_that_does_not_divide_into_heads_is_refused() -> None:
    for build in (
        lambda: Attention(10, 3),
        lambda: CrossAttention(10, 3, pre_norm=True, output_projection=True, bias=True),
    ):
        with pytest.raises(ValueError, match="width 10 is not a multiple of 3 heads"):
            build()


def test_an_mlp_block_takes_any_leading_dimensions() -> None:
    torch.manual_seed(0)
    block, x = Block(8, 0, mlp_ratio=3.0), torch.randn(2, 3, 4, 4, 8)
    normed = F.layer_norm(x, (8,), block.norm2.weight, block.norm2.bias, eps=1e-6)
    expected = x + block.mlp.fc2(F.gelu(block.mlp.fc1(normed)))
    torch.testing.assert_close(block(x), expected)
    assert block.attn is None and not any(isinstance(m, DropPath) for m in block.modules())
