"""Two streams of tokens that ask each other: the blocks XAttnEncoder and XAttnDecoder of Fus-MAE."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from codemae.models.layers import CrossAttention, LayerNorm, init_linear_xavier


@dataclass(kw_only=True)
class CrossAttentionConfig:
    """How one stream asks the other.

    The defaults are the formula of the paper: one head, no norm, no output projection.

    Attributes:
        num_heads: Heads.
        pre_norm: LayerNorm before queries, before keys and values, and before the MLP.
        output_projection: Linear over the heads.
        mlp_ratio: Hidden width of the MLP over D.
    """

    num_heads: int = 1
    pre_norm: bool = False
    output_projection: bool = False
    mlp_ratio: float = 4.0


@dataclass(kw_only=True)
class FusionConfig:
    """What makes an encoder a fusing one.

    Attributes:
        early: An ``XAttnEncoder`` stands in place of the first attention block (the paper's "XAE&D"); without
            it tokens of both modalities meet in self-attention alone ("XAD").
        alone: What the cross-attention of ``XAttnEncoder`` reads where an image comes without its other
            modality, on which the paper is silent: ``skip`` nothing, so that only the MLP is left, or
            ``self`` its own tokens. Pretraining on pairs alone trains neither way; unpaired images train the
            one chosen here.
        attention: The cross-attention.
    """

    early: bool = True
    alone: Literal["skip", "self"] = "skip"
    attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)

    @classmethod
    def of(cls, options: "FusionConfig | Mapping[str, Any] | None") -> "FusionConfig":
        """From what the header of an encoder file holds; the defaults from nothing."""
        if isinstance(options, FusionConfig):
            return options
        values = dict(options or {})
        if isinstance(given := values.get("attention"), Mapping):
            values["attention"] = CrossAttentionConfig(**given)
        return cls(**values)


class CrossAttended(nn.Module):
    """Cross-attention with its MLP, of which ``XAttnEncoder`` and ``XAttnDecoder`` are made.

    Args:
        dim: Width D of both streams.
        config: Heads and norms.
    """

    def __init__(self, dim: int, config: CrossAttentionConfig) -> None:
        super().__init__()
        self.cross = CrossAttention(
            dim,
            config.num_heads,
            pre_norm=config.pre_norm,
            output_projection=config.output_projection,
            bias=True,
        )
        self.norm = LayerNorm(dim) if config.pre_norm else nn.Identity()
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.apply(init_linear_xavier)

    def conditioned(self, tokens: Tensor, other: Tensor | None) -> Tensor:
        """Z + MLP(z), where z = x + CA(x, y), or x where there is no y."""
        if other is not None:
            tokens = tokens + self.cross(tokens, other)
        return tokens + self.mlp(self.norm(tokens))


class XAttnDecoder(CrossAttended):
    """Adds to the tokens x of one modality what they find in the other's, y.

        z = x + CA(x, y),    out = z + MLP(z)

    Shape:
        x (B, N, D), y (B, L, D) or None -> (B, N, D). Without y, z = x.

    Reference: Chan-To-Hing and Veeravalli, "Fus-MAE", IGARSS 2024, Eq. 10 and 11.
    """

    def forward(self, tokens: Tensor, other: Tensor | None) -> Tensor:
        """Conditions the tokens on those of the other modality, if it is there."""
        return self.conditioned(tokens, other)


class XAttnEncoder(CrossAttended):
    """Both modalities ask each other, by one attention and one MLP that they share.

        fus(x, y) = x ⊕ y + CA(x, y) ⊕ CA(y, x),    out = fus(x, y) + MLP(fus(x, y))

    The MLP works token by token, so each stream goes the way of ``XAttnDecoder``.

    Args:
        dim: Width D.
        config: Heads, norms, and what an image without its other modality does.

    Shape:
        (V B, N, D), the V = 1 or 2 modalities one after the other -> the same.

    Reference: Chan-To-Hing and Veeravalli, "Fus-MAE", IGARSS 2024, Eq. 2 to 5.
    """

    def __init__(self, dim: int, config: FusionConfig) -> None:
        super().__init__(dim, config.attention)
        self.reads_itself = config.alone == "self"

    def forward(self, tokens: Tensor, views: int) -> Tensor:
        """Fuses the ``views`` modalities stacked along the batch.

        Raises:
            ValueError: They are more than two.
        """
        if views > 2:
            raise ValueError(f"Fus-MAE fuses two modalities, got {views}")
        if views == 1:
            return self.conditioned(tokens, tokens if self.reads_itself else None)
        first, second = tokens.chunk(2)
        return self.conditioned(tokens, torch.cat([second, first]))
