"""From student tokens to the teacher's space."""

from torch import Tensor, nn

from codemae.models.layers import Block, LayerNorm, init_linear_xavier


class DistillationHead(nn.Module):
    """Optional transformer blocks, LayerNorm, then a Linear to the teacher's width.

    Shape:
        (B, M, dim) -> (B, M, out_dim).
    """

    def __init__(self, dim: int, out_dim: int, *, depth: int = 0, num_heads: int = 8) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(dim, num_heads) for _ in range(depth)))
        self.norm = LayerNorm(dim)
        self.proj = nn.Linear(dim, out_dim)
        self.apply(init_linear_xavier)

    def forward(self, tokens: Tensor) -> Tensor:
        """The student's guess at the teacher's tokens."""
        return self.proj(self.norm(self.blocks(tokens)))
