import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from data_makers import picture, save
from peak_memory import peaks_of
from rasterio.transform import Affine
from rasterio.warp import transform

from codemae.scenes.geotiff import Grid, SceneError, open_scene, polygons, write_geojson, write_map
from codemae.scenes.tiling import Area

UTM = rasterio.crs.CRS.from_epsg(32633)
HERE = Affine(2.0, 0, 500_000, 0, -2.0, 5_400_000)


def write_scene(
    path: Path, bands: np.ndarray, crs: object = UTM, where: Affine = HERE, nodata: float | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = bands.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": bands.dtype}
    with rasterio.open(path, "w", **profile, crs=crs, transform=where, nodata=nodata) as dataset:
        dataset.write(np.moveaxis(bands, -1, 0))
    return path


def pattern(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth ground, features about 25 m wide."""
    return np.sin(x / 17.0) + np.cos(y / 13.0) + np.sin((x + y) / 29.0)


def test_windows_come_as_stored_and_nodata_as_nan(tmp_path: Path) -> None:
    bands = picture(0, (40, 50))
    with open_scene(write_scene(tmp_path / "plain.tif", bands)) as scene:
        assert scene.grid == Grid(height=40, width=50, transform=HERE, crs=UTM)
        part = scene.read(Area(3, 5, 10, 20))
        assert part.dtype == np.uint8 and np.array_equal(part, bands[3:13, 5:25])
    bands[4, 6] = 0
    holed = write_scene(
        tmp_path / "holed.tif", np.maximum(bands, 1) * (bands.max(-1, keepdims=True) > 0), nodata=0
    )
    with open_scene(holed) as scene:
        part = scene.read(Area(3, 5, 10, 20))
        assert np.isnan(part[1, 1]).all() and np.isfinite(part).sum() == part.size - 3


@pytest.mark.parametrize("inside", [True, False], ids=["internal mask", "msk file"])
def test_a_mask_says_where_there_is_no_data_also_on_another_grid(tmp_path: Path, inside: bool) -> None:
    bands = np.full((40, 50, 3), 7, np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside):
        # The value of no data is not what the mask goes by, and stands in none of the pixels.
        for name, nodata in (("masked.tif", None), ("both.tif", 9)):
            with rasterio.open(write_scene(tmp_path / name, bands, nodata=nodata), "r+") as dataset:
                dataset.write_mask(np.repeat([[True, False]], 40, axis=0).repeat(25, axis=1))
    assert (tmp_path / "masked.tif.msk").exists() != inside
    grid = Grid(height=20, width=40, transform=Affine(4.0, 0, 499_980, 0, -4.0, 5_400_000), crs=UTM)
    for name in ("masked.tif", "both.tif"):
        with open_scene(tmp_path / name) as scene:
            assert scene.bands == 3
            found = scene.read(Area(10, 20, 20, 20))
            assert (found[:, :5] == 7).all() and np.isnan(found[:, 5:]).all()
            assert scene.read(Area(0, 0, 40, 25)).dtype == np.uint8
        # Two columns of the file are one of the grid, and five of the grid lie before the file.
        with open_scene(tmp_path / name, grid, "nearest") as scene:
            found = scene.read(Area(0, 0, 20, 40))
            assert scene.bands == found.shape[2] == 3
            assert (found[:, 5:17] == 7).all()
            assert np.isnan(found[:, :5]).all() and np.isnan(found[:, 18:]).all()


def test_transparency_is_no_data_where_fewer_bands_are_needed_and_a_band_elsewhere(tmp_path: Path) -> None:
    bands = np.full((40, 50, 4), 7, np.uint8)
    bands[:, 25:, 3] = 0
    path = write_scene(tmp_path / "four.tif", bands)
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] == rasterio.enums.ColorInterp.alpha
    grid = Grid(height=20, width=25, transform=Affine(4.0, 0, 500_000, 0, -4.0, 5_400_000), crs=UTM)
    for like, half in ((None, 25), (grid, 12)):
        for wanted in (1, 3):
            with open_scene(path, like, "nearest", bands=wanted) as scene:
                found = scene.read(Area(0, 0, 20, 25 if like else 50))
                assert scene.bands == found.shape[2] == 3
                assert (found[:, :half] == 7).all() and np.isnan(found[:, half + 1 :]).all()
    for wanted in (4, None):
        with open_scene(path, bands=wanted) as scene:
            assert scene.bands == 4 and np.array_equal(scene.read(Area(0, 0, 40, 50)), bands)
        with open_scene(path, grid, "nearest", bands=wanted) as scene:
            assert np.isnan(scene.read(Area(0, 13, 20, 12))[..., :3]).all()


def test_a_big_picture_without_a_place_is_read_and_mapped_too(tmp_path: Path) -> None:
    pixels = picture(1, (300, 280))
    with open_scene(save(tmp_path / "plain.png", pixels)) as scene:
        assert not scene.grid.placed
        assert np.array_equal(scene.read(Area(10, 20, 30, 40)), pixels[10:40, 20:60])
        with write_map(tmp_path / "map.tif", scene.grid, dtype="uint8") as writer:
            writer.write(Area(10, 20, 30, 40), pixels[10:40, 20:60, 0])
    with rasterio.open(tmp_path / "map.tif") as written:
        assert written.crs is None and np.array_equal(written.read(1)[10:40, 20:60], pixels[10:40, 20:60, 0])


def test_a_world_file_places_the_map_too(tmp_path: Path) -> None:
    path = save(tmp_path / "plain.png", picture(1, (30, 40)))
    path.with_suffix(".pgw").write_text("2\n0\n0\n-2\n500001\n5399999\n")
    with open_scene(path) as scene:
        assert (scene.grid.transform, scene.grid.crs) == (HERE, None) and not scene.grid.placed
        with write_map(tmp_path / "map.tif", scene.grid, dtype="uint8") as writer:
            writer.write(Area(0, 0, 30, 40), np.ones((30, 40), np.uint8))
    with rasterio.open(tmp_path / "map.tif") as written:
        assert (written.transform, written.crs) == (HERE, None)


@pytest.mark.parametrize("epsg", [32634, 3857, 4326])
def test_another_system_and_resolution_is_aligned_within_a_tenth_of_a_pixel(
    tmp_path: Path, epsg: int
) -> None:
    grid = Grid(height=90, width=120, transform=HERE, crs=UTM)
    crs = rasterio.crs.CRS.from_epsg(epsg)
    # The second scene covers the first with room to spare, at another resolution, sampled at pixel centres.
    xs, ys = transform(
        UTM, crs, [499_900, 500_400, 499_900, 500_400], [5_400_100, 5_400_100, 5_399_700, 5_399_700]
    )
    step = {4326: 1.4e-5, 3857: 2.2}.get(epsg, 1.5)
    where = Affine(step, 0, min(xs), 0, -step, max(ys))
    width, height = int((max(xs) - min(xs)) / step), int((max(ys) - min(ys)) / step)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    back = transform(crs, UTM, *(each.ravel().tolist() for each in where * (columns, rows)))
    values = pattern(*(np.array(each).reshape(height, width) for each in back))
    path = write_scene(tmp_path / "after.tif", values[..., None].astype(np.float32), crs, where)
    with open_scene(path, grid, "cubic") as scene:
        assert scene.grid == grid
        found = scene.read(Area(20, 30, 50, 60))[..., 0]

    def ground(down: float = 0.0, across: float = 0.0) -> np.ndarray:
        c, r = np.meshgrid(np.arange(30, 90) + 0.5 + across, np.arange(20, 70) + 0.5 + down)
        x, y = HERE * (c, r)
        return pattern(x, y)

    error = np.abs(found - ground()).max()
    assert error < np.abs(ground(across=0.1) - ground()).max()
    assert error < np.abs(ground(down=0.1) - ground()).max()


def test_where_the_second_scene_does_not_reach_there_is_no_data(tmp_path: Path) -> None:
    grid = Grid(height=40, width=60, transform=HERE, crs=UTM)
    half = Affine(4.0, 0, 500_060, 0, -4.0, 5_400_000)  # begins at column 30
    path = write_scene(tmp_path / "half.tif", np.full((40, 40, 1), 7, np.uint8), where=half)
    with open_scene(path, grid) as scene:
        found = scene.read(Area(0, 0, 40, 60))[..., 0]
    assert np.isnan(found[:, :30]).all() and (found[:, 30:] == 7).all()


def test_crs_transform_and_nodata_of_a_map_read_back(tmp_path: Path) -> None:
    grid = Grid(height=300, width=520, transform=HERE, crs=UTM)
    values = np.random.default_rng(0).integers(0, 4, (300, 520), dtype=np.uint8)
    colours = {0: (255, 255, 255), 1: (70, 181, 121)}
    with write_map(tmp_path / "m.tif", grid, dtype="uint8", nodata=255, colours=colours) as writer:
        for row in range(0, 300, 100):
            writer.write(Area(row, 0, 100, 520), values[row : row + 100])
    with rasterio.open(tmp_path / "m.tif") as written:
        assert (written.crs, written.transform, written.nodata) == (UTM, HERE, 255)
        assert np.array_equal(written.read(1), values)
        assert written.colormap(1)[1] == (70, 181, 121, 255)


def test_a_map_that_could_not_be_finished_leaves_nothing(tmp_path: Path) -> None:
    grid = Grid(height=8, width=8, transform=HERE, crs=UTM)
    with pytest.raises(RuntimeError), write_map(tmp_path / "m.tif", grid, dtype="uint8") as writer:
        writer.write(Area(0, 0, 8, 8), np.ones((8, 8), np.uint8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_outlines_have_the_right_place_value_and_system(tmp_path: Path) -> None:
    values = np.zeros((20, 30), np.uint8)
    values[2:5, 3:9], values[10:14, 20:22], values[0, 29] = 1, 3, 255
    path = write_scene(tmp_path / "m.tif", values[..., None], nodata=255)
    found = sorted(polygons(path), key=lambda item: item[1])
    assert [value for _, value in found] == [1, 3]
    corners = np.array(found[0][0]["coordinates"][0])
    assert corners.min(0).tolist() == [500_006, 5_399_990] and corners.max(0).tolist() == [500_018, 5_399_996]
    count = write_geojson(tmp_path / "m.geojson", ((shape, {"class": value}) for shape, value in found), UTM)
    read = json.loads((tmp_path / "m.geojson").read_text())
    assert count == len(read["features"]) == 2
    assert read["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    assert read["features"][1]["properties"] == {"class": 3}


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np, rasterio, torch
sys.path.insert(0, sys.argv[1])
from codemae.scenes.geotiff import open_scene, write_map
from codemae.scenes.tiling import TilingConfig, predict_blocks

def predict(parts):
    first = torch.from_numpy(np.stack(parts)[..., 0].astype(np.float32))
    return torch.stack([first * k for k in range(8)], dim=1)

config = TilingConfig(window=256, overlap=64, panel=512, batch_size=2)
# A process's peak never falls, so the smaller scenes come first; the first one only warms up.
for side in (1024, 2048, 4096):
    path, target = (Path(sys.argv[2]) / f"{side}{part}.tif" for part in ("", "_map"))
    with rasterio.open(path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", tiled=True,
                       crs="EPSG:32633", transform=rasterio.Affine(2, 0, 5e5, 0, -2, 54e5)) as file:
        for row in range(0, side, 512):
            values = np.full((3, 512, side), row // 512 + 1, np.uint8)
            file.write(values, window=rasterio.windows.Window(0, row, side, 512))
    with open_scene(path) as scene, write_map(target, scene.grid, dtype="uint8") as out:
        for block in predict_blocks(side, side, scene.read, predict, config):
            out.write(block.area, block.values[1].numpy().astype(np.uint8))
    with rasterio.open(target) as written:
        assert written.read(1, window=rasterio.windows.Window(side - 1, 0, 1, side))[0, 0] == 1
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    _, small, large = peaks_of(MEASURE, tmp_path)
    # The accumulated logits of the whole 4,096 px scene alone would be 512 MiB.
    assert large < 1.15 * small


@pytest.mark.parametrize(
    ("name", "word"), [("nowhere.tif", "no scene at"), ("text.tif", "no image that can be read")]
)
def test_what_is_no_scene_is_refused(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / "text.tif").write_text("hello")
    with pytest.raises(SceneError, match=word), open_scene(tmp_path / name):
        pass


def test_a_scene_without_a_place_goes_with_another_of_its_size_only(tmp_path: Path) -> None:
    path = save(tmp_path / "plain.png", picture(2, 32))
    grid = Grid(height=32, width=32, transform=HERE, crs=UTM)
    with open_scene(path, grid) as scene:
        assert scene.read(Area(0, 0, 32, 32)).shape == (32, 32, 3)
    with (
        pytest.raises(SceneError, match="gdal_translate"),
        open_scene(path, Grid(height=64, width=32, transform=HERE, crs=UTM)),
    ):
        pass
