"""Operations of a piece of PyTorch code, counted while it runs; a multiply-add is two."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_flop_count


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _cpu_attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return sdpa_flop_count(query, key, value)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _cpu_attention_backward_flops(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    # Two products forward; the backward pass needs the gradients of both operands of each.
    return 2 * sdpa_flop_count(query, key, value)


def gflop(function: Callable[[], object]) -> float:
    """10^9 operations of one call: products, convolutions and attention, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops()) / 1e9
