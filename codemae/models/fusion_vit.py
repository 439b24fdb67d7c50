"""A vision transformer over the tokens of one or two modalities, with cross-attended patch projection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codemae.losses.reconstruction import patchify
from codemae.models.cross_fusion import FusionConfig, XAttnEncoder
from codemae.models.embeddings import patch_grid, sincos_positions
from codemae.models.encoder import ENCODERS
from codemae.models.layers import Block, LayerNorm, init_linear_xavier
from codemae.models.maskable import MaskableEncoder
from codemae.models.masking import gather_tokens


@dataclass
class Latents:
    """What the trunk gives: (V B, M, D) patch tokens, the V modalities one after the other."""

    tokens: Tensor


class PatchProjection(nn.Module):
    """A convolution of P x P px at stride P, worked out for the kept patches alone.

    Args:
        channels: Image channels C.
        dim: Width D.
        patch_size: Patch side P.

    Shape:
        images (B, C, H, W), ids_keep (B, M) or None -> (B, M or N, D).
    """

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)

    def forward(self, images: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """Projects all patches, or the kept ones."""
        wanted, given = self.proj.in_channels, images.shape[1]
        if given not in (1, wanted):
            raise ValueError(
                f"image has {given} channels, this patch projection takes {wanted}; load the encoder with "
                f"channels={{modality: {given}}} (and channel_rule='sum', 'mean' or 'cycle')"
            )
        patch_grid(images, self.patch_size)
        patches = patchify(images.expand(-1, wanted, -1, -1), self.patch_size)
        if ids_keep is not None:
            patches = gather_tokens(patches, ids_keep)
        return F.linear(patches, self.proj.weight.permute(0, 2, 3, 1).flatten(1), self.proj.bias)


class FusionViT(MaskableEncoder):
    """ViT that answers one modality, or two of the same ground together.

    Each modality has its patch projection and all share fixed positions. ``XAttnEncoder`` stands in place of
    the first block, a learned global token joins, and the remaining blocks attend over the tokens of all
    modalities given. A last LayerNorm follows, as in MAE.

    The paper leaves open, and this decides: positions are fixed sine-cosine ones; a decoder gets the patch
    tokens of its modality without the global token (Eq. 8); features are pooled over patch tokens; what a
    single modality does in ``XAttnEncoder`` (``FusionConfig.alone``).

    Args:
        img_size: Side of the square image whose grid the positions are laid out for; others interpolate.
        patch_size: Patch side P.
        embed_dim: Width D.
        depth: Blocks, ``XAttnEncoder`` included; at least 2.
        num_heads: Heads of the self-attention.
        mlp_ratio: Hidden width of the blocks' MLP over D.
        channels: Input channels of each modality.
        drop_path: Largest stochastic depth rate; it grows linearly with depth.
        checkpoint_activations: Recompute blocks in the backward pass to save memory.
        center: Modalities whose images lose their own mean on entry, channel by channel.
        fusion: How modalities meet; a mapping as the header of an encoder file has it, or a ``FusionConfig``.

    Reference: Chan-To-Hing and Veeravalli, "Fus-MAE: A Cross-Attention-Based Data Fusion Approach for Masked
        Autoencoders in Remote Sensing", IGARSS 2024, Sec. 3.1.
    """

    fuses = True

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        channels: Mapping[str, int] | None = None,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        center: Sequence[str] = (),
        fusion: FusionConfig | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            channels=channels,
            center=center,
            checkpoint_activations=checkpoint_activations,
        )
        if depth < 2:
            raise ValueError(f"depth {depth}: at least one block must follow the first")
        self.embed_dim = embed_dim
        self.fusion = FusionConfig.of(fusion)

        self.patch_embed = nn.ModuleDict(
            {name: PatchProjection(count, embed_dim, patch_size) for name, count in self.channels.items()}
        )
        positions = sincos_positions(embed_dim, self.grid)
        self.absolute_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.normal_(self.cls_token, std=0.02)
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.blocks.apply(init_linear_xavier)
        if self.fusion.early:
            self.blocks[0] = XAttnEncoder(embed_dim, self.fusion)
        self.norm = LayerNorm(embed_dim)

    def encode(self, images: Mapping[str, Tensor], ids_keep: Tensor | None = None) -> Latents:
        """Runs the trunk over the images of one modality, or of two that show the same ground.

        Args:
            images: Modality -> (B, C, H, W), all of one size.
            ids_keep: Patches to keep: (B, M), the same for all modalities, or (V B, M), each its own in the
                stacked order; None keeps all.

        Returns:
            Tokens (V B, M or N, D).

        Raises:
            KeyError: A modality this encoder was not made for.
        """
        views, count = len(images), len(next(iter(images.values())))
        x, positions = self.embed(images, ids_keep)
        x = x + positions

        blocks = list(self.blocks)
        if self.fusion.early:
            x = self.run_block(blocks.pop(0), x, views)
        x = rearrange(x, "(v b) m d -> b (v m) d", v=views)
        x = torch.cat([x, self.cls_token.expand(count, -1, -1).to(x.dtype)], dim=1)
        for block in blocks:
            x = self.run_block(block, x)
        return Latents(rearrange(self.norm(x[:, :-1]), "b (v m) d -> (v b) m d", v=views))

    def level_features(self, features: Latents) -> list[Tensor]:
        """The one level for a decoder, at stride P: (V B, M, 1, 1, D)."""
        return [features.tokens[:, :, None, None]]

    @property
    def level_dims(self) -> list[int]:
        """Widths of ``level_features``."""
        return [self.embed_dim]

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        return (self.embed_dim,) * 4

    def pyramid(self, images: Tensor, modality: str) -> list[Tensor]:
        """The last map, bilinearly resampled to strides 4, 8, 16 and 32; it has no weights of its own."""
        return self.pyramid_together({modality: images})[modality]

    def pyramid_together(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """``pyramid`` of each modality of the same ground, after all have met."""
        first = next(iter(images.values()))
        (H, W), (h, w) = first.shape[-2:], patch_grid(first, self.patch_size)
        last = rearrange(self.encode(images).tokens, "b (h w) d -> b d h w", h=h, w=w)
        sizes = [(-(-H // stride), -(-W // stride)) for stride in (4, 8, 16, 32)]
        maps = [
            last
            if size == (h, w)
            else F.interpolate(last, size=size, mode="bilinear", antialias=size < (h, w))
            for size in sizes
        ]
        parts = [level.chunk(len(images)) for level in maps]
        return {name: [level[place] for level in parts] for place, name in enumerate(images)}

    def layer_ids(self) -> dict[str, int]:
        """0 for projections, positions and global token, i + 1 for ``blocks.i``, then the norm."""
        ids = {}
        for name, _ in self.named_parameters():
            if name.startswith("blocks."):
                ids[name] = int(name.split(".")[1]) + 1
            else:
                ids[name] = len(self.blocks) + 1 if name.startswith("norm.") else 0
        return ids


def _register(name: str, about: str, **size: int) -> None:
    factory = partial(FusionViT, **size)  # type: ignore[arg-type]
    factory.__doc__ = about
    ENCODERS.register(name)(factory)


_register("fusmae_vit_tiny", "Fus-MAE's ViT: width 192, 12 blocks, 3 heads.", embed_dim=192, num_heads=3)
_register("fusmae_vit_small", "Fus-MAE's ViT: width 384, 12 blocks, 6 heads.", embed_dim=384, num_heads=6)
_register("fusmae_vit_base", "Fus-MAE's ViT: width 768, 12 blocks, 12 heads.", embed_dim=768, num_heads=12)
