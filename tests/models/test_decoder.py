import torch

from codemae.models.decoder import Decoder, DecoderEmbed
from codemae.models.masking import random_masking


def build(dim: int = 32) -> Decoder:
    torch.manual_seed(0)
    return Decoder(dim=dim, depth=2, num_heads=4, out_dim=12, grid=(4, 4), num_levels=3).eval()


@torch.no_grad()
def test_decoder_equals_the_unshuffled_form() -> None:
    decoder = build()
    visible, masking = torch.randn(2, 4, 32), random_masking(torch.rand(2, 16), 0.75)
    for b in range(2):
        x = torch.zeros(16, 32)
        for patch in range(16):
            kept = (masking.ids_keep[b] == patch).nonzero()
            x[patch] = visible[b, kept[0, 0]] if len(kept) else 3 * decoder.mask_token[0, 0]
        x = (x + decoder.positions[0])[None]
        for block in decoder.blocks:
            x = block(x)
        whole = decoder.pred(decoder.norm(x))[0]
        torch.testing.assert_close(
            decoder(visible, masking)[b], whole[masking.ids_removed[b]], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_embed_sums_levels_laid_side_by_side() -> None:
    torch.manual_seed(0)
    embed = DecoderEmbed([6, 6, 6], 32)
    levels = [torch.randn(1, 2, p, p, 6) for p in (1, 2, 4)]
    expected = torch.zeros(1, 2, 32)
    for level, layer, p in zip(levels, embed.levels, (1, 2, 4), strict=True):
        width = 32 // p**2
        for i in range(p):
            for j in range(p):
                start = (i * p + j) * width
                expected[:, :, start : start + width] += layer(level[:, :, i, j])
    torch.testing.assert_close(embed(levels), expected)
