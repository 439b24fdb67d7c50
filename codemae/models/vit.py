"""A plain vision transformer behind the encoder interface."""

import math
import re
from collections.abc import Mapping

from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from codemae import checkpoint
from codemae.models.embeddings import ChannelRule, fit_patch_embeddings, patch_grid, resize_pos_embed
from codemae.models.encoder import ENCODERS, Encoder
from codemae.models.timm_features import as_channels


class ViT(Encoder):
    """timm's vision transformer; modalities share all of it but the patch embedding.

    No class token: an image's embedding is the mean of its tokens, as of all encoders here. Positions are
    learned and interpolated for other image sizes.

    Args:
        img_size: Side of the square image whose grid the positions are learned for.
        channels: Input channels of each modality.
        embed_dim: Width D.
        depth: Blocks.
        num_heads: Attention heads.
        drop_path: Largest stochastic depth rate; it grows linearly with depth.
        checkpoint_activations: Recompute blocks in the backward pass to save memory.

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
    """

    patch_size = 16

    def __init__(
        self,
        *,
        img_size: int = 224,
        channels: Mapping[str, int] | None = None,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        if img_size % self.patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of {self.patch_size}")
        self.img_size = img_size
        self.embed_dim = embed_dim
        self.channels = dict(channels or {"optical": 3, "sar": 3})
        self.checkpoint_activations = checkpoint_activations
        self.grid = (img_size // self.patch_size, img_size // self.patch_size)
        self.trunk = VisionTransformer(
            img_size=img_size,
            patch_size=self.patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            num_classes=0,
            global_pool="avg",
            class_token=False,
            fc_norm=False,
            drop_path_rate=drop_path,
        )
        self.trunk.patch_embed = nn.Identity()
        self.patch_embed = nn.ModuleDict(
            {
                name: PatchEmbed(None, self.patch_size, count, embed_dim, strict_img_size=False)
                for name, count in self.channels.items()
            }
        )

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """All tokens of the images: (B, C, H, W) -> (B, N, D)."""
        self.check_modality(modality)
        grid = patch_grid(images, self.patch_size)
        x = self.patch_embed[modality](as_channels(images, self.channels[modality]))
        assert isinstance(self.trunk.pos_embed, Tensor)
        x = x + resize_pos_embed(self.trunk.pos_embed, grid, self.grid)
        for block in self.trunk.blocks:
            x = self.run_block(block, x)
        return self.trunk.norm(x)

    def layer_ids(self) -> dict[str, int]:
        """Patch embeddings and positions 0, then a number a block, then the last norm."""
        ids = {}
        for name, _ in self.named_parameters():
            found = re.match(r"trunk\.blocks\.(\d+)\.", name)
            if found:
                ids[name] = int(found[1]) + 1
            else:
                ids[name] = len(self.trunk.blocks) + 1 if name.startswith("trunk.norm") else 0
        return ids

    def read_initial(self, path_or_name: str) -> dict[str, Tensor]:
        """Weights of one of our files, or of timm's vision transformer.

        The latter's patch embedding serves every modality; its head, its class token and the position of that
        are left out.
        """
        if checkpoint.is_encoder_file(path_or_name):
            return super().read_initial(path_or_name)
        weights = checkpoint.read_weights(path_or_name)
        state = {}
        for key, value in weights.items():
            if key.startswith("patch_embed."):
                state.update({key.replace(".", f".{name}.", 1): value for name in self.channels})
            elif key == "pos_embed":
                # timm's ``no_embed_class`` gives the class token none; the others stand for a square grid.
                others = value.shape[1] - 1
                embeds_class = "cls_token" in weights and math.isqrt(others) ** 2 == others
                state["trunk.pos_embed"] = value[:, 1:] if embeds_class else value
            elif key != "cls_token" and not key.startswith("head."):
                state[f"trunk.{key}"] = value
        return state

    def fit_state(self, state: Mapping[str, Tensor], rule: ChannelRule = "cycle") -> dict[str, Tensor]:
        """Fits positions to the encoder's grid and patch embeddings to its channels."""
        fitted = fit_patch_embeddings(state, self.channels, rule)
        if (key := "trunk.pos_embed") in fitted and fitted[key].shape[1] != self.grid[0] * self.grid[1]:
            fitted[key] = resize_pos_embed(fitted[key], self.grid)
        return fitted


@ENCODERS.register
def vit_small(
    *,
    img_size: int = 224,
    channels: Mapping[str, int] | None = None,
    drop_path: float = 0.0,
    checkpoint_activations: bool = False,
) -> ViT:
    """ViT-S/16: width 384, 12 blocks, 6 heads, no class token."""
    return ViT(
        img_size=img_size,
        channels=channels,
        drop_path=drop_path,
        checkpoint_activations=checkpoint_activations,
    )
