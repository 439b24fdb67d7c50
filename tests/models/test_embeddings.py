import math

import pytest
import torch

from codemae.models.embeddings import PatchEmbed, adapt_channels, resize_pos_embed, sincos_positions


def test_patch_embedding_equals_a_strided_convolution() -> None:
    torch.manual_seed(0)
    embed, images = PatchEmbed(3, 8), torch.randn(2, 3, 32, 48)
    maps = embed.norm(embed.proj(images).permute(0, 2, 3, 1))
    cells = embed(images)
    for patch in range(6):
        for i in range(4):
            for j in range(4):
                expected = maps[:, 4 * (patch // 3) + i, 4 * (patch % 3) + j]
                torch.testing.assert_close(cells[:, patch, i, j], expected, rtol=1e-4, atol=1e-5)


def test_sum_and_cycle_keep_the_answer_to_a_repeated_gray_image() -> None:
    torch.manual_seed(0)
    weight, gray = torch.randn(5, 3, 4, 4), torch.randn(4, 4)
    answer = torch.einsum("dcij,ij->d", weight, gray)
    for rule in ("sum", "cycle"):
        torch.testing.assert_close(torch.einsum("dcij,ij->d", adapt_channels(weight, 1, rule), gray), answer)
    torch.testing.assert_close(torch.einsum("dcij,ij->d", adapt_channels(weight, 4, "sum"), gray), answer)


def test_cycle_repeats_channels_in_turn() -> None:
    weight = torch.arange(3.0).view(1, 3, 1, 1)
    assert adapt_channels(weight, 5, "cycle").flatten().tolist() == pytest.approx([0, 0.6, 1.2, 0, 0.6])
    assert adapt_channels(weight, 2, "mean").flatten().tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="known: sum, mean, cycle"):
        adapt_channels(weight, 2, "max")  # type: ignore[arg-type]


def test_sincos_positions_by_hand() -> None:
    positions = sincos_positions(8, (2, 3))[0]
    row, column = 1, 2
    expected = [f(p / 10000 ** (k / 2)) for p in (column, row) for f in (math.sin, math.cos) for k in (0, 1)]
    torch.testing.assert_close(positions[row * 3 + column], torch.tensor(expected))


def test_resizing_positions_keeps_a_linear_ramp() -> None:
    ramp = torch.linspace(0, 1, 8).view(1, 8, 1).expand(8, 8, 1).reshape(1, 64, 1)
    resized = resize_pos_embed(ramp, (8, 16)).view(8, 16)
    steps = resized[0, 4:12].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / 14), rtol=0.05, atol=1e-3)
    assert torch.equal(resize_pos_embed(ramp, (8, 8)), ramp)
    with pytest.raises(ValueError, match="no square grid"):
        resize_pos_embed(ramp[:, :15], (4, 4))
