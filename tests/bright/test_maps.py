import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from data_makers import load_script, picture
from peak_memory import peaks_of
from rasterio.transform import Affine
from rasterio.warp import transform
from torch import Tensor

from codemae.models.damage import DamageModel, DamageOutput

conftest = load_script("tests/bright/conftest.py")
words = conftest.words
UTM = rasterio.crs.CRS.from_epsg(32633)
HERE = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
LONLAT = rasterio.crs.CRS.from_epsg(4326)


def write_scene(path: Path, bands: np.ndarray, crs: object, where: Affine) -> Path:
    height, width, count = bands.shape
    profile = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=where, nodata=0) as dataset:
        dataset.write(np.moveaxis(bands, -1, 0))
    return path


def scenes(folder: Path, hole: bool = False) -> tuple[Path, Path]:
    """Optical at 0.5 m in UTM, 150 x 130 px; SAR at about 0.9 m in longitude and latitude, covering more.

    In the SAR scene the square of 500,020 to 500,040 east and 5,399,960 to 5,399,980 north is bright, its
    walls blurred over a metre.
    """
    pre = np.maximum(picture(0, (130, 150)), 1)
    if hole:
        pre[:20, :30] = 0
    xs, ys = transform(
        UTM, LONLAT, [499_990, 500_090, 499_990, 500_090], [5_400_010, 5_400_010, 5_399_920, 5_399_920]
    )
    across, down = 1.2e-5, 0.8e-5
    where = Affine(across, 0, min(xs), 0, -down, max(ys))
    width, height = int((max(xs) - min(xs)) / across), int((max(ys) - min(ys)) / down)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    lon, lat = min(xs) + columns * across, max(ys) - rows * down
    east, north = transform(LONLAT, UTM, lon.ravel().tolist(), lat.ravel().tolist())
    east, north = (np.array(each).reshape(height, width) for each in (east, north))
    walls = (east - 500_020, 500_040 - east, north - 5_399_960, 5_399_980 - north)
    share = np.prod([1 / (1 + np.exp(-np.clip(each, -30, 30))) for each in walls], axis=0)
    post = (10 + 240 * share).astype(np.uint8)[..., None]
    return write_scene(folder / "pre.tif", pre, UTM, HERE), write_scene(
        folder / "post.tif", post, LONLAT, where
    )


class BrightMeansDestroyed(DamageModel):
    """A model whose answer is known: class 3 where the second date is bright."""

    center: float
    spread: float

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    @property
    def answers(self) -> tuple[str, ...]:
        return ("both",)

    def forward(self, pre: Tensor | None, post: Tensor | None) -> DamageOutput:
        assert pre is not None and post is not None and pre.shape[-2:] == post.shape[-2:]
        bright = post[:, 0] * self.spread + self.center - 0.51
        none = torch.zeros_like(bright)
        damage = torch.stack([-20 * bright, none - 30, none - 30, 20 * bright], dim=1)
        return DamageOutput(localisation=torch.stack([-bright, bright], dim=1), damage=damage)


