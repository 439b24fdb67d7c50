"""How much attention each patch gets in an encoder's last attention layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from codemae.analysis.run_encoders import EncoderPair, NotInThisEncoder

_Call = tuple[nn.Module, Tensor]


def attention_layers(encoder: nn.Module) -> list[nn.Module]:
    """Every module with a joint query-key-value map, in the order of the modules.

    Raises:
        NotInThisEncoder: There is none, as in convolutional encoders.
    """
    layers = [
        module
        for module in encoder.modules()
        if getattr(module, "qkv", None) is not None and hasattr(module, "num_heads")
    ]
    if not layers:
        raise NotInThisEncoder(
            f"{type(encoder).__name__} has no self-attention over the whole image; "
            "`--explain attention` needs a ViT or HiViT"
        )
    return layers


@torch.no_grad()
def attention_received(encoder: Any, images: Tensor, modality: str) -> Tensor:
    """Attention of the last layer, averaged over heads and over the tokens that give it.

    Windows with a position bias count where one window covers the image, as in Swin's last stage at the size
    its windows were made for. Among smaller windows there is no common share of attention: each sums to 1.

    Args:
        encoder: With a global attention layer; of an ``EncoderPair``, the modality's own encoder.
        images: (B, C, H, W), standardised.
        modality: Of the images.

    Returns:
        (B, N) over the patches, each row with sum 1; tokens that are no patch (class, registers) are left
        out.

    Raises:
        NotInThisEncoder: The encoder has no such layer, or rotates its queries and keys by position.
        ValueError: No layer ran on these images.
    """
    own = encoder.of(modality) if isinstance(encoder, EncoderPair) else encoder
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], named: Mapping[str, Any]) -> None:
        if named.get("rope") is not None:
            raise NotInThisEncoder(
                f"{type(own).__name__} rotates queries and keys by their position, which "
                "`--explain attention` does not repeat; it needs a ViT or HiViT"
            )
        calls.append((module, inputs[0]))

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in attention_layers(own)]
    try:
        patches = own(images, modality).shape[1]
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise ValueError(f"no attention layer of {type(own).__name__} ran on {modality} images")
    # The last that ran: an encoder for two modalities may hold layers that one alone never enters.
    received = _received(*calls[-1], len(images), patches)
    return received / received.sum(dim=1, keepdim=True)


def _received(module: nn.Module, x: Tensor, images: int, patches: int) -> Tensor:
    layer: Any = module
    B, N, _ = x.shape
    q, k, _ = layer.qkv(x).view(B, N, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = getattr(layer, "q_norm", nn.Identity())(q), getattr(layer, "k_norm", nn.Identity())(k)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if hasattr(layer, "relative_position_bias_table"):
        if images != B or patches != N:
            raise NotInThisEncoder(
                f"the last attention layer looks at windows of {N} tokens, not at the {patches} of the whole "
                "image; `--explain attention` needs a ViT or HiViT, or a Swin at a size that one window of "
                "its last stage covers (224 pixels for windows of 7)"
            )
        pairs = layer.relative_position_index.flatten()
        scores = scores + layer.relative_position_bias_table[pairs].view(N, N, -1).permute(2, 0, 1)
    return scores.softmax(dim=-1).mean(dim=(1, 2))[:, N - patches :]
