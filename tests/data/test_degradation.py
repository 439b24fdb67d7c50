import math

import numpy as np
import pytest
import torch

from codemae.data.degradation import (
    average_pool,
    degraded_patch_dim,
    degraded_patches,
    grayscale,
    histogram_of_gradients,
    median_blur,
    multi_scale_gradient,
)


def test_gray_is_luma_of_colour_and_mean_of_the_rest() -> None:
    torch.manual_seed(0)
    colour = torch.rand(1, 3, 2, 2)
    for i in range(2):
        for j in range(2):
            r, g, b = colour[0, :, i, j].tolist()
            assert grayscale(colour)[0, 0, i, j].item() == pytest.approx(0.299 * r + 0.587 * g + 0.114 * b)
    two = torch.rand(1, 2, 2, 2)
    torch.testing.assert_close(grayscale(two)[:, 0], (two[:, 0] + two[:, 1]) / 2)


def test_median_removes_a_lone_speck_and_keeps_an_edge() -> None:
    image = torch.zeros(1, 1, 16, 16)
    image[..., 8:] = 1.0
    speckled = image.clone()
    speckled[0, 0, 4, 3] = 5.0
    assert torch.equal(median_blur(speckled), image)


@pytest.mark.parametrize("size", [2, 4])
def test_average_pool_equals_block_means(size: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 8, 8)
    pooled = average_pool(image, size)
    for i in range(8):
        for j in range(8):
            top, left = i // size * size, j // size * size
            block = image[0, 0, top : top + size, left : left + size]
            assert pooled[0, 0, i, j].item() == pytest.approx(block.mean().item())


def test_pooling_by_the_patch_leaves_one_value_of_each_channel_in_a_patch() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 32)
    whole, quarter = (
        degraded_patches(image, "avg_pool", 16, size).unflatten(2, (256, 3)) for size in (16, 8)
    )
    torch.testing.assert_close(whole[0, 1], image[0, :, :16, 16:].mean((1, 2)).expand(256, 3))
    assert [len(quarter[0, 1, :, channel].unique()) for channel in range(3)] == [4, 4, 4]


def test_gradient_histogram_finds_the_direction_of_stripes() -> None:
    x = torch.arange(32.0)
    vertical = torch.sin(x * 0.7).expand(32, 32)[None, None]
    cells = histogram_of_gradients(vertical)
    assert (cells.argmax(1) == 0).all()  # Gradients along x lie at angle 0 or pi: the first and last bin.
    across = histogram_of_gradients(vertical.transpose(2, 3))
    assert (across.argmax(1) == 4).all()  # pi / 2 is the middle one of nine bins.
    torch.testing.assert_close(cells.norm(dim=1), torch.ones(1, 4, 4), rtol=1e-4, atol=1e-4)


def test_multi_scale_gradient_equals_a_slow_transcription() -> None:
    rng = np.random.default_rng(0)
    image = rng.random((40, 40)).astype(np.float32)
    maps = multi_scale_gradient(torch.tensor(image)[None, None])[0].numpy()
    for channel, r in enumerate((9, 13, 17)):
        padded = np.pad(image, r, mode="reflect")
        for i, j in ((0, 0), (5, 30), (20, 20), (39, 1)):
            window = padded[i : i + 2 * r + 1, j : j + 2 * r + 1]
            left, right = window[:, : r + 1].mean() + 0.01, window[:, r:].mean() + 0.01
            up, down = window[: r + 1].mean() + 0.01, window[r:].mean() + 0.01
            expected = math.hypot(math.log(left / right), math.log(up / down))
            assert maps[channel, i, j] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_multi_scale_gradient_forgets_multiplicative_gain() -> None:
    torch.manual_seed(0)
    image = 5 + torch.rand(1, 1, 48, 48)
    torch.testing.assert_close(
        multi_scale_gradient(image), multi_scale_gradient(4 * image), rtol=0.02, atol=2e-3
    )


@pytest.mark.parametrize("kind", ["rgb", "gray", "median", "avg_pool", "hog", "mgf"])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_have_the_announced_size(kind: str, channels: int) -> None:
    patches = degraded_patches(torch.rand(2, channels, 64, 64), kind, 16)  # type: ignore[arg-type]
    assert patches.shape == (2, 16, degraded_patch_dim(kind, 16))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gray", "hog", "mgf"])
@pytest.mark.parametrize("channels", [2, 13])
def test_many_bands_become_their_mean(kind: str, channels: int) -> None:
    torch.manual_seed(0)
    image = torch.rand(1, channels, 64, 64)
    expected = degraded_patches(image.mean(1, keepdim=True), kind, 16)  # type: ignore[arg-type]
    torch.testing.assert_close(degraded_patches(image, kind, 16), expected)  # type: ignore[arg-type]


def test_unknown_kind_names_the_known() -> None:
    with pytest.raises(KeyError, match="rgb, gray, median"):
        degraded_patches(torch.rand(1, 3, 16, 16), "blur", 16)  # type: ignore[arg-type]
