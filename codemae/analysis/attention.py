"""How much attention each patch gets in an encoder's last attention layer."""

from typing import Any

import torch
from torch import Tensor, nn


def last_attention_layer(encoder: nn.Module) -> nn.Module:
    """The last module with a joint query-key-value map over all tokens.

    Raises:
        ValueError: There is none, as in convolutional encoders, or it attends within windows.
    """
    layers = [m for m in encoder.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")]
    if not layers or hasattr(layers[-1], "relative_position_bias_table"):
        raise ValueError(
            f"{type(encoder).__name__} has no self-attention over the whole image; "
            "`--explain attention` needs a ViT or HiViT"
        )
    return layers[-1]


@torch.no_grad()
def attention_received(encoder: Any, images: Tensor, modality: str) -> Tensor:
    """Attention of the last layer, averaged over heads and over the tokens that give it.

    Args:
        encoder: With a global attention layer.
        images: (B, C, H, W), standardised.
        modality: Of the images.

    Returns:
        (B, N) over the patches, each row with sum 1; tokens that are no patch (class, registers) are left
        out.

    Raises:
        ValueError: The encoder has no such layer.
    """
    layer: Any = last_attention_layer(encoder)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        patches = encoder(images, modality).shape[1]
    finally:
        hook.remove()
    x = seen[-1]
    B, N, D = x.shape
    q, k, _ = layer.qkv(x).view(B, N, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = getattr(layer, "q_norm", nn.Identity())(q), getattr(layer, "k_norm", nn.Identity())(k)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    received = weights.mean(dim=(1, 2))[:, N - patches :]
    return received / received.sum(dim=1, keepdim=True)
