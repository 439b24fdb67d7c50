"""The sizes of HiViT, each with or without the pyramid of iTPN."""

from typing import Any

from codemae.models.encoder import ENCODERS
from codemae.models.fusion_hivit import FusionHiViT, FusionITPN
from codemae.models.hivit import HiViT
from codemae.models.itpn import ITPN


def _hivit(arch: str, pyramid: bool, fpn_dim: int, **kwargs: Any) -> HiViT:
    if "fusion" in kwargs:
        return (
            FusionITPN(arch=arch, fpn_dim=fpn_dim, **kwargs) if pyramid else FusionHiViT(arch=arch, **kwargs)
        )
    return ITPN(arch=arch, fpn_dim=fpn_dim, **kwargs) if pyramid else HiViT(arch=arch, **kwargs)


@ENCODERS.register
def hivit_tiny(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """Ours, for two CPU cores: width 192, 1 + 1 + 4 blocks, 3 heads; no published counterpart."""
    return _hivit("hivit_tiny", pyramid, 96, embed_dim=192, depths=(1, 1, 4), num_heads=3, **kwargs)


@ENCODERS.register
def hivit_small(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-S: width 384, 4 + 4 + 20 blocks, 6 heads; its paper counts two MLP blocks of the stem as one."""
    return _hivit("hivit_small", pyramid, 256, embed_dim=384, depths=(4, 4, 20), num_heads=6, **kwargs)


@ENCODERS.register
def hivit_base(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-B as iTPN and CoDe-MAE use it: width 512, 3 + 3 + 24 blocks, 8 heads; 77.9 M parameters."""
    return _hivit("hivit_base", pyramid, 256, embed_dim=512, depths=(3, 3, 24), num_heads=8, **kwargs)


@ENCODERS.register
def hivit_base20(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-B as its authors and SARATR-X release it: width 512, 4 + 4 + 20 blocks, 8 heads."""
    return _hivit("hivit_base20", pyramid, 256, embed_dim=512, depths=(4, 4, 20), num_heads=8, **kwargs)


@ENCODERS.register
def hivit_large(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-L: width 768, 2 + 2 + 40 blocks, 12 heads."""
    return _hivit("hivit_large", pyramid, 256, embed_dim=768, depths=(2, 2, 40), num_heads=12, **kwargs)
