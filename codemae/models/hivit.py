"""HiViT: a hierarchical vision transformer whose patches can be dropped before the first layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from codemae.checkpoint import WeightsError
from codemae.downloads import DownloadError
from codemae.models.embeddings import INNER, PatchEmbed, patch_grid, sincos_positions
from codemae.models.filling import resize_mask
from codemae.models.layers import Block, LayerNorm, init_linear_xavier
from codemae.models.maskable import MaskableEncoder


@dataclass
class Features:
    """What the trunk gives for a stack of images, all grouped by 16-px patch.

    Attributes:
        stride4: (B, M, 4, 4, D/4), before the first merge.
        stride8: (B, M, 2, 2, D/2), before the second.
        tokens: (B, M, D), the last attention block's output.
        taps: Outputs (B, M, D) of attention blocks asked for, by their index among attention blocks.
    """

    stride4: Tensor
    stride8: Tensor
    tokens: Tensor
    taps: dict[int, Tensor] = field(default_factory=dict)


class PatchMerge(nn.Module):
    """Joins 2 x 2 cells of a patch into one of twice the width: concatenate, LayerNorm, Linear."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, p, p, D) -> (B, M, p/2, p/2, 2D); column-major order of the four cells, as in HiViT."""
        return self.reduction(self.norm(rearrange(x, "b m (p i) (q j) d -> b m p q (j i d)", i=2, j=2)))


