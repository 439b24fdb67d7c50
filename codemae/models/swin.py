"""Swin Transformer: timm's stages behind the encoder interface."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from codemae.models.embeddings import ChannelRule, fit_patch_embeddings, patch_grid
from codemae.models.encoder import ENCODERS, Encoder
from codemae.models.filling import resize_mask
from codemae.models.timm_features import as_channels

STEM_STRIDE = 4


class Swin(Encoder):
    """timm's Swin Transformer with a patch embedding for each modality.

    At the size its windows were made for (224 px for windows of 7) it computes what timm computes. Images of
    other sizes, also oblong ones, are padded inside each block to whole windows, so its parameters do not
    depend on ``img_size``. No patch can be dropped, since windows are dense: to mask, fill
    (``encode_filled``).

    Args:
        img_size: Side of the images it is trained on, for the record.
        embed_dim: Width of the first stage; each next one doubles it.
        depths: Blocks of the four stages.
        num_heads: Heads of the four stages.
        window: Side of a window in tokens.
        channels: Input channels of each modality.
        drop_path: Largest stochastic depth rate; it grows with depth.
        checkpoint_activations: Recompute blocks in the backward pass to save memory.

    Reference: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        ICCV 2021.
    """

    patch_size = 32

    def __init__(
        self,
        *,
        img_size: int = 224,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 7,
        channels: Mapping[str, int] | None = None,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.channels = dict(channels or {"optical": 3, "sar": 3})
        self.checkpoint_activations = checkpoint_activations
        # built for the smallest size at which no stage is smaller than its window
        whole: Any = SwinTransformer(
            img_size=self.patch_size * window,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window,
            strict_img_size=False,
            drop_path_rate=drop_path,
            num_classes=0,
            global_pool="",
        )
        self.widths = tuple(int(info["num_chs"]) for info in whole.feature_info)
        self.embed_dim = self.widths[-1]
        self.patch_embed = nn.ModuleDict(
            {
                name: PatchEmbed(
                    img_size=None,
                    patch_size=STEM_STRIDE,
                    in_chans=count,
                    embed_dim=embed_dim,
                    norm_layer=nn.LayerNorm,
                    output_fmt="NHWC",
                )
                for name, count in self.channels.items()
            }
        )
        self.layers = whole.layers
        self.norm = whole.norm

    @property
    def stem_dim(self) -> int:
        """Width of what a mask token is added to."""
        return self.widths[0]

    def _embed(self, modality: str, images: Tensor) -> Tensor:
        self.check_modality(modality)
        images = as_channels(images, self.channels[modality])
        patch_grid(images, STEM_STRIDE)
        return self.patch_embed[modality](images)

    def _stages(self, x: Tensor) -> list[Tensor]:
        """(B, H/4, W/4, D/8) -> the four stages' outputs, the last one normed, channels last."""
        maps = []
        for stage in self.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = self.run_block(block, x)
            maps.append(x)
        maps[-1] = self.norm(x)
        return maps

    def encode_filled(
        self,
        images: Mapping[str, Tensor],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """The last feature maps of filled images, stacked in the mapping's order; see ``Encoder``."""
        x = torch.cat([self._embed(name, image) for name, image in images.items()])
        if mask is not None and mask_token is not None:
            removed = resize_mask(mask, (x.shape[1], x.shape[2])).permute(0, 2, 3, 1)
            x = x + (removed * mask_token).to(x.dtype)
        return self._stages(x)[-1].permute(0, 3, 1, 2)

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """All tokens of the images, at stride 32: (B, C, H, W) -> (B, N, D)."""
        return self._stages(self._embed(modality, images))[-1].flatten(1, 2)

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        first, second, third, fourth = self.widths
        return first, second, third, fourth

    def pyramid(self, images: Tensor, modality: str) -> list[Tensor]:
        """Feature maps at strides 4, 8, 16 and 32: (B, D_level, H/s, W/s)."""
        return [x.permute(0, 3, 1, 2) for x in self._stages(self._embed(modality, images))]

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter for layer-wise decay, merges counted as layers.

        Patch embeddings are 0, then each merge and each block is one more; the last norm is one more still.
        """
        places: dict[str, int] = {}
        depth = 0
        for number, stage in enumerate(self.layers):
            if number:
                depth += 1
                places[f"layers.{number}.downsample."] = depth
            for block in range(len(stage.blocks)):
                depth += 1
                places[f"layers.{number}.blocks.{block}."] = depth
        ids = {}
        for name, _ in self.named_parameters():
            known = [place for prefix, place in places.items() if name.startswith(prefix)]
            ids[name] = known[0] if known else (0 if name.startswith("patch_embed.") else depth + 1)
        return ids

    def fit_state(self, state: Mapping[str, Tensor], rule: ChannelRule = "cycle") -> dict[str, Tensor]:
        """Fits patch embeddings to this encoder's channels."""
        return fit_patch_embeddings(state, self.channels, rule)


@ENCODERS.register
def swin_tiny(
    *,
    img_size: int = 224,
    channels: Mapping[str, int] | None = None,
    drop_path: float = 0.0,
    checkpoint_activations: bool = False,
) -> Swin:
    """Ours, for two CPU cores: width 48 to 384, 2 + 2 + 2 + 2 blocks, windows of 4; not Swin-T."""
    return Swin(
        img_size=img_size,
        embed_dim=48,
        depths=(2, 2, 2, 2),
        num_heads=(2, 4, 8, 16),
        window=4,
        channels=channels,
        drop_path=drop_path,
        checkpoint_activations=checkpoint_activations,
    )


@ENCODERS.register
def swin_base(
    *,
    img_size: int = 224,
    channels: Mapping[str, int] | None = None,
    drop_path: float = 0.0,
    checkpoint_activations: bool = False,
) -> Swin:
    """Swin-B: width 128 to 1024, 2 + 2 + 18 + 2 blocks, windows of 7."""
    return Swin(
        img_size=img_size,
        channels=channels,
        drop_path=drop_path,
        checkpoint_activations=checkpoint_activations,
    )
