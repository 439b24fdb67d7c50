import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from data_makers import ROOT
from peak_memory import peaks_of
from rasterio.transform import from_origin
from scipy import ndimage

pytest.importorskip("mmdet")

from scene_boxes import (  # noqa: E402
    Boxes,
    SceneResult,
    SceneSettings,
    detector_of,
    join_parts,
    search_scene,
    settle,
)
from torchvision.ops import batched_nms  # noqa: E402

from codemae.mm.launch import LaunchError  # noqa: E402
from codemae.scenes.geotiff import SceneError  # noqa: E402

pytestmark = pytest.mark.mm
CLASSES = ("ship",)
SETTINGS = SceneSettings(window=128, overlap=48, batch_size=2)
TRANSFORM = from_origin(500000, 4200000, 10, 10)


def bright_rectangles(windows: list[np.ndarray]) -> list[Boxes]:
    """A detector whose answer can be computed by hand: the outline of every connected bright area."""
    answers = []
    for pixels in windows:
        areas, _ = ndimage.label(pixels[..., 0] > 128)
        corners = [[c.start, r.start, c.stop, r.stop] for r, c in ndimage.find_objects(areas)]
        scores = [0.5 + (x1 - x0) * (y1 - y0) / 1e6 for x0, y0, x1, y1 in corners]
        answers.append(
            Boxes(
                torch.tensor(corners, dtype=torch.float32).reshape(-1, 4),
                torch.tensor(scores),
                torch.zeros(len(corners), dtype=torch.long),
            )
        )
    return answers


def search(scene: Path, out: Path, settings: SceneSettings) -> SceneResult:
    return search_scene(scene, out, bright_rectangles, CLASSES, settings)


def make_scene(path: Path, side: tuple[int, int], step: int = 60, **profile: Any) -> list[list[int]]:
    """Bright rectangles of up to 40 px on a grid that does not fit the windows; returns x0, y0, x1, y1."""
    rng = np.random.default_rng(1)
    pixels = np.zeros(side, dtype=np.uint8)
    truth = []
    for y in range(5, side[0] - 45, step):
        for x in range(5, side[1] - 45, step):
            w, h = (int(v) for v in rng.integers(8, 41, 2))
            pixels[y : y + h, x : x + w] = 255
            truth.append([x, y, x + w, y + h])
    profile = {"driver": "GTiff", "height": side[0], "width": side[1], "count": 3, "dtype": "uint8"} | profile
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.stack([pixels] * 3).astype(profile["dtype"]))
    return truth


def found_in(path: Path) -> list[list[int]]:
    features = json.loads(path.read_text())["features"]
    return [[int(v) for v in feature["properties"]["pixels"]] for feature in features]


@pytest.mark.parametrize("side", [(300, 420), (128, 500), (100, 90), (437, 129)])
def test_every_object_is_found_once_and_whole_wherever_the_borders_fall(
    tmp_path: Path, side: tuple[int, int]
) -> None:
    truth = make_scene(tmp_path / "scene.tif", side)
    result = search(tmp_path / "scene.tif", tmp_path / "out.geojson", SETTINGS)
    found = found_in(tmp_path / "out.geojson")
    assert sorted(found) == sorted(truth) and result.boxes == len(truth) > 0
    whole = SceneSettings(window=512, overlap=0)
    search(tmp_path / "scene.tif", tmp_path / "whole.geojson", whole)
    assert sorted(found_in(tmp_path / "whole.geojson")) == sorted(found)


