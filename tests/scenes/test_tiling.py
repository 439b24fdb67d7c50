import pytest
import torch
from torch import Tensor, nn

from codemae.scenes.tiling import (
    Area,
    TilingConfig,
    TilingError,
    areas,
    count_windows,
    pad_to_multiple,
    predict_blocks,
    starts,
    window_weights,
)


def stitched(image: Tensor, network: nn.Module, config: TilingConfig) -> tuple[Tensor, Tensor, int]:
    """The whole result, how often each pixel was handed out, and the windows that were reported."""
    height, width = image.shape[1:]
    reported = 0

    def note(windows: int) -> None:
        nonlocal reported
        reported += windows

    whole, times = torch.zeros(3, height, width), torch.zeros(height, width)
    blocks = predict_blocks(
        height,
        width,
        lambda a: image[:, a.row : a.row + a.height, a.column : a.column + a.width],
        lambda parts: network(torch.stack(parts)),
        config,
        note,
    )
    for (row, column, high, wide), values in blocks:
        whole[:, row : row + high, column : column + wide] = values
        times[row : row + high, column : column + wide] += 1
    return whole, times, reported


@pytest.mark.parametrize(("height", "width"), [(101, 150), (32, 32), (20, 90), (33, 31), (64, 200)])
def test_with_a_margin_as_wide_as_the_network_sees_the_result_is_that_of_the_whole_image(
    height: int, width: int
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    image = torch.randn(2, height, width)
    config = TilingConfig(window=32, overlap=12, margin=2, panel=40, batch_size=3)
    whole, times, reported = stitched(image, network, config)
    assert torch.equal(times, torch.ones(height, width))
    torch.testing.assert_close(whole, network(image[None])[0], atol=1e-5, rtol=1e-5)
    assert reported == count_windows(height, width, config)


def test_without_a_margin_only_the_interior_is_that_of_the_whole_image() -> None:
    torch.manual_seed(1)
    network = nn.Conv2d(2, 3, 3, padding=1)
    image = torch.randn(2, 60, 60)
    whole, _, _ = stitched(image, network, TilingConfig(window=32, overlap=8, panel=64))
    direct = network(image[None])[0]
    torch.testing.assert_close(whole[:, :20, :20], direct[:, :20, :20], atol=1e-5, rtol=1e-5)
    assert (whole - direct).abs().max() > 1e-3


def test_panels_change_nothing() -> None:
    torch.manual_seed(2)
    network = nn.Conv2d(2, 3, 3, padding=1)
    image = torch.randn(2, 50, 170)
    narrow = stitched(image, network, TilingConfig(window=32, overlap=16, panel=32))[0]
    wide = stitched(image, network, TilingConfig(window=32, overlap=16, panel=1000))[0]
    torch.testing.assert_close(narrow, wide, atol=1e-6, rtol=1e-6)


def test_a_border_is_the_weighted_mean_of_both_windows() -> None:
    config = TilingConfig(window=4, overlap=2, panel=4, batch_size=1)
    # Windows at columns 0 and 2 of a scene of 6; the first says 0, the second 1, everywhere.
    blocks = list(
        predict_blocks(4, 6, lambda a: a, lambda w: torch.full((1, 1, 4, 4), float(w[0].column > 0)), config)
    )
    row = torch.cat([block.values[0, 0] for block in blocks])
    # Weights over the shared columns: 0.75, 0.25 going out and 0.25, 0.75 coming in.
    assert row.tolist() == pytest.approx([0, 0, 0.25, 0.75, 1, 1])


def test_windows_cover_the_scene_and_the_last_ones_end_with_it() -> None:
    assert starts(10, 4, 1) == [0, 3, 6] and starts(11, 4, 1) == [0, 3, 6, 7] and starts(3, 4, 1) == [0]
    config = TilingConfig(window=4, overlap=1, panel=4)
    found = list(areas(5, 3, config))
    assert found == [Area(0, 0, 4, 3), Area(1, 0, 4, 3)]
    assert torch.equal(window_weights(Area(0, 0, 4, 3), 4, 3, config), torch.ones(4, 3))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"window": 8, "overlap": 8}, "overlap"),
        ({"window": 8, "overlap": 4, "margin": 3}, "margin"),
        ({"window": 8, "overlap": 2, "panel": 4}, "panel"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_windows_that_cannot_cover_a_scene_are_refused(wrong: dict[str, int], word: str) -> None:
    with pytest.raises(TilingError, match=word):
        TilingConfig(**wrong)


def test_a_network_that_shrinks_its_windows_is_refused() -> None:
    with pytest.raises(TilingError, match="8 x 8"):
        next(
            predict_blocks(
                8, 8, lambda a: a, lambda w: torch.zeros(1, 2, 4, 4), TilingConfig(window=8, overlap=2)
            )
        )


def test_padding_repeats_the_border() -> None:
    image = torch.arange(6.0).view(1, 2, 3)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (1, 4, 4)
    assert padded[0, 3].tolist() == [3, 4, 5, 5] and torch.equal(padded[:, :2, :3], image)
    assert pad_to_multiple(padded, 4) is padded
