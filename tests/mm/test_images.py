from pathlib import Path

import numpy as np
import pytest
from data_makers import picture, save
from PIL import Image

pytest.importorskip("mmengine")

from codemae.data.images import ImageError  # noqa: E402
from codemae.mm.images import LoadReadableImage  # noqa: E402

pytestmark = pytest.mark.mm


def test_pixels_come_as_blue_green_red_bytes(tmp_path: Path) -> None:
    pixels = picture(0, (6, 9))
    save(tmp_path / "colour.png", pixels)
    save(tmp_path / "gray.png", pixels[..., 0])
    results = LoadReadableImage()({"img_path": str(tmp_path / "colour.png")})
    assert results is not None and results["img"].dtype == np.uint8
    assert np.array_equal(results["img"], pixels[..., [2, 1, 0]])
    assert results["img_shape"] == results["ori_shape"] == (6, 9)
    gray = LoadReadableImage()({"img_path": str(tmp_path / "gray.png")})
    assert gray is not None and np.array_equal(gray["img"], np.repeat(pixels[..., :1], 3, axis=-1))


def test_a_cut_off_jpeg_is_replaced_once_recorded_and_refused_in_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "torn.jpg"
    Image.fromarray(picture(1, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    record = tmp_path / "run" / "bad_samples.txt"
    loader = LoadReadableImage(record=str(record))
    assert loader({"img_path": str(path)}) is None
    assert loader({"img_path": str(path)}) is None
    (line,) = record.read_text().splitlines()
    assert line.startswith(f"{path}\t")
    with pytest.raises(ImageError, match=r"torn.jpg.*mend or remove"):
        LoadReadableImage(replace=False)({"img_path": str(path)})


def test_more_than_one_in_a_hundred_unreadable_images_ends_the_run(tmp_path: Path) -> None:
    save(tmp_path / "good.png", picture(2, 8))
    loader = LoadReadableImage()
    for _ in range(200):
        loader({"img_path": str(tmp_path / "good.png")})
    assert loader({"img_path": str(tmp_path / "no1.png")}) is None
    assert loader({"img_path": str(tmp_path / "no2.png")}) is None
    with pytest.raises(ImageError, match="3 of 203 images cannot be read"):
        loader({"img_path": str(tmp_path / "no3.png")})


def test_sixteen_bit_images_are_refused_with_the_command_that_scales_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 4000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ImageError, match="gdal_translate -ot Byte"):
        LoadReadableImage(replace=False)({"img_path": str(tmp_path / "deep.png")})
