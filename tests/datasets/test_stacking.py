import json

import numpy as np
import prepare
import pytest
import rasterio
import yaml
from data_makers import save_geotiff
from recipes import card as card_module
from recipes.card import read_card
from recipes.plan import PrepareError
from recipes.stacking import Bands, StackError, write_stack
from recipes.template import Template

from codemae.data.images import read_picture
from codemae.data.index import open_index

BANDS = {"B02": 12, "B05": 6, "B01": 2}
STACK = {
    "optical": {"bands": [f"S2/{{key}}/{{key}}_{band}.tif" for band in BANDS], "names": [*BANDS], "side": 12},
    "sar": {"bands": [f"S1/{{key}}_{band}.tif" for band in ("VV", "VH")], "names": ["VV", "VH"], "side": 12},
}
PLAIN = {
    "title": "T", "use": ["benchmark"], "task": "multilabel", "modalities": ["optical", "sar"],
    "resolution": "1 m", "samples": "2", "citation": "A", "homepage": "H", "get": "Ask them.",
    "layout": "verified", "layout_source": "L", "classes": ["sea", "wood"],
}  # fmt: skip
RECIPE = {
    "source": "S", "stack": STACK, "split": {"all": "train"},
    "label": {"json": "S2/{key}/{key}.json", "map": {"forest": "wood"}},
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A copy in the layout of BigEarthNet: a folder a patch, a file a band."""
    for number, key in enumerate(("p_0_1", "p_7_3")):
        rng = np.random.default_rng(number)
        for band, side in BANDS.items():
            pixels = rng.integers(1, 9000, (side, side, 1), dtype=np.uint16)
            save_geotiff(tmp_path / f"r/S2/{key}/{key}_{band}.tif", pixels)
        for band in ("VV", "VH"):
            pixels = rng.normal(-12, 3, (12, 12, 1)).astype(np.float32)
            save_geotiff(tmp_path / f"r/S1/{key}_{band}.tif", pixels)
        labels = json.dumps({"labels": ["forest", "sea"][: number + 1]})
        (tmp_path / f"r/S2/{key}/{key}.json").write_text(labels)
    return tmp_path / "r"


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    cards = tmp_path / "cards"
    cards.mkdir()
    monkeypatch.setattr(card_module, "FOLDER", cards)
    monkeypatch.setattr(card_module.read_card, "__defaults__", (cards,))

    def run(recipe, *words, workers=1):
        (cards / "made.yaml").write_text(yaml.safe_dump(PLAIN | {"recipe": recipe}))
        fixed = ("made", "--root", tmp_path / "r", "--out", tmp_path / "out", "--workers", workers)
        return prepare.main([*map(str, fixed), *map(str, words)])

    return run


def band(root, key, name):
    with rasterio.open(root / f"S2/{key}/{key}_{name}.tif") as opened:
        return opened.read(1)


def bilinear(plane, side):
    """Half-pixel centres, edges repeated, by two loops."""
    height = len(plane)
    found = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            y, x = ((place + 0.5) * height / side - 0.5 for place in (row, column))
            y, x = (min(max(place, 0), height - 1) for place in (y, x))
            top, left = int(y), int(x)
            low, right = min(top + 1, height - 1), min(left + 1, height - 1)
            a, b = y - top, x - left
            upper = plane[top, left] * (1 - b) + plane[top, right] * b
            lower = plane[low, left] * (1 - b) + plane[low, right] * b
            found[row, column] = upper * (1 - a) + lower * a
    return found


def test_bands_of_three_sizes_become_one_image(tmp_path, root, prepared):
    assert prepared(RECIPE) == 0
    index = open_index(tmp_path / "out")
    assert [index.cell(row, "group") for row in range(2)] == ["p_0_1", "p_7_3"]
    assert [list(index.cell(row, "label")) for row in range(2)] == [[1], [0, 1]]
    assert index.location(0, "optical").path.startswith(str(tmp_path / "out/images"))
    for row, key in enumerate(("p_0_1", "p_7_3")):
        pixels = read_picture(index.location(row, "optical"))
        assert pixels.shape == (12, 12, 3) and pixels.dtype == np.uint16
        np.testing.assert_array_equal(pixels[..., 0], band(root, key, "B02"))
        for place, name in enumerate(("B05", "B01"), 1):
            wanted = bilinear(band(root, key, name).astype(float), 12)
            assert np.abs(pixels[..., place] - wanted).max() <= 0.51, name
        radar = read_picture(index.location(row, "sar"))
        assert radar.shape == (12, 12, 2) and radar.dtype == np.float32
    found = index.stats("S", "optical")
    assert found.bands == ("B02", "B05", "B01") and found.images == 2
    assert index.stats("S", "sar").bands == ("VV", "VH")


def test_bands_are_chosen_by_name(tmp_path, root, prepared):
    assert prepared(RECIPE | {"select": {"optical": ["B05", "B02"]}}) == 0
    found = open_index(tmp_path / "out").stats("S", "optical")
    assert (found.bands, found.select) == (("B05", "B02"), (1, 0))


def test_a_second_run_writes_only_what_is_missing_or_older(tmp_path, root, prepared):
    assert prepared(RECIPE, workers=2) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").rglob("*.tif")}
    assert len(files) == 4
    gone, changed = sorted(files)[:2]
    gone.unlink()
    key = changed.stem
    save_geotiff(root / f"S2/{key}/{key}_B02.tif", np.full((12, 12, 1), 7, np.uint16))
    before = open_index(tmp_path / "out").hash()
    assert prepared(RECIPE) == 0
    for path, node in files.items():
        assert (path.stat().st_mtime_ns != node) == (path in (gone, changed)), path
    with rasterio.open(changed) as opened:
        assert (opened.read(1) == 7).all() and opened.descriptions == tuple(BANDS)
    assert open_index(tmp_path / "out").hash() == before
    other = {**RECIPE, "stack": {**STACK, "optical": {**STACK["optical"], "side": 6}}}
    assert prepared({**other, "label": None, "stack": {"optical": other["stack"]["optical"]}}) == 0
    assert read_picture(open_index(tmp_path / "out").location(0, "optical")).shape == (6, 6, 3)


def test_a_missing_or_damaged_band_is_left_out_and_named(tmp_path, root, prepared, capsys):
    (root / "S2/p_7_3/p_7_3_B05.tif").unlink()
    assert prepared(RECIPE) == 0
    (entry,) = json.loads((tmp_path / "out/report.json").read_text())["left_out"]
    assert entry["sample"] == "p_7_3" and "p_7_3_B05.tif: no such file" in entry["reason"]
    (root / "S2/p_0_1/p_0_1_B01.tif").write_bytes(b"II*\0 nothing")
    assert prepared(RECIPE) == 2
    assert "no sample is left to index" in capsys.readouterr().err
    assert not list((tmp_path / "out/images").rglob(".writing-*"))


def test_a_side_that_is_not_stacked_keeps_its_files(tmp_path, root, prepared):
    recipe = {
        "source": "S", "split": {"all": "train"}, "sar": "S1/{key}_VV.tif",
        "stack": {"optical": STACK["optical"]}, "scaling": {"sar": "linear:-25:0"},
    }  # fmt: skip
    (tmp_path / "exclude.txt").write_text("p_7_3\n")
    assert prepared(recipe, "--exclude", tmp_path / "exclude.txt") == 0
    index = open_index(tmp_path / "out")
    assert len(index) == 1 and index.cell(0, "sar") == "r/S1/p_0_1_VV.tif"
    assert index.location(0, "sar").path == str(root / "S1/p_0_1_VV.tif")
    assert index.cell(0, "optical").startswith("out/images/optical-")
    assert len(list((tmp_path / "out/images").rglob("*.tif"))) == 1


def test_nodata_becomes_nan_and_mixtures_float(tmp_path):
    pixels = np.arange(1, 17, dtype=np.uint16).reshape(4, 4, 1)
    pixels[0] = 0
    save_geotiff(tmp_path / "a.tif", pixels, nodata=0)
    save_geotiff(tmp_path / "b.tif", np.full((4, 4, 1), 9, np.uint8))
    rule = Bands(("a", "b"), ("a", "b"), 4)
    write_stack([str(tmp_path / "a.tif"), str(tmp_path / "b.tif")], rule, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as opened:
        assert opened.dtypes == ("float32", "float32")
        first = opened.read(1)
    assert np.isnan(first[0]).all() and (first[1:] == pixels[1:, :, 0]).all()
    save_geotiff(tmp_path / "b.tif", np.full((4, 3, 1), 9, np.uint8))
    with pytest.raises(StackError, match="1 of 4 x 3"):
        write_stack([str(tmp_path / "b.tif")], rule, tmp_path / "out.tif")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ["B02", "B05"]}, "3 bands, which need as many different names"),
        ({"names": ["B02", "B05", "B02"]}, "different names"),
        ({"side": 0}, "at least 1 pixel"),
        ({"side": "wide"}, "side is a int"),
        ({"bands": ["a/{key}.tif", "b/{other}.tif", "c/{key}.tif"]}, "has the field other"),
        ({"bandz": []}, "unknown key bandz"),
        ({"bands": ["a/{key.tif", "b", "c"]}, "not closed"),
    ],
)
def test_a_stack_that_contradicts_itself_is_refused(tmp_path, changes, words):
    stack = {"optical": STACK["optical"] | changes}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(PLAIN | {"recipe": {**RECIPE, "stack": stack}}))
    with pytest.raises(PrepareError, match=words):
        read_card("made", tmp_path)


def test_a_stack_beside_plain_images_of_the_same_side_is_refused(tmp_path):
    recipe = {**RECIPE, "optical": "a/{key}.tif"}
    (tmp_path / "made.yaml").write_text(yaml.safe_dump(PLAIN | {"recipe": recipe}))
    with pytest.raises(PrepareError, match="in the place of recipe.optical"):
        read_card("made", tmp_path)


def test_fields_of_a_path():
    template = Template("{season:ROIs[0-9]+_[a-z]+}/s1_{scene}/{season}_s1_{scene}_{key}.tif")
    path = "ROIs1_fall/s1_7/ROIs1_fall_s1_7_p30.TIF"
    assert template.match(path) == {"season": "ROIs1_fall", "scene": "7", "key": "p30"}
    with pytest.raises(ValueError, match="is not like the template"):
        template.match("ROIs1_fall/s1_7/ROIs1_fall_s1_8_p30.tif")
    assert Template("x/{all:.+/b}_{n}.png").match("x/a/c/b_2.png") == {"all": "a/c/b", "n": "2"}
