from pathlib import Path

import numpy as np
import pytest
from data_makers import picture, save, save_geotiff
from PIL import Image

from codemae.data.images import ImageError, Location
from codemae.data.masks import NO_LABEL, MaskError, read_mask, to_classes


def test_masks_are_read_as_stored_whatever_the_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4, (20, 30), dtype=np.uint8)
    plain = save(tmp_path / "m.png", values)
    tif = save_geotiff(tmp_path / "m.tif", values[..., None], nodata=0)
    coloured = Image.fromarray(values, mode="P")
    coloured.putpalette([7, 8, 9] * 4)
    coloured.save(tmp_path / "p.png")
    for path in (plain, tif, tmp_path / "p.png"):
        assert np.array_equal(read_mask(Location(str(path))), values), path
        assert np.array_equal(read_mask(Location(str(path)), (5, 3, 10, 8)), values[3:11, 5:15]), path


def test_a_picture_in_colour_is_no_mask(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", picture(0))
    with pytest.raises(ImageError, match="one channel"):
        read_mask(Location(str(path)))


def test_values_become_classes_and_an_unknown_one_is_named() -> None:
    stored = np.array([[0, 255], [255, 7]])
    assert to_classes(stored, (0, 255), (7,), "m").tolist() == [[0, 1], [1, NO_LABEL]]
    with pytest.raises(MaskError, match=r"m holds the values \[7\].*mask_values"):
        to_classes(stored, (0, 255), (), "m")
