"""Heads that take embeddings to the spaces of their losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projector(
    dims: Sequence[int],
    *,
    batch_norm: bool = False,
    activation: type[nn.Module] = nn.ReLU,
    bias: bool = True,
) -> nn.Sequential:
    """An MLP of the given widths, input and output included; nothing follows its last Linear.

    Args:
        dims: Widths; at least two.
        batch_norm: Whether hidden layers are normalised over the batch, as methods without negatives need.
        activation: Of the hidden layers.
        bias: Whether linear layers have one.
    """
    layers: list[nn.Module] = []
    for width, next_width in zip(dims[:-2], dims[1:-1], strict=True):
        layers += [
            nn.Linear(width, next_width, bias=bias),
            *([nn.BatchNorm1d(next_width)] if batch_norm else ()),
        ]
        layers += [activation()]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1], bias=bias))


class PrototypeHead(nn.Module):
    """An MLP with two hidden layers, then the cosine with each of K learned prototypes.

    Args:
        dim: Width of the features.
        hidden_dim: Width of the hidden layers.
        bottleneck_dim: Width D in which features and prototypes are compared.
        num_prototypes: K.
        batch_norm: Whether hidden layers are normalised over the rows.

    Shape:
        (R, dim) -> (R, K).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        bottleneck_dim: int,
        num_prototypes: int,
        *,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [dim, hidden_dim, hidden_dim, bottleneck_dim]
        self.mlp = projector(widths, batch_norm=batch_norm, activation=nn.GELU)
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, bottleneck_dim) * bottleneck_dim**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Similarity to each prototype, -1 to 1, in float32."""
        features = self.mlp(features)
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(features.float(), dim=-1) @ F.normalize(self.prototypes.float(), dim=-1).T


class PixelHead(nn.Sequential):
    """One 1 x 1 convolution from a feature map to the pixels beneath each of its cells.

    Args:
        dim: Channels of the map.
        channels: Channels of the image.
        stride: Pixels to a cell's side.

    Shape:
        (B, dim, h, w) -> (B, channels, h * stride, w * stride).
    """

    def __init__(self, dim: int, channels: int, stride: int) -> None:
        super().__init__(nn.Conv2d(dim, channels * stride**2, 1), nn.PixelShuffle(stride))