def paint(path: Path, side: tuple[int, int], boxes: list[list[int]], bands: int = 3) -> Path:
    """A dark scene with a bright rectangle at each x0, y0, x1, y1."""
    pixels = np.zeros((bands, *side), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[:, y0:y1, x0:x1] = 255
    profile = {"driver": "GTiff", "height": side[0], "width": side[1], "count": bands, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile) as file:
        file.write(pixels)
    return path


@pytest.mark.parametrize("length", [192, 250, 350, 450, 550, 1300])
def test_an_object_longer_than_the_overlap_is_one_box_wherever_it_lies(tmp_path: Path, length: int) -> None:
    settings = SceneSettings(window=800, overlap=200)
    for left in (10, 300, 400, 470, 530, 575, 592, 598, 604, 608, 640, 700, 790):
        box = [left, 20, left + length, 60]
        search(paint(tmp_path / "scene.tif", (80, 2200), [box]), tmp_path / "out.geojson", settings)
        assert found_in(tmp_path / "out.geojson") == [box]


@pytest.mark.parametrize("size", [(60, 60), (30, 100), (120, 70), (300, 20), (260, 290)])
def test_an_object_cut_at_several_borders_is_one_box(tmp_path: Path, size: tuple[int, int]) -> None:
    for left, top in ((4, 4), (50, 70), (75, 79), (81, 60), (90, 30), (110, 100)):
        box = [left, top, left + size[0], top + size[1]]
        search(paint(tmp_path / "scene.tif", (420, 430), [box]), tmp_path / "out.geojson", SETTINGS)
        assert found_in(tmp_path / "out.geojson") == [box]


def test_long_neighbours_at_a_border_stay_two(tmp_path: Path) -> None:
    boxes = [[40, 20, 150, 50], [30, 52, 170, 84], [172, 20, 300, 50]]
    search(paint(tmp_path / "scene.tif", (100, 430), boxes), tmp_path / "out.geojson", SETTINGS)
    assert sorted(found_in(tmp_path / "out.geojson")) == sorted(boxes)


def test_parts_are_joined_if_they_agree_within_what_both_windows_saw() -> None:
    left, right = [-math.inf, -math.inf, 800, math.inf], [600, -math.inf, math.inf, math.inf]

    def joined(*parts: tuple[list[float], list[float], float, int]) -> list[list[float]]:
        corners, seen, scores, labels = zip(*parts, strict=True)
        boxes = Boxes(torch.tensor(corners), torch.tensor(scores), torch.tensor(labels), torch.tensor(seen))
        done = join_parts(boxes)
        return sorted(torch.cat([done.corners, done.scores[:, None]], dim=1).tolist())

    one = ([500.0, 100, 800, 300], left, 0.5, 0), ([600.0, 110, 900, 300], right, 0.75, 0)
    assert joined(*one) == [[500, 100, 900, 300, 0.75]]
    # Within columns 600 to 800 the second object overlaps the first by 80 of 320 rows.
    other = ([480.0, 220, 800, 420], left, 0.5, 0), ([600.0, 220, 950, 420], right, 0.25, 0)
    assert joined(*one, *other) == [[480, 220, 950, 420, 0.5], [500, 100, 900, 300, 0.75]]
    of_another_class = ([600.0, 110, 900, 300], right, 0.75, 1)
    assert len(joined(one[0], of_another_class)) == 2
    # What the right window sees whole needs no part of the left one, whatever its score.
    assert joined(([606.0, 100, 800, 300], left, 0.75, 0), ([607.0, 101, 990, 300], right, 0.5, 0)) == [
        [607, 101, 990, 300, 0.5]
    ]


def test_coordinates_are_those_of_the_scene(tmp_path: Path) -> None:
    truth = make_scene(tmp_path / "scene.tif", (150, 150), crs="EPSG:32633", transform=TRANSFORM)
    result = search(tmp_path / "scene.tif", tmp_path / "out.geojson", SETTINGS)
    content = json.loads((tmp_path / "out.geojson").read_text())
    assert result.placed and content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    by_pixels = {tuple(f["properties"]["pixels"]): f for f in content["features"]}
    for x0, y0, x1, y1 in truth:
        feature = by_pixels[x0, y0, x1, y1]
        ring = feature["geometry"]["coordinates"][0]
        assert ring[0] == ring[-1] == [500000 + 10 * x0, 4200000 - 10 * y0]
        assert ring[2] == [500000 + 10 * x1, 4200000 - 10 * y1]
        assert feature["properties"]["class"] == "ship" and 0.5 < feature["properties"]["score"] < 1


def test_without_a_coordinate_system_coordinates_are_columns_and_rows(tmp_path: Path) -> None:
    truth = make_scene(tmp_path / "scene.png", (150, 150), driver="PNG")
    result = search(tmp_path / "scene.png", tmp_path / "out.geojson", SETTINGS)
    content = json.loads((tmp_path / "out.geojson").read_text())
    assert not result.placed and "crs" not in content
    corners = [feature["geometry"]["coordinates"][0][0] for feature in content["features"]]
    assert sorted(corners) == sorted([float(x), float(y)] for x, y, _, _ in truth)


def test_an_unreadable_tile_is_left_out_and_said_or_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    make_scene(path, (512, 512), tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(content)
    settings = SceneSettings(window=128, overlap=48)
    result = search(path, tmp_path / "out.geojson", settings)
    assert 0 < len(result.unread) < result.windows and result.boxes > 0
    strict = SceneSettings(window=128, overlap=48, strict=True)
    with pytest.raises(SceneError, match="cannot be read"):
        search(path, tmp_path / "strict.geojson", strict)
    assert not (tmp_path / "strict.geojson").exists()


def test_values_that_are_no_bytes_need_a_range(tmp_path: Path) -> None:
    truth = make_scene(tmp_path / "scene.tif", (150, 150), dtype="uint16")
    with pytest.raises(LaunchError, match="--value-range"):
        search(tmp_path / "scene.tif", tmp_path / "o.geojson", SETTINGS)
    settings = SceneSettings(window=128, overlap=48, value_range=(0, 300))
    search(tmp_path / "scene.tif", tmp_path / "out.geojson", settings)
    assert sorted(found_in(tmp_path / "out.geojson")) == sorted(truth)
    with pytest.raises(LaunchError, match="--bands"):
        settings = SceneSettings(bands=(1, 9, 2), value_range=(0, 300))
        search(tmp_path / "scene.tif", tmp_path / "o.geojson", settings)


def test_pixels_without_data_take_the_mean(tmp_path: Path) -> None:
    pixels = np.full((3, 64, 64), 7, dtype=np.uint8)
    pixels[:, :, 32:] = 90
    profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 3, "dtype": "uint8", "nodata": 7}
    with rasterio.open(tmp_path / "scene.tif", "w", **profile) as file:
        file.write(pixels)
    seen = []

    def look(windows: list[np.ndarray]) -> list[Boxes]:
        seen.extend(windows)
        return [Boxes() for _ in windows]

    settings = SceneSettings(window=64, overlap=0, fill=(10.2, 20.0, 30.0))
    search_scene(tmp_path / "scene.tif", tmp_path / "out.geojson", look, CLASSES, settings)
    assert seen[0][:, :32].reshape(-1, 3).tolist() == [[10, 20, 30]] * (64 * 32)
    assert (seen[0][:, 32:] == 90).all()


def test_transparent_pixels_have_no_data_unless_the_band_is_asked_for(tmp_path: Path) -> None:
    path = paint(tmp_path / "scene.tif", (64, 64), [[0, 0, 64, 30]], bands=4)
    seen = []

    def look(windows: list[np.ndarray]) -> list[Boxes]:
        seen.extend(windows)
        return [Boxes() for _ in windows]

    for bands in (None, (4, 1, 2)):
        settings = SceneSettings(window=64, overlap=0, fill=(10.0, 20.0, 30.0), bands=bands)
        search_scene(path, tmp_path / "out.geojson", look, CLASSES, settings)
    assert (seen[0][:30] == 255).all() and (seen[0][30:] == [10, 20, 30]).all()
    assert (seen[1][:30] == 255).all() and (seen[1][30:] == 0).all()


def test_settling_row_by_row_keeps_what_one_suppression_keeps() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(400, 2, generator=generator) * torch.tensor([120.0, 600.0])
    corners = torch.cat([corners, corners + 5 + 25 * torch.rand(400, 2, generator=generator)], dim=1)
    boxes = Boxes(
        corners, torch.rand(400, generator=generator), torch.randint(0, 2, (400,), generator=generator)
    )
    kept = batched_nms(boxes.corners, boxes.scores, boxes.labels, 0.4)
    wanted = sorted(boxes.part(kept).corners.tolist())
    found, waiting, most = [], Boxes(), 0
    for top in range(0, 640, 40):
        inside = (boxes.corners[:, 1] >= top) & (boxes.corners[:, 1] < top + 40)
        waiting = waiting.joined(boxes.part(inside))
        done, waiting = settle(waiting, top + 40 if top < 600 else None, 0.4)
        found += done.corners.tolist()
        most = max(most, len(waiting))
    assert sorted(found) == wanted and len(waiting) == 0 and most < 400


def test_one_window_gives_what_the_detector_gives(tmp_path: Path, ships: Path) -> None:
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    config = Config.fromfile(
        ROOT / "detection" / "configs" / "faster-rcnn_hivit-tiny_itpn_1xb4-40e_ship-optical.py"
    )
    init_default_scope("mmdet")
    torch.manual_seed(0)
    detect = detector_of(MODELS.build(config.model), torch.device("cpu"))
    with rasterio.open(ships / "images" / "1.png") as file:
        pixels = np.moveaxis(file.read(), 0, -1)
    (boxes,) = detect([pixels])
    settings = SceneSettings(window=96, overlap=0, least_score=0.0, iou=1.0)
    search_scene(ships / "images" / "1.png", tmp_path / "out.geojson", detect, CLASSES, settings)
    features = json.loads((tmp_path / "out.geojson").read_text())["features"]
    got = sorted(feature["properties"]["pixels"] for feature in features)
    wanted = sorted([round(v, 2) for v in corners] for corners in boxes.corners.tolist())
    assert len(got) > 0 and np.allclose(got, wanted)


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np, rasterio, torch
sys.path[:0] = [sys.argv[1] + "/detection", sys.argv[1]]
from scene_boxes import Boxes, SceneSettings, search_scene

def detect(windows):
    one = Boxes(torch.tensor([[200., 200., 240., 230.]]), torch.tensor([0.9]), torch.tensor([0]))
    return [one for _ in windows]

for side in (2048, 8192):
    path = Path(sys.argv[2]) / f"{side}.tif"
    row = np.zeros((3, 256, side), np.uint8)
    with rasterio.open(path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", tiled=True,
                       blockxsize=256, blockysize=256, compress="deflate") as file:
        for top in range(0, side, 256):
            file.write(row, window=rasterio.windows.Window(0, top, side, 256))
    settings = SceneSettings(window=1024, overlap=128)
    search_scene(path, path.with_suffix(".geojson"), detect, ("ship",), settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    small, large = peaks_of(MEASURE, tmp_path)
    assert large <= 1.15 * small
