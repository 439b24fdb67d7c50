from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codemae.analysis.reconstruction import reconstruction_grid


def level(value: float, count: int = 2) -> torch.Tensor:
    return torch.full((count, 3, 8, 8), value)


def test_entries_land_under_their_columns() -> None:
    grid = reconstruction_grid(
        {
            "optical": level(0.1),
            "optical_masked": level(0.2),
            "optical_from_optical": level(0.3),
            "optical_from_sar": level(0.4),
            "optical_target": level(0.5),
            "sar": level(0.6),
            "sar_from_optical": level(1.7),
        },
        count=1,
    )
    assert grid.columns == (
        "input",
        "masked input",
        "self reconstruction",
        "cross reconstruction",
        "cross target",
    )
    (first, optical), (second, sar) = grid.rows
    assert (first, second) == ("optical", "sar")
    assert [None if p is None else int(p[0, 0, 0]) for p in optical] == [26, 51, 76, 102, 128]
    assert [None if p is None else int(p[0, 0, 0]) for p in sar] == [153, None, None, 255, None]


def test_a_column_missing_everywhere_is_left_out_and_places_alternate() -> None:
    grid = reconstruction_grid(
        {"optical": level(0.0, 3), "sar": level(1.0, 3), "sar_from_sar": level(0.5, 3)}
    )
    assert grid.columns == ("input", "self reconstruction")
    assert [label for label, _ in grid.rows] == 3 * ["optical", "sar"]


def test_saved_sheet_holds_each_picture_at_its_place(tmp_path: Path) -> None:
    grid = reconstruction_grid(
        {"optical": level(0.0, 1), "sar": level(0.4, 1), "optical_from_optical": level(0.2, 1)}
    )
    sheet = np.asarray(Image.open(grid.save(tmp_path / "sheet.png", gap=2, side=16)))
    assert sheet.shape == (2 * 18 + 2, 2 * 18 + 2, 3)
    assert [sheet[10, 10, 0], sheet[10, 28, 0], sheet[28, 10, 0], sheet[28, 28, 0]] == [0, 51, 102, 255]


def test_no_input_is_refused() -> None:
    with pytest.raises(KeyError, match="optical or sar"):
        reconstruction_grid({"radar": level(0.5)})
