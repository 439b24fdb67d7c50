import math

import numpy as np
import pytest
import torch

from codemae.analysis.alignment import Alignment, align, draw_alignment, patch_similarity, retrieval
from codemae.analysis.report import drawing


def slow_ssim_at(a: np.ndarray, b: np.ndarray, y: int, x: int) -> float:
    """SSIM of two gray images at one pixel: 11 x 11 Gaussian window, sigma 1.5, reflected borders."""
    size = len(a)
    weights = np.array([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weights /= weights.sum()

    def reflected(k: int) -> int:
        return -k if k < 0 else 2 * (size - 1) - k if k >= size else k

    pixels = [(i, j, reflected(y + i), reflected(x + j)) for i in range(-5, 6) for j in range(-5, 6)]
    mean_a = sum(weights[i + 5, j + 5] * a[v, u] for i, j, v, u in pixels)
    mean_b = sum(weights[i + 5, j + 5] * b[v, u] for i, j, v, u in pixels)
    var_a = sum(weights[i + 5, j + 5] * (a[v, u] - mean_a) ** 2 for i, j, v, u in pixels)
    var_b = sum(weights[i + 5, j + 5] * (b[v, u] - mean_b) ** 2 for i, j, v, u in pixels)
    cov = sum(weights[i + 5, j + 5] * (a[v, u] - mean_a) * (b[v, u] - mean_b) for i, j, v, u in pixels)
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def test_patch_similarity_matches_the_slow_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    optical = torch.rand(1, 1, 16, 16, generator=generator)
    sar = (0.6 * optical + 0.4 * torch.rand(1, 1, 16, 16, generator=generator)).clamp(0, 1)
    a, b = optical[0, 0].double().numpy(), sar[0, 0].double().numpy()
    expected = [
        [
            np.mean(
                [slow_ssim_at(a, b, y, x) for y in range(8 * r, 8 * r + 8) for x in range(8 * c, 8 * c + 8)]
            )
            for c in range(2)
        ]
        for r in range(2)
    ]
    found = patch_similarity(optical, sar, 8).view(2, 2)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)  # float32 against float64


def test_patches_run_row_by_row_and_equal_images_are_alike() -> None:
    optical = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    sar = (optical * torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(patch_similarity(optical, sar, 16), torch.ones(2, 6), atol=1e-4, rtol=0)
    spoiled = sar.clone()
    spoiled[:, :, 16:, :16] = 0
    assert patch_similarity(optical, spoiled, 16)[0].argmin() == 3


def test_align_matches_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    optical, sar = (torch.randn(4, 3, 5, generator=generator) for _ in range(2))
    similarity = torch.rand(4, 3, generator=generator)
    found = align(optical, sar, similarity)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b) / (a.norm() * b.norm()))

    own = [cosine(optical[i, n], sar[i, n]) for i in range(4) for n in range(3)]
    other = [cosine(optical[i, n], sar[j, n]) for i in range(4) for j in range(4) if i != j for n in range(3)]
    np.testing.assert_allclose(found.cosine.numpy(), own, atol=1e-6)
    assert found.chance == pytest.approx(np.mean(other), abs=1e-6)
    assert found.excess == pytest.approx(np.mean(own) - np.mean(other), abs=1e-6)


def test_centring_takes_a_common_direction_away() -> None:
    generator = torch.Generator().manual_seed(5)
    optical, sar = (torch.randn(6, 4, 16, generator=generator, dtype=torch.double) for _ in range(2))
    lifted = align(optical + 30, sar + 30, torch.rand(6, 4))
    centred = align(optical + 30, sar + 30, torch.rand(6, 4), centre=True)
    assert lifted.chance > 0.99
    plain = align(optical - optical.mean((0, 1)), sar - sar.mean((0, 1)), torch.rand(6, 4))
    torch.testing.assert_close(centred.cosine, plain.cosine, atol=1e-4, rtol=0)
    assert abs(centred.chance) < 0.1


def test_features_without_content_have_no_excess() -> None:
    position_only = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3)).expand(5, 6, 8)
    found = align(position_only, position_only, torch.rand(5, 6))
    assert found.cosine.min() == pytest.approx(1.0, abs=1e-6)
    assert found.excess == pytest.approx(0.0, abs=1e-6)


def test_trend_is_minus_one_where_unlike_patches_are_aligned_more() -> None:
    similarity = torch.linspace(0, 1, 50)
    found = Alignment(similarity=similarity, cosine=(1 - similarity) ** 3, chance=0.0)
    assert found.trend == pytest.approx(-1.0)
    _, cosine, _ = found.curve(5)
    assert torch.equal(cosine, cosine.sort(descending=True).values)


def test_curve_bins_by_hand() -> None:
    found = Alignment(
        similarity=torch.tensor([0.9, 0.1, 0.8, 0.2]), cosine=torch.tensor([1.0, 0.2, 0.6, 0.0]), chance=0.0
    )
    similarity, cosine, error = found.curve(2)
    torch.testing.assert_close(similarity, torch.tensor([0.15, 0.85]))
    torch.testing.assert_close(cosine, torch.tensor([0.1, 0.8]))
    # Standard deviation of (0.2, 0.0) is 0.1 * sqrt(2); divided by sqrt(2) samples: 0.1.
    torch.testing.assert_close(error, torch.tensor([0.1, 0.2]))


def test_retrieval_counts_own_pairs() -> None:
    features = torch.randn(10, 6, generator=torch.Generator().manual_seed(4))
    assert retrieval(features, features + 50) == 1.0
    assert retrieval(features, features.roll(1, dims=0)) == 0.0


def test_mismatched_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same patches"):
        align(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match="two pairs"):
        align(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3), torch.zeros(1, 4))


def test_chance_is_drawn_as_a_level() -> None:
    found = Alignment(similarity=torch.rand(40), cosine=torch.rand(40), chance=0.25)
    with drawing() as (_, axes):
        draw_alignment(axes[0], {"pretrained": found})
    levels = [line for line in axes[0].get_lines() if line.get_linestyle() == ":"]
    assert [float(np.asarray(level.get_ydata())[0]) for level in levels] == [0.25]
