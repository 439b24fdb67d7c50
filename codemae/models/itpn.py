"""iTPN: HiViT with a feature pyramid that is pretrained together with it."""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from codemae.models.hivit import Features, HiViT
from codemae.models.layers import Block, LayerNorm, init_linear_xavier


class PatchSplit(nn.Module):
    """Splits each cell into 2 x 2 finer ones: LayerNorm, Linear to four times the width, unfold."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.reduction = nn.Linear(dim, 4 * out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, p, p, D) -> (B, M, 2p, 2p, out_dim)."""
        return rearrange(self.reduction(self.norm(x)), "b m p q (i j d) -> b m (p i) (q j) d", i=2, j=2)


class ITPN(HiViT):
    """HiViT and its pyramid: the last tokens are split twice, each time joined by the stem's features.

    Everything stays inside a 16-px patch, so the pyramid also works on the kept patches of a masked image.
    All levels end with an MLP block and have ``fpn_dim`` channels.

    Args:
        fpn_dim: Channels of every pyramid level.
        fpn_depth: MLP blocks after each split.
        **kwargs: As for HiViT.

    Reference: Tian et al., "Integrally Pre-Trained Transformer Pyramid Networks", CVPR 2023.
    """

    def __init__(self, *, fpn_dim: int = 256, fpn_depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        dim, mlp_ratio = self.embed_dim, kwargs.get("mlp_ratio", 4.0)
        self.fpn_dim = fpn_dim

        def mlp_block() -> Block:
            return Block(fpn_dim, 0, mlp_ratio)

        self.align_dim_16tofpn = nn.Linear(dim, fpn_dim)
        self.fpn_modules = nn.ModuleList(mlp_block() for _ in range(3))
        self.align_dim_16to8 = nn.Linear(dim // 2, fpn_dim, bias=False)
        self.split_16to8 = PatchSplit(dim, fpn_dim)
        self.block_16to8 = nn.Sequential(*(mlp_block() for _ in range(fpn_depth)))
        self.align_dim_8to4 = nn.Linear(dim // 4, fpn_dim, bias=False)
        self.split_8to4 = PatchSplit(fpn_dim, fpn_dim)
        self.block_8to4 = nn.Sequential(*(mlp_block() for _ in range(fpn_depth)))
        for name, module in self.named_children():
            if name not in ("patch_embed", "blocks"):
                module.apply(init_linear_xavier)

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        return (self.fpn_dim,) * 4

    @property
    def level_dims(self) -> list[int]:
        """Widths of ``level_features``."""
        return [self.fpn_dim] * 3

    def level_features(self, features: Features) -> list[Tensor]:
        """Pyramid levels at strides 16, 8, 4, grouped by patch: (B, M, p, p, fpn_dim), p = 1, 2, 4."""
        top = features.tokens[:, :, None, None]
        middle = self.block_16to8(self.split_16to8(top) + self.align_dim_16to8(features.stride8))
        bottom = self.block_8to4(self.split_8to4(middle) + self.align_dim_8to4(features.stride4))
        levels = [self.align_dim_16tofpn(top), middle, bottom]
        return [module(level) for module, level in zip(self.fpn_modules, levels, strict=True)]
