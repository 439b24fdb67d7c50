import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codemae.data.cell_positions import cell_positions, matched_cells
from codemae.data.crops import Crop, take_crop
from codemae.data.statistics import Scaling

GRID = (3, 4)


def random_crops(count: int, seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        height, width = rng.integers(30, 60, 2)
        top, left = rng.integers(0, 40, 2)
        rows.append([top, left, height, width, rng.integers(4)])
    return torch.tensor(rows, dtype=torch.float32)


def slow_position(crop: Tensor, row: int, column: int) -> tuple[float, float]:
    """Eq. 6 and 7, with u and v counted from 1 and the flips undone first."""
    top, left, height, width, flips = crop.tolist()
    h, w = GRID
    if int(flips) in (1, 3):
        column = w - 1 - column
    if int(flips) in (2, 3):
        row = h - 1 - row
    u, v = row + 1, column + 1
    return top + height / (2 * h) + height / h * (u - 1), left + width / (2 * w) + width / w * (v - 1)


def test_positions_equal_the_papers_equations_with_flips() -> None:
    crops = random_crops(8, seed=0)
    assert len(set(crops[:, 4].tolist())) == 4
    positions = cell_positions(crops, GRID)
    for crop, cells in zip(crops, positions, strict=True):
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                expected = slow_position(crop, row, column)
                assert cells[row * GRID[1] + column].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_positions_name_the_pixels_that_a_crop_really_shows(flips: tuple[bool, bool]) -> None:
    # every pixel of the picture says where it lies, so the cropped picture says what its cells show
    down, across = np.mgrid[0:40, 0:50].astype(np.float32)
    picture = np.stack([down, across], axis=-1) / 64
    crop = Crop(6, 10, 24, 32, *flips)
    shown = take_crop(picture, crop, 24, Scaling("linear", 0.0, 1.0), np.zeros(2, np.float32), False) * 64
    cells = shown.reshape(2, 4, 6, 4, 6).mean((2, 4)).reshape(2, -1).T
    # pixel i covers i to i + 1, so its middle lies half a pixel further
    positions = cell_positions(torch.tensor([crop.row()]), (4, 4))[0].numpy() - 0.5
    np.testing.assert_allclose(cells, positions, atol=0.2)


@pytest.mark.parametrize("count", [5, 20])
def test_matches_equal_a_brute_force_search(count: int) -> None:
    first, second = random_crops(6, seed=1), random_crops(6, seed=2)
    mine, theirs = matched_cells(first, second, GRID, count)
    cells = [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]
    assert mine.shape == theirs.shape == (6, min(count, len(cells)))
    for image in range(6):
        closest = []
        for i, a in enumerate(cells):
            distances = [
                math.dist(slow_position(first[image], *a), slow_position(second[image], *b)) for b in cells
            ]
            closest.append((min(distances), i, distances))
        closest.sort()
        for place, (distance, i, distances) in enumerate(closest[:count]):
            assert mine[image, place] == i
            assert distances[theirs[image, place]] == pytest.approx(distance, rel=1e-5)


def test_one_crop_mirrored_matches_every_cell_with_its_mirror_image() -> None:
    plain = torch.tensor([[2.0, 3.0, 30.0, 40.0, 0.0]])
    mirrored = torch.tensor([[2.0, 3.0, 30.0, 40.0, 1.0]])
    mine, theirs = matched_cells(plain, mirrored, GRID, 12)
    assert theirs.tolist()[0] == [4 * (i // 4) + 3 - i % 4 for i in mine.tolist()[0]]
    assert sorted(mine.tolist()[0]) == list(range(12))
