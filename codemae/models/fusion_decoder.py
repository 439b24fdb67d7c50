"""A decoder of one modality whose queries ask the tokens of both before they attend to each other."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from codemae.models.cross_fusion import CrossAttentionConfig, XAttnDecoder
from codemae.models.decoder import Decoder, DecoderEmbed
from codemae.models.embeddings import resize_pos_embed
from codemae.models.masking import Masking, gather_tokens


class LatentDecoder(nn.Module):
    """Decoder of one modality from its own latents, which ``XAttnDecoder`` has conditioned before.

    Args:
        level_dims: Widths of the encoder's levels.
        dim: Width.
        depth: Self-attention blocks.
        num_heads: Heads.
        out_dim: Values predicted for a patch.
        grid: Patch grid of the fixed positions.

    Shape:
        levels [(B, M, p, p, D_i)] -> (B, N - M, out_dim), in the order of ids_removed.

    Reference: Fus-MAE, Eq. 9.
    """

    def __init__(
        self,
        *,
        level_dims: Sequence[int],
        dim: int,
        depth: int,
        num_heads: int,
        out_dim: int,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self.embed = DecoderEmbed(level_dims, dim)
        self.decoder = Decoder(
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            out_dim=out_dim,
            grid=grid,
            num_levels=len(level_dims),
        )

    def forward(
        self,
        levels: Sequence[Tensor],
        masking: Masking,
        other_levels: Sequence[Tensor] | None,
        other_keep: Tensor | None,
    ) -> Tensor:
        """Predicts the removed patches; the other modality is in the latents already."""
        return self.decoder(self.embed(levels), masking)


class QueryDecoder(LatentDecoder):
    """Decoder whose queries, visible and mask tokens alike, ask the embedded tokens of both modalities.

    In MultiMAE's order: the latents of both are embedded; positions and a learned embedding of the modality
    they come from are added, which makes the context; own visible tokens and mask tokens with positions are
    the queries; one cross-attention with MLP; then ``depth`` self-attention blocks.

    Args:
        attention: The cross-attention, at this decoder's width.
        dim: Width.
        **kwargs: As for ``LatentDecoder``.

    Differs from MultiMAE: the cross-attention keeps its residual, as Eq. 10 of Fus-MAE writes it; the global
    token is not in the context; latents are normalised before they are embedded, tokens once more before they
    become pixels; the embedding of the modality is added to the context alone, there to the queries too; only
    removed patches are predicted.

    Reference: Bachmann et al., "MultiMAE: Multi-modal Multi-task Masked Autoencoders", ECCV 2022.
    """

    def __init__(self, attention: CrossAttentionConfig, *, dim: int, **kwargs: Any) -> None:
        super().__init__(dim=dim, **kwargs)
        self.xattn = XAttnDecoder(dim, attention)
        self.own_embedding = nn.Parameter(torch.empty(1, 1, dim))
        self.other_embedding = nn.Parameter(torch.empty(1, 1, dim))
        for embedding in (self.own_embedding, self.other_embedding):
            nn.init.normal_(embedding, std=0.02)

    def forward(
        self,
        levels: Sequence[Tensor],
        masking: Masking,
        other_levels: Sequence[Tensor] | None,
        other_keep: Tensor | None,
    ) -> Tensor:
        """Predicts the removed patches from own latents and, where there are any, the other's."""
        decoder, B, M = self.decoder, *masking.ids_keep.shape
        positions = resize_pos_embed(decoder.positions, decoder.grid).expand(B, -1, -1)
        own = self.embed(levels) + gather_tokens(positions, masking.ids_keep)
        context = own + self.own_embedding
        if other_levels is not None and other_keep is not None:
            other = self.embed(other_levels) + gather_tokens(positions, other_keep) + self.other_embedding
            context = torch.cat([context, other], dim=1)
        mask_tokens = decoder.num_levels * decoder.mask_token + gather_tokens(positions, masking.ids_removed)
        x = self.xattn(torch.cat([own, mask_tokens.to(own.dtype)], dim=1), context)
        for block in decoder.blocks:
            x = block(x)
        return decoder.pred(decoder.norm(x[:, M:]))
