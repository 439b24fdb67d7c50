"""Deformable attention on a feature map: keys are read at places the queries choose."""

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class DeformableAttention(nn.Module):
    """Multi-head attention of all positions to a coarser grid of points that the map itself has moved.

    With queries q = x W_q, a regular grid p of (H/r) x (W/r) points and per group of channels

        offsets = Conv1x1(GELU(LN(DepthwiseConv_{k, stride r}(q))))      in the map's [-1, 1] coordinates
        x'      = x read bilinearly at clamp(p + offsets, -1, 1)
        out     = W_o softmax(q k'^T / sqrt(d) + b) v',   k' = x' W_k,  v' = x' W_v

    where b is a learned bias by head, read bilinearly from a table at the displacement between query and
    point; the table belongs to a map of ``grid`` and serves maps of other sizes by the same relative
    coordinates.

    Args:
        dim: Channels D, cut into ``num_heads`` heads.
        num_heads: Heads.
        groups: Groups of channels with points of their own; divides ``num_heads``.
        stride: r.
        kernel_size: k of the convolution that sees the surroundings of a point.
        grid: Height and width of the map the bias table is laid out for.
        residual: Whether the map is added to the result.

    Shape:
        (B, D, H, W) -> (B, D, H, W).

    Differs from the authors' code: there the module of the first modality serves the second one too, while
    that of the second gets no gradient; here each encoder has its own. Their n points to a side start at
    2 (i + 0.5) / (n - 1) - 1, down and right of the cells, 7 of them from -0.83 to 1.17 before the clamp, and
    map and bias table are read with aligned corners; here points start at the centres of the cells,
    2 (i + 0.5) / n - 1, and are read without aligned corners, the border repeated. Weights of their ResNet-50
    with attention would not answer the same here.

    Reference: Xia et al., "Vision Transformer with Deformable Attention", CVPR 2022, and "DAT++",
        arXiv:2309.01430 (points clamped to the map, offsets unbounded); the residual: DeCUR section 3.2.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        groups: int,
        stride: int,
        kernel_size: int,
        grid: tuple[int, int],
        residual: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads or num_heads % groups:
            raise ValueError(
                f"{dim} channels, {num_heads} heads, {groups} groups: each has to divide the one before it"
            )
        self.num_heads, self.groups, self.residual = num_heads, groups, residual
        self.query, self.key, self.value, self.project = (nn.Conv2d(dim, dim, 1) for _ in range(4))
        width = dim // groups
        self.offsets = nn.Sequential(
            nn.Conv2d(width, width, kernel_size, stride, kernel_size // 2, groups=width),
            LayerNorm2d(width),
            nn.GELU(),
            nn.Conv2d(width, 2, 1, bias=False),
        )
        self.bias_table = nn.Parameter(torch.empty(num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1))
        nn.init.trunc_normal_(self.bias_table, std=0.01)

    def points(self, x: Tensor) -> Tensor:
        """Where each group reads: (B * groups, h, w, 2), row then column, in [-1, 1]."""
        return self._points(self.query(x))

    def _points(self, query: Tensor) -> Tensor:
        offsets = self.offsets(rearrange(query, "b (g c) h w -> (b g) c h w", g=self.groups))
        offsets = rearrange(offsets, "n two h w -> n h w two").float()
        return (offsets + _centres(offsets.shape[1], offsets.shape[2], query)).clamp(-1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """What every position found, added to the map."""
        height, width = x.shape[-2:]
        query = self.query(x)
        points = self._points(query)
        read = _read(rearrange(x, "b (g c) h w -> (b g) c h w", g=self.groups), points).to(x.dtype)
        read = rearrange(read, "(b g) c h w -> b (g c) h w", g=self.groups)
        query, key, value = (
            rearrange(part, "b (n c) h w -> b n (h w) c", n=self.num_heads)
            for part in (query, self.key(read), self.value(read))
        )
        bias = self._bias(points, height, width).to(query.dtype)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        out = self.project(rearrange(found, "b n (h w) c -> b (n c) h w", h=height))
        return x + out if self.residual else out

    def _bias(self, points: Tensor, height: int, width: int) -> Tensor:
        """Bias of every query for every point: (B, heads, H * W, h * w)."""
        queries = _centres(height, width, points).reshape(1, -1, 1, 2)
        displacement = queries - points.reshape(len(points), 1, -1, 2)
        # A displacement of d cells out of H is 2 d / H; its row in the table is at 2 d / (2 H - 1).
        sides = torch.tensor(self.bias_table.shape[1:], device=points.device)
        tables: Tensor = rearrange(self.bias_table, "(g n) h w -> g n h w", g=self.groups)
        table = tables.repeat(len(points) // self.groups, 1, 1, 1)
        bias = _read(table, displacement / 2 * (sides + 1) / sides)
        return rearrange(bias, "(b g) n q k -> b (g n) q k", g=self.groups)


def _read(maps: Tensor, points: Tensor) -> Tensor:
    """Values of (N, C, H, W) at points (N, h, w, 2), row then column: (N, C, h, w) in float32."""
    # grid_sample wants the column first.
    return F.grid_sample(
        maps.float(), points.flip(-1), mode="bilinear", padding_mode="border", align_corners=False
    )


def _centres(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of the cells of a grid over [-1, 1]: (1, height, width, 2), row then column."""
    rows, columns = (
        (torch.arange(count, device=like.device, dtype=torch.float32) + 0.5) / count * 2 - 1
        for count in (height, width)
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)[None]
