"""The whole way of BRIGHT at the real tile size, 1,024 px: index, train, evaluate, map, submission."""

import json
from pathlib import Path
from types import ModuleType

import prepare
import pytest
import rasterio
from data_makers import load_script

from codemae.evaluation.card import Card

conftest = load_script("tests/bright/conftest.py")
SIDE = 1024
LISTS = {
    "train": ["bata-explosion_00000000", "bata-explosion_00000001"],
    "holdout": ["bata-explosion_00000002"],
    "val": ["turkey-earthquake_00000000"],
    "test": ["noto-earthquake_00000000"],
}
TILING = ("--tiling.window=512", "--tiling.overlap=64", "--tiling.panel=512", "--tiling.batch_size=1")


@pytest.mark.slow
def test_tiles_of_the_real_size_go_all_the_way(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "LISTS", LISTS)
    root = conftest.make_bright(tmp_path / "data", SIDE)
    index, run = tmp_path / "index", tmp_path / "run"
    assert prepare.main(["bright", "--root", str(root), "--out", str(index), "--workers", "1"]) in (0, None)

    steps = ("--optim.max_steps=2", "--evaluate_every=2", "--augmentation.crop=640", "--optim.batch_size=1")
    assert script.main(["train", *conftest.words(index, run, *steps, *TILING)]) == 0
    assert Card.load(run / "test").also["tiles"] == 1

    again = conftest.words(index, tmp_path / "again", f"--trained={run}", "--split=val", *TILING)
    assert script.main(["evaluate", *again]) == 0
    assert Card.load(tmp_path / "again" / "val") == Card.load(run / "val")

    name = LISTS["test"][0]
    truth = rasterio.open(root / f"target/{name}_building_damage.tif").read(1)
    scenes = [f"--infer.pre={root}/pre-event/{name}_pre_disaster.tif"]
    scenes += [f"--infer.post={root}/post-event/{name}_post_disaster.tif"]
    out = tmp_path / "map"
    given = [*scenes, *TILING, f"--trained={run}", f"--output_dir={out}", "--device=cpu"]
    assert script.main(["infer", *given]) == 0
    with rasterio.open(out / "damage.tif") as written:
        classes = written.read(1)
    assert classes.shape == (SIDE, SIDE) and classes.max() <= 3
    figures = Card.load(run / "test").metrics
    # One window lies where the other does, so the map of the tile is what the split was measured on.
    assert figures["overall_accuracy"] == pytest.approx([100 * (classes == truth).mean()], abs=0.05)
    json.loads((out / "buildings.geojson").read_text())

    submit = conftest.words(index, tmp_path / "submit", f"--trained={run}", "--split=test", *TILING)
    assert script.main(["submit", *submit]) == 0
    from damage_submission import check_submission

    expected = {f"{name}_building_damage.png": (SIDE, SIDE)}
    assert check_submission(tmp_path / "submit" / "submission.zip", expected) == []
