"""An encoder with a classification head, for fine-tuning."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from codemae.models.layers import LayerNorm

Head = Literal["norm", "batch_norm"]

HEAD_STD = 0.01


class Classifier(nn.Module):
    """Mean over an encoder's tokens, a head, one logit a class.

    ``norm`` is a layer norm and a linear layer. ``batch_norm`` puts a batch norm without affine (eps 1e-6)
    between the two: CoDe-MAE's head for SAR targets, and what SARATR-X puts on its frozen encoder. With two
    modalities the same encoder sees both, and their pooled features stand side by side.

    Args:
        encoder: With ``pooled(images, modality) -> (B, D)`` and ``embed_dim``.
        modalities: Those it gets, in this order.
        num_classes: K.
        head: ``norm`` or ``batch_norm``.
        seed: Of the head's first weights, N(0, 0.01) cut at 2; biases start at 0.

    Shape:
        modality -> (B, C, H, W) to (B, K).
    """

    def __init__(
        self,
        encoder: nn.Module,
        modalities: Sequence[str],
        num_classes: int,
        *,
        head: Head = "norm",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.modalities = tuple(modalities)
        width = cast(Any, encoder).embed_dim * len(self.modalities)
        linear = nn.Linear(width, num_classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(
            linear.weight, std=HEAD_STD, a=-2 * HEAD_STD, b=2 * HEAD_STD, generator=generator
        )
        nn.init.zeros_(linear.bias)
        between = [nn.BatchNorm1d(width, affine=False, eps=1e-6)] if head == "batch_norm" else []
        self.head = nn.Sequential(LayerNorm(width), *between, linear)
        self.encoder.requires_grad_(True)

    def forward(self, images: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K) of the images of each modality."""
        pooled = cast(Any, self.encoder).pooled
        return self.head(torch.cat([pooled(images[name], name) for name in self.modalities], dim=-1))
