"""The light decoder that fills in removed patches."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codemae.models.embeddings import resize_pos_embed, sincos_positions
from codemae.models.layers import Block, LayerNorm, init_linear_xavier
from codemae.models.masking import Masking, gather_tokens


class DecoderEmbed(nn.Module):
    """Fuses encoder levels into one token per patch.

    Level i has 4^i cells per patch. Each passes LayerNorm and a Linear to dim / 4^i, its cells are laid side
    by side to the full width again, and the levels are summed.

    Args:
        level_dims: Width of each level, strides 16, 8, 4.
        dim: Width of the fused token.

    Shape:
        levels [(B, M, p, p, D_i)] -> (B, M, dim).
    """

    def __init__(self, level_dims: Sequence[int], dim: int) -> None:
        super().__init__()
        if dim % 4 ** (len(level_dims) - 1):
            raise ValueError(f"decoder width {dim} does not split into {4 ** (len(level_dims) - 1)} cells")
        self.levels = nn.ModuleList(
            nn.Sequential(LayerNorm(level_dim), nn.Linear(level_dim, dim // 4**i))
            for i, level_dim in enumerate(level_dims)
        )
        self.apply(init_linear_xavier)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """The sum over levels of the embedded, flattened cells."""
        fused = [embed(level).flatten(2) for embed, level in zip(self.levels, levels, strict=True)]
        return torch.stack(fused).sum(0) if len(fused) > 1 else fused[0]


class Decoder(nn.Module):
    """Attention over visible tokens and mask tokens; predicts the removed patches only.

    Kept and removed tokens are processed in that order: attention does not care, positions travel with the
    tokens, and no unshuffling is needed.

    Args:
        dim: Width.
        depth: Blocks.
        num_heads: Heads.
        out_dim: Values predicted for a patch.
        grid: Patch grid of the fixed positions; others interpolate.
        num_levels: Encoder levels summed in the visible tokens. The mask token stands in for each of them, so
            it enters this many times, as in iTPN.

    Shape:
        visible (B, M, dim), masking of N patches -> (B, N - M, out_dim), in the order of ids_removed.
    """

    positions: Tensor

    def __init__(
        self, *, dim: int, depth: int, num_heads: int, out_dim: int, grid: tuple[int, int], num_levels: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.num_levels = num_levels
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(dim, grid), persistent=False)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(depth))
        self.norm = LayerNorm(dim)
        self.pred = nn.Linear(dim, out_dim)
        self.apply(init_linear_xavier)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, masking: Masking, grid: tuple[int, int] | None = None) -> Tensor:
        """Predicts the removed patches from the visible tokens."""
        B, M, _ = visible.shape
        positions = resize_pos_embed(self.positions, grid or self.grid, self.grid).expand(B, -1, -1)
        ids = torch.cat([masking.ids_keep, masking.ids_removed], dim=1)
        mask_tokens = (self.num_levels * self.mask_token).expand(B, masking.ids_removed.shape[1], -1)
        x = torch.cat([visible, mask_tokens.to(visible.dtype)], dim=1) + gather_tokens(positions, ids)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x[:, M:]))
