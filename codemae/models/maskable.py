"""Encoders that are given only some patches of their images, of one modality or of several in one stack."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from codemae.models.embeddings import ChannelRule, fit_patch_embeddings, resize_pos_embed
from codemae.models.encoder import Encoder
from codemae.models.masking import gather_tokens


class MaskableEncoder(Encoder):
    """Base of the encoders whose patches can be dropped before the first layer.

    A subclass sets ``patch_embed`` and ``absolute_pos_embed`` and defines ``encode``, whose answer has
    ``tokens``.

    Args:
        img_size: Side of the square image whose grid the positions are laid out for; others interpolate.
        patch_size: Patch side P.
        channels: Input channels of each modality.
        center: Modalities whose images lose their own mean on entry, channel by channel.
        checkpoint_activations: Recompute blocks in the backward pass to save memory.

    Attributes:
        grid: Patch grid (h, w) of the positions.
        patch_embed: For each modality, images and the patches to keep -> embedded patches.
        absolute_pos_embed: Positions (1, h * w, D).
    """

    grid: tuple[int, int]
    patch_embed: nn.ModuleDict
    absolute_pos_embed: nn.Parameter

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        channels: Mapping[str, int] | None,
        center: Sequence[str],
        checkpoint_activations: bool,
    ) -> None:
        super().__init__()
        if img_size % patch_size:
            raise ValueError(f"img_size {img_size} is not a multiple of {patch_size}")
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid = (img_size // patch_size, img_size // patch_size)
        self.channels = dict(channels or {"optical": 3, "sar": 3})
        if unknown := set(center) - set(self.channels):
            raise ValueError(f"center names {', '.join(unknown)}; known: {', '.join(self.channels)}")
        self.center = tuple(center)
        self.checkpoint_activations = checkpoint_activations

    def encode(self, images: Mapping[str, Tensor], ids_keep: Tensor | None = None) -> Any:
        """What the trunk gives for images of all given modalities, stacked in the mapping's order."""
        raise TypeError(f"{type(self).__name__} does not define encode")

    def embed(self, images: Mapping[str, Tensor], ids_keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Embedded patches of all given modalities, and their positions.

        Args:
            images: Modality -> (B, C, H, W), all of one size.
            ids_keep: Patches to keep: (B, M), the same for all modalities, or (V B, M), each its own in the
                stacked order; None keeps all.

        Returns:
            (V B, M or N, ...), stacked in the mapping's order, and (V B, M, D), or (1, N, D) where all are
            kept.

        Raises:
            KeyError: A modality this encoder has no patch embedding for.
        """
        views, (count, _, height, width) = len(images), next(iter(images.values())).shape
        if ids_keep is not None and len(ids_keep) == count:
            ids_keep = ids_keep.repeat(views, 1)
        kept = [None] * views if ids_keep is None else ids_keep.split(count)
        x = torch.cat(
            [self._embed(name, image, ids) for (name, image), ids in zip(images.items(), kept, strict=True)]
        )
        positions = resize_pos_embed(
            self.absolute_pos_embed, (height // self.patch_size, width // self.patch_size), self.grid
        )
        if ids_keep is not None:
            positions = gather_tokens(positions.expand(len(ids_keep), -1, -1), ids_keep)
        return x, positions

    def _embed(self, modality: str, images: Tensor, ids_keep: Tensor | None) -> Tensor:
        self.check_modality(modality)
        if modality in self.center:
            images = images - images.mean(dim=(2, 3), keepdim=True)
        return self.patch_embed[modality](images, ids_keep)

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """All patch tokens of images of one modality: (B, C, H, W) -> (B, N, D)."""
        return self.encode({modality: images}).tokens

    def forward_masked(self, images: Tensor, modality: str, ids_keep: Tensor) -> Tensor:
        """Tokens of the kept patches: (B, C, H, W), (B, M) -> (B, M, D)."""
        return self.encode({modality: images}, ids_keep).tokens

    def pooled_together(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Mean tokens (B, D) of each modality of the same ground, where it ``fuses`` after all have met."""
        if not self.fuses:
            return super().pooled_together(images)
        parts = self.encode(images).tokens.mean(dim=1).chunk(len(images))
        return dict(zip(images, parts, strict=True))

    def fit_state(self, state: Mapping[str, Tensor], rule: ChannelRule = "cycle") -> dict[str, Tensor]:
        """Fits positions to the encoder's grid and patch embeddings to its channels."""
        fitted = fit_patch_embeddings(state, self.channels, rule)
        if (key := "absolute_pos_embed") in fitted and fitted[key].shape != self.absolute_pos_embed.shape:
            fitted[key] = resize_pos_embed(fitted[key], self.grid)
        return fitted
