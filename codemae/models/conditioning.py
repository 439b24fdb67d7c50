"""Where the contrastive loss looks: the embedding, a projection, or one conditioned on the other's."""

from typing import Literal

from timm.layers import Mlp
from torch import Tensor, nn

from codemae.models.layers import Attention, CrossAttention, LayerNorm, init_linear_xavier

ContrastiveSpace = Literal["raw", "linear", "mlp", "cross_attention"]


class ConditionedTokens(nn.Module):
    """Adds to one modality's tokens what they find in the other's: X + CA(X, Y).

    The loss is taken after the addition, so the attention can absorb the pressure to align and the base
    embedding X keeps what the other modality cannot see. Ablations put self-attention before and a
    feed-forward network after, each with a residual.

    Args:
        dim: Width D.
        num_heads: Heads of the attentions; the paper's formula has one.
        pre_norm: LayerNorm before queries and keys/values.
        output_projection: Linear after the heads.
        self_attention: Self-attention first.
        ffn: Feed-forward network last.

    Shape:
        tokens (B, M, D), other (B, L, D) -> (B, M, D).

    Reference: CoDe-MAE Eq. 3.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 1,
        pre_norm: bool = False,
        output_projection: bool = False,
        self_attention: bool = False,
        ffn: bool = False,
    ) -> None:
        super().__init__()
        self.cattn = CrossAttention(
            dim, num_heads, pre_norm=pre_norm, output_projection=output_projection, bias=pre_norm
        )
        self.sattn = nn.Sequential(LayerNorm(dim), Attention(dim, num_heads)) if self_attention else None
        self.ffn = nn.Sequential(LayerNorm(dim), Mlp(dim, 4 * dim)) if ffn else None
        self.apply(init_linear_xavier)

    def forward(self, tokens: Tensor, other: Tensor) -> Tensor:
        """Conditions the tokens on those of the other modality."""
        if self.sattn is not None:
            tokens = tokens + self.sattn(tokens)
        tokens = tokens + self.cattn(tokens, other)
        if self.ffn is not None:
            tokens = tokens + self.ffn(tokens)
        return tokens


class ContrastiveProjector(nn.Module):
    """Projects a pooled embedding for a contrastive loss: not at all, by a Linear, or by a two-layer MLP.

    Shape:
        (B, D) -> (B, D).
    """

    def __init__(self, dim: int, space: ContrastiveSpace) -> None:
        super().__init__()
        if space == "raw":
            self.net: nn.Module = nn.Identity()
        elif space == "linear":
            self.net = nn.Linear(dim, dim)
        elif space == "mlp":
            self.net = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))
        else:
            raise ValueError(f"unknown projection {space!r}; known: raw, linear, mlp")
        self.apply(init_linear_xavier)

    def forward(self, pooled: Tensor) -> Tensor:
        """The projected embedding."""
        return self.net(pooled)