@pytest.fixture
def known(script: ModuleType, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``infer`` with a model whose answer is known."""
    monkeypatch.setattr(script, "load_model", lambda _: known_model(trained))


def known_model(trained: Path) -> tuple[DamageModel, Any]:
    from damage_file import load_model

    description = load_model(trained)[1]
    model = BrightMeansDestroyed()
    model.center, model.spread = description.post["mean"][0], description.post["std"][0]
    return model, description


MEASURE = """
import resource, sys
from pathlib import Path
root, folder = sys.argv[1], Path(sys.argv[2])
sys.path[:0] = [root + "/bright", root + "/tests", root]
import torch
from data_makers import load_script
torch.set_num_threads(1)
maps, script = load_script("tests/bright/test_maps.py"), load_script("bright/main.py")
script.load_model = lambda _: maps.known_model(folder / "trained")
for side in (1024, 2048):
    maps.map_in_tiles(script, folder, side)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def map_in_tiles(script: ModuleType, folder: Path, side: int) -> None:
    paths = []
    for name, count in (("pre", 3), ("post", 1)):
        paths.append(folder / f"{name}{side}.tif")
        profile = {"driver": "GTiff", "height": side, "width": side, "count": count, "dtype": "uint8"}
        with rasterio.open(paths[-1], "w", **profile, crs=UTM, transform=HERE, tiled=True) as dataset:
            for row in range(0, side, 256):
                strip = np.full((count, 256, side), 20, np.uint8)
                strip[:, 40:60, 60:80] = 250
                dataset.write(strip, window=rasterio.windows.Window(0, row, side, 256))
    more = [f"--infer.pre={paths[0]}", f"--infer.post={paths[1]}", "--device=cpu"]
    tiling = ["--tiling.window=256", "--tiling.overlap=32", "--tiling.panel=512"]
    assert script.main(["infer", *more, *tiling, f"--output_dir={folder / str(side)}"]) == 0
    found = json.loads((folder / str(side) / "buildings.geojson").read_text())["features"]
    assert [feature["properties"]["pixels"] for feature in found] == [400] * (side // 256)


def test_memory_does_not_grow_with_the_scenes(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "trained").symlink_to(trained)
    small, large = peaks_of(MEASURE, tmp_path)
    # All logits of the larger scene would be 96 MiB more.
    assert large - small < 48 * 1024


@pytest.mark.usefixtures("known")
def test_a_map_of_scenes_of_other_systems_and_resolutions_is_aligned_to_half_a_pixel(
    script: ModuleType, tmp_path: Path
) -> None:
    pre, post = scenes(tmp_path)
    more = [f"--infer.pre={pre}", f"--infer.post={post}", f"--output_dir={tmp_path / 'out'}"]
    tiling = ["--tiling.window=64", "--tiling.overlap=16", "--tiling.panel=64", "--device=cpu"]
    assert script.main(["infer", *more, *tiling]) == 0

    with rasterio.open(tmp_path / "out" / "damage.tif") as written:
        assert (written.crs, written.transform, written.shape, written.nodata) == (UTM, HERE, (130, 150), 255)
        classes = written.read(1)
        assert written.colormap(1)[3] == (182, 70, 69, 255)
    expected = np.zeros((130, 150), np.uint8)
    expected[40:80, 40:80] = 3
    assert set(np.unique(classes)) == {0, 3}
    rows, columns = np.nonzero(classes)
    assert abs(rows.mean() - 59.5) < 0.5 and abs(columns.mean() - 59.5) < 0.5
    inner = np.zeros_like(expected)
    inner[44:76, 44:76] = 3
    outer = expected.copy()
    outer[39:81, 39:81] = 3
    # Blurred walls round the corners; nothing may be off by more than a pixel, and little elsewhere.
    assert (classes >= inner).all() and (classes <= outer).all()
    straight = np.zeros(classes.shape, bool)
    straight[44:76], straight[:, 44:76] = True, True
    assert ((classes != expected) & straight).sum() < 10

    found = json.loads((tmp_path / "out" / "buildings.geojson").read_text())
    assert found["crs"]["properties"]["name"].endswith("32633") and len(found["features"]) == 1
    facts = found["features"][0]["properties"]
    assert facts["class"] == "destroyed" and facts["confidence"] > 0.9
    assert facts["pixels"] == (classes == 3).sum() and facts["area"] == facts["pixels"] * 0.25
    outline = np.array(found["features"][0]["geometry"]["coordinates"][0])
    np.testing.assert_allclose(outline.mean(0), [500_030, 5_399_970], atol=5)
    np.testing.assert_allclose(outline.min(0), [500_020, 5_399_960], atol=1)


@pytest.mark.parametrize("told_by", ["value", "alpha"])
def test_where_a_date_has_no_data_the_map_has_none(
    script: ModuleType, trained: Path, tmp_path: Path, told_by: str
) -> None:
    pre, post = scenes(tmp_path, hole=told_by == "value")
    if told_by == "alpha":
        with rasterio.open(pre) as opaque:
            colours, profile = opaque.read(), opaque.profile
        profile.update(count=4, nodata=None, photometric="RGB", alpha="YES")
        alpha = np.full(colours.shape[1:], 255, np.uint8)
        alpha[:20, :30] = 0
        with rasterio.open(pre, "w", **profile) as dataset:
            dataset.write(np.concatenate([colours, alpha[None]]))
    more = [f"--infer.pre={pre}", f"--infer.post={post}", f"--output_dir={tmp_path / 'out'}"]
    tiling = ["--tiling.window=64", "--tiling.overlap=16", "--tiling.panel=64", "--device=cpu"]
    assert script.main(["infer", f"--trained={trained}", *more, *tiling]) == 0
    with rasterio.open(tmp_path / "out" / "damage.tif") as written:
        classes = written.read(1)
    with rasterio.open(tmp_path / "out" / "probabilities.tif") as written:
        shares = written.read()
        assert written.descriptions == ("background", "intact", "damaged", "destroyed")
    assert (classes[:20, :30] == 255).all() and (shares[:, :20, :30] == 255).all()
    assert (classes[20:] < 4).all()
    assert np.abs(shares[:, 20:].astype(int).sum(0) - 250).max() <= 2
    shown = np.take_along_axis(shares, np.minimum(classes, 3)[None], 0)[0, 20:]
    assert (shown == shares[:, 20:].max(0)).all()


@pytest.mark.parametrize("date", ["pre", "post"])
def test_one_scene_alone_gives_buildings(
    script: ModuleType, trained: Path, tmp_path: Path, date: str
) -> None:
    path = dict(zip(("pre", "post"), scenes(tmp_path), strict=True))[date]
    more = [
        f"--infer.{date}={path}",
        f"--trained={trained}",
        f"--output_dir={tmp_path / 'out'}",
        "--device=cpu",
    ]
    assert (
        script.main(["infer", *more, "--tiling.window=64", "--tiling.overlap=16", "--tiling.panel=64"]) == 0
    )
    with rasterio.open(path) as scene, rasterio.open(tmp_path / "out" / "damage.tif") as written:
        assert (written.crs, written.transform, written.shape) == (scene.crs, scene.transform, scene.shape)
        assert set(np.unique(written.read(1))) <= {0, 1}
    for feature in json.loads((tmp_path / "out" / "buildings.geojson").read_text())["features"]:
        assert feature["properties"]["class"] == "building"


def test_scenes_that_do_not_go_together_are_refused(
    script: ModuleType, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pre, post = scenes(tmp_path)
    with rasterio.open(
        tmp_path / "lost.tif", "w", driver="GTiff", height=9, width=9, count=1, dtype="uint8"
    ) as lost:
        lost.write(np.ones((1, 9, 9), np.uint8))
    run = [f"--trained={trained}", f"--output_dir={tmp_path / 'out'}", "--device=cpu"]
    assert script.main(["infer", *run]) == 2 and "--infer.pre" in capsys.readouterr().err
    lost_words = [f"--infer.pre={pre}", f"--infer.post={tmp_path / 'lost.tif'}"]
    assert script.main(["infer", *run, *lost_words]) == 2 and "coordinate system" in capsys.readouterr().err
    swapped = [f"--infer.pre={tmp_path / 'nowhere.tif'}", f"--infer.post={post}"]
    assert script.main(["infer", *run, *swapped]) == 2 and "no scene at" in capsys.readouterr().err