class HiViT(MaskableEncoder):
    """Encoder shared by all modalities, each with a patch embedding of its own.

    A 16-px patch is embedded as 4 x 4 cells; MLP blocks at strides 4 and 8 with a merge after each make one
    token of it, positions are added, and attention blocks follow. Before attention no patch sees another, so
    a masked forward gathers the kept patches first and its cost falls with them from the first layer on.
    There is no class token and no norm after the last block.

    Args:
        img_size: Side of the square image whose grid the positions are learned for; others interpolate.
        embed_dim: Width D of the attention stage; the stem has D/4 and D/2.
        depths: Blocks at strides 4, 8, 16.
        num_heads: Attention heads.
        stem_mlp_ratio: MLP ratio of the stem blocks.
        mlp_ratio: MLP ratio of the attention blocks.
        channels: Input channels of each modality.
        drop_path: Largest stochastic depth rate; it grows linearly with depth.
        center: Modalities whose images lose their own mean on entry, channel by channel, so that an offset
            which differs between acquisitions does not reach the tokens; their contrast stays.
        checkpoint_activations: Recompute attention blocks in the backward pass to save memory.
        arch: Registered name, kept for the encoder file.

    Reference: Zhang et al., "HiViT: A Simpler and More Efficient Design of Hierarchical Vision Transformer",
        ICLR 2023; Tian et al., "Integrally Pre-Trained Transformer Pyramid Networks", CVPR 2023.
    """

    patch_size = 16

    def __init__(
        self,
        *,
        img_size: int = 224,
        embed_dim: int = 512,
        depths: Sequence[int] = (3, 3, 24),
        num_heads: int = 8,
        stem_mlp_ratio: float = 3.0,
        mlp_ratio: float = 4.0,
        channels: Mapping[str, int] | None = None,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        center: Sequence[str] = (),
        arch: str = "hivit",
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=self.patch_size,
            channels=channels,
            center=center,
            checkpoint_activations=checkpoint_activations,
        )
        self.arch = arch
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_attention_blocks = depths[2]

        self.patch_embed = nn.ModuleDict(
            {
                name: PatchEmbed(count, embed_dim // 4, self.patch_size)
                for name, count in self.channels.items()
            }
        )
        self.absolute_pos_embed = nn.Parameter(sincos_positions(embed_dim, self.grid))
        rates = np.linspace(0, drop_path, sum(depths)).tolist()
        self.blocks = nn.ModuleList(
            [
                *(Block(embed_dim // 4, 0, stem_mlp_ratio, rates.pop(0)) for _ in range(depths[0])),
                PatchMerge(embed_dim // 4),
                *(Block(embed_dim // 2, 0, stem_mlp_ratio, rates.pop(0)) for _ in range(depths[1])),
                PatchMerge(embed_dim // 2),
                *(Block(embed_dim, num_heads, mlp_ratio, rates.pop(0)) for _ in range(depths[2])),
            ]
        )
        self.blocks.apply(init_linear_xavier)

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        return (self.embed_dim // 4, self.embed_dim // 2, self.embed_dim, self.embed_dim)

    def encode(
        self,
        images: Mapping[str, Tensor],
        ids_keep: Tensor | None = None,
        taps: Sequence[int] = (),
        added: Tensor | None = None,
    ) -> Features:
        """Runs the trunk once over the images of all given modalities, stacked in the mapping's order.

        Args:
            images: Modality -> (B, C, H, W), all of one size.
            ids_keep: Patches to keep: (B, M), the same for all modalities, or (len(images) * B, M), each its
                own in the stacked order; None keeps all.
            taps: Attention blocks whose output is wanted beside the last one's.
            added: To add to the embedded patches: (len(images) * B, M, 4, 4, D/4).

        Returns:
            Features whose first dimension is len(images) * B.

        Raises:
            KeyError: A modality this encoder has no patch embedding for.
        """
        x, positions = self.embed(images, ids_keep)
        if added is not None:
            x = x + added.to(x.dtype)

        stem, attention = self.blocks[: -self.num_attention_blocks], self.blocks[-self.num_attention_blocks :]
        levels = []
        for block in stem:
            if isinstance(block, PatchMerge):
                levels.append(x)
            x = block(x)
        x = x[:, :, 0, 0] + positions
        tapped = {}
        for index, block in enumerate(attention):
            x = self.attend(block, x, len(images))
            if index in taps:
                tapped[index] = x
        return Features(levels[0], levels[1], x, tapped)

    def attend(self, block: nn.Module, tokens: Tensor, views: int) -> Tensor:
        """One attention block; each of the ``views`` modalities in the stack by itself."""
        return self.run_block(block, tokens)

    @property
    def stem_dim(self) -> int:
        """Width of what a mask token is added to."""
        return self.embed_dim // 4

    def encode_filled(
        self,
        images: Mapping[str, Tensor],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """The last feature maps of filled images, stacked in the mapping's order; see ``Encoder``."""
        height, width = next(iter(images.values())).shape[-2:]
        h, w = height // self.patch_size, width // self.patch_size
        added = None
        if mask is not None and mask_token is not None:
            cells = resize_mask(mask, (h * INNER, w * INNER))
            added = rearrange(cells, "b 1 (h p) (w q) -> b (h w) p q 1", p=INNER, q=INNER) * mask_token
        return rearrange(self.encode(images, added=added).tokens, "b (h w) d -> b d h w", h=h)

    def level_features(self, features: Features) -> list[Tensor]:
        """Levels at strides 16, 8, 4 for a decoder, still grouped by patch: (B, M, p, p, D_level)."""
        return [features.tokens[:, :, None, None], features.stride8, features.stride4]

    @property
    def level_dims(self) -> list[int]:
        """Widths of ``level_features``."""
        return [self.embed_dim, self.embed_dim // 2, self.embed_dim // 4]

    def pyramid(self, images: Tensor, modality: str) -> list[Tensor]:
        """Feature maps at strides 4, 8, 16 and, by 2 x 2 average pooling, 32: (B, D_level, H/s, W/s)."""
        return self._pyramids({modality: images})[modality]

    def pyramid_together(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """``pyramid`` of each modality of the same ground, where it ``fuses`` after all have met."""
        return self._pyramids(images) if self.fuses else super().pyramid_together(images)

    def _pyramids(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        h, w = patch_grid(next(iter(images.values())), self.patch_size)
        levels = reversed(self.level_features(self.encode(images)))
        maps = [rearrange(x, "b (h w) p q d -> b d (h p) (w q)", h=h, w=w) for x in levels]
        maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True))
        parts = [level.chunk(len(images)) for level in maps]
        return {name: [level[place] for level in parts] for place, name in enumerate(images)}

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter for layer-wise decay, merges counted as layers.

        Patch embeddings and positions are 0, ``blocks.i`` is i + 1 and all that follows the trunk is
        len(blocks) + 1.
        """
        ids = {}
        for name, _ in self.named_parameters():
            if name.startswith(("patch_embed.", "absolute_pos_embed")):
                ids[name] = 0
            elif name.startswith("blocks."):
                ids[name] = int(name.split(".")[1]) + 1
            else:
                ids[name] = len(self.blocks) + 1
        return ids

    def read_initial(self, path_or_name: str) -> dict[str, Tensor]:
        """Weights to start a run from: a file of any layout that ``codemae.weights`` knows, or a name.

        Raises:
            WeightsError: The file or release cannot be had, or does not fit; the message says what to pass.
        """
        from codemae.weights import RELEASED, read_encoder_state

        problem: object
        release = None if Path(path_or_name).exists() else RELEASED.get(path_or_name)
        if release is not None and release.arch != self.arch:
            problem = f"{path_or_name} is a {release.arch}, method.encoder.arch is {self.arch}"
        else:
            try:
                return read_encoder_state(path_or_name, pyramid=type(self) is not HiViT)
            except (FileNotFoundError, DownloadError) as error:
                problem = error
        raise WeightsError(
            f"method.encoder.init: {problem}. --method.encoder.init FILE names a local file, "
            "--method.encoder.init '' starts from random weights"
        )
