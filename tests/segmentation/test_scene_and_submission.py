import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from data_makers import picture, save
from peak_memory import peaks_of
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("mmseg")

import segment_submission  # noqa: E402
import segmentation.conftest  # noqa: E402,F401
from segment_scene import map_scene, standardised  # noqa: E402
from segment_submission import SubmissionError, check_archive, write_submission  # noqa: E402

from codemae.data.statistics import SourceStatistics  # noqa: E402
from codemae.mm.launch import LaunchError  # noqa: E402
from codemae.scenes.geotiff import SceneError  # noqa: E402
from codemae.scenes.tiling import TilingConfig, areas, window_weights  # noqa: E402

pytestmark = pytest.mark.mm
STATISTICS = SourceStatistics(channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
TILING = TilingConfig(window=64, overlap=32, margin=8, panel=96, batch_size=3)


class Neighbourhood(nn.Module):
    """A segmentor of three classes that sees 3 pixels to each side."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 7, padding=3)
        self.dataset_meta = {"classes": ["a", "b", "c"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}

    def encode_decode(self, images: Tensor, metas: Any) -> Tensor:
        return self.conv(images)

    inference = encode_decode


def scene(path: Path, pixels: np.ndarray) -> Path:
    height, width, bands = pixels.shape
    profile: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": bands}
    profile |= {"dtype": "uint8", "tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def whole(model: Neighbourhood, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.conv(standardised(pixels, STATISTICS)[None])[0].argmax(0).numpy()


def test_a_scene_in_windows_is_the_scene_at_once(tmp_path: Path) -> None:
    model, pixels = Neighbourhood().eval(), picture(0, (150, 170))
    path = scene(tmp_path / "scene.tif", pixels)
    out = tmp_path / "map.tif"
    result = map_scene(model, {"optical": path}, {"optical": STATISTICS}, out, TILING)
    with rasterio.open(out) as file:
        classes, colours = file.read(1), file.colormap(1)
    assert (result.height, result.width, result.unread) == (150, 170, [])
    assert colours[2][:3] == (7, 8, 9)
    assert (classes == whole(model, pixels)).mean() > 0.999


def broken_scene(path: Path, pixels: np.ndarray, block: str) -> Path:
    scene(path, pixels)
    with rasterio.open(path) as file:
        offset, size = (
            int(file.get_tag_item(f"BLOCK_{what}_{block}", "TIFF", 1)) for what in ("OFFSET", "SIZE")
        )
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = b"x" * size
    path.write_bytes(content)
    return path


def test_an_unreadable_tile_is_without_data_and_named(tmp_path: Path) -> None:
    model, pixels = Neighbourhood().eval(), picture(0, (160, 160))
    path = broken_scene(tmp_path / "scene.tif", pixels, "4_4")
    out = tmp_path / "map.tif"
    result = map_scene(model, {"optical": path}, {"optical": STATISTICS}, out, TILING)
    assert result.unread and all("scene.tif" in line for line in result.unread)
    with rasterio.open(out) as file:
        classes = file.read(1)
    assert classes[-1, -1] == 255 and (classes[:64, :64] == whole(model, pixels)[:64, :64]).mean() > 0.99
    with pytest.raises(SceneError, match="cannot be read"):
        map_scene(model, {"optical": path}, {"optical": STATISTICS}, out, TILING, strict=True)


@pytest.mark.parametrize("margin", [0, 8])
def test_an_unreadable_window_has_no_say_in_the_probabilities(tmp_path: Path, margin: int) -> None:
    model, pixels = Neighbourhood().eval(), picture(0, (160, 160))
    path = broken_scene(tmp_path / "scene.tif", pixels, "2_2")
    tiling = TilingConfig(window=64, overlap=32, margin=margin, panel=96, batch_size=3)
    out, shares = tmp_path / "map.tif", tmp_path / "shares.tif"
    result = map_scene(model, {"optical": path}, {"optical": STATISTICS}, out, tiling, shares)
    votes, weights, unread = np.zeros((3, 160, 160)), np.zeros((160, 160)), 0
    for area in areas(160, 160, tiling):
        place = np.s_[area.row : area.row + 64, area.column : area.column + 64]
        if max(area.row, area.column) < 96 and min(area.row, area.column) > 0:
            unread += 1
            continue
        with torch.no_grad():
            logits = model.conv(standardised(pixels[place], STATISTICS)[None])[0].numpy()
        weight = window_weights(area, 160, 160, tiling).numpy()
        votes[(..., *place)] += weight * logits
        weights[place] += weight
    assert unread == 4 and len(set(result.unread)) == 4
    with rasterio.open(shares) as file, rasterio.open(out) as classes:
        got, numbers = file.read(), classes.read(1)
    seen = weights > 0
    wanted = torch.from_numpy(votes[:, seen] / weights[seen]).softmax(dim=0).numpy()
    np.testing.assert_allclose(got[:, seen], wanted, atol=1e-5)
    np.testing.assert_array_equal(numbers[seen], wanted.argmax(axis=0))
    assert 32 * 32 <= (~seen).sum() < 64 * 64
    assert np.isnan(got[:, ~seen]).all() and (numbers[~seen] == 255).all()


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np, rasterio, torch
sys.path[:0] = [sys.argv[1] + "/segmentation", sys.argv[1]]
from segment_scene import map_scene
from codemae.data.statistics import SourceStatistics
from codemae.scenes.tiling import TilingConfig

class Brightness(torch.nn.Conv2d):
    dataset_meta = {"classes": ["dark", "bright"], "palette": [[0, 0, 0], [255, 255, 255]]}

    def encode_decode(self, images, metas):
        return self(images)

torch.set_num_threads(1)
model = Brightness(1, 2, 1)
facts = {"sar": SourceStatistics(channels=1, mean=(0.5,), std=(0.25,))}
tiling = TilingConfig(window=512, overlap=64, margin=0, panel=1024, batch_size=2)
for side in (2048, 8192):
    path = Path(sys.argv[2]) / f"{side}.tif"
    row = np.zeros((1, 256, side), np.uint8)
    with rasterio.open(path, "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8", tiled=True,
                       blockxsize=256, blockysize=256, compress="deflate") as file:
        for top in range(0, side, 256):
            file.write(row, window=rasterio.windows.Window(0, top, side, 256))
    result = map_scene(model, {"sar": path}, facts, path.with_suffix(".map.tif"), tiling)
    assert result.unread == [] and (result.height, result.width) == (side, side)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    small, large = peaks_of(MEASURE, tmp_path)
    assert large <= 1.15 * small


def test_a_scene_of_other_bands_is_refused(tmp_path: Path) -> None:
    path = scene(tmp_path / "scene.tif", picture(0, 64)[..., :2])
    with pytest.raises(LaunchError, match="has 2 bands, the model was trained on 3 of optical"):
        map_scene(Neighbourhood(), {"optical": path}, {"optical": STATISTICS}, tmp_path / "m.tif", TILING)


RULES = {"first_value": 0, "side": 32, "images": 3}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for place, number in (("Urban", 1), ("Urban", 2), ("Rural", 3)):
        save(tmp_path / f"Test/{place}/images_png/{number}.png", picture(number, 32))
    monkeypatch.setattr(segment_submission, "reader_facts", lambda model: {"optical": STATISTICS})
    return tmp_path / "Test"


def test_the_archive_is_flat_and_holds_the_predictions(images: Path, tmp_path: Path) -> None:
    model, archive = Neighbourhood(), tmp_path / "out" / "submission.zip"
    assert write_submission(model, images, archive, RULES) == 3
    with zipfile.ZipFile(archive) as file:
        assert sorted(file.namelist()) == ["1.png", "2.png", "3.png"]
        with file.open("3.png") as entry:
            stored = Image.open(entry)
            assert stored.mode == "L"
            np.testing.assert_array_equal(np.asarray(stored), whole(model, picture(3, 32)))


def test_missing_doubled_and_odd_images_are_refused(images: Path, tmp_path: Path) -> None:
    archive = tmp_path / "submission.zip"
    with pytest.raises(SubmissionError, match="holds 3 differently named PNG images, the server asks for 4"):
        write_submission(Neighbourhood(), images, archive, {**RULES, "images": 4})
    with pytest.raises(SubmissionError, match="the server takes 64 px"):
        write_submission(Neighbourhood(), images, archive, {**RULES, "side": 64})
    (images / "Rural/images_png/3.png").rename(images / "Rural/images_png/2.png")
    with pytest.raises(SubmissionError, match="holds 2 differently named"):
        write_submission(Neighbourhood(), images, archive, RULES)
    assert not list(tmp_path.glob("*submission*"))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("Urban/1.png", np.zeros((32, 32), np.uint8), "flat archive"),
        ("2.png", np.zeros((32, 32), np.uint8), "lacks or adds 1.png, 2.png"),
        ("1.png", np.zeros((32, 32, 3), np.uint8), "not one band"),
        ("1.png", np.zeros((16, 32), np.uint8), "not one band"),
        ("1.png", np.full((32, 32), 7, np.uint8), "outside 0 to 6"),
    ],
)
def test_the_check_finds_what_the_server_would_refuse(
    name: str, values: np.ndarray, message: str, tmp_path: Path
) -> None:
    save(tmp_path / "one.png", values)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "one.png", name)
    with pytest.raises(SubmissionError, match=message):
        check_archive(tmp_path / "a.zip", ["1.png"], RULES, 7)
