from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from data_makers import load_script, picture, save

from codemae.data.index import open_index
from codemae.data.masks import read_mask


@pytest.fixture
def script() -> ModuleType:
    return load_script("bright/flood_stand_in.py")


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    root = tmp_path / "floods"
    for seed, name in enumerate(("a_1", "a_2", "b_1")):
        for place, date in enumerate(("before", "after")):
            save(root / "opt" / f"{name}_{date}.png", picture(seed + 10 * place, 32))
            save(root / "sar" / f"{name}_{date}.png", picture(seed + 10 * place, 32, 1))
        save(root / "mask" / f"{name}.png", np.eye(32, dtype=np.uint8) * 255)
    (root / "scenes.csv").write_text("scene,split\na_1,train\na_2,train\nb_1,val\n")
    return root


def test_a_scene_is_a_row_with_both_dates_and_the_mask(
    script: ModuleType, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    assert script.main(["--root", str(scenes), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip().endswith("2 train, 1 val")
    index = open_index(out)
    row = [index.cell(1, name) for name in ("split", "optical", "post", "mask", "sar")]
    assert row == ["train", "opt/a_2_before.png", "sar/a_2_after.png", "mask/a_2.png", None]
    assert read_mask(index.location(1, "mask")).sum() == 32 * 255
    for modality, folder, date in (("optical", "opt", "before"), ("sar", "sar", "after")):
        channels = 1 if folder == "sar" else 3
        shown = [picture(seed + (10 if date == "after" else 0), 32, channels) for seed in (0, 1)]
        expected = np.stack(shown).reshape(-1, channels).mean(0) / 255
        np.testing.assert_allclose(index.stats("OMBRIA", modality).mean, expected, atol=1e-5)


def test_the_second_date_may_be_optical_too(script: ModuleType, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    assert script.main(["--root", str(scenes), "--out", str(out), "--after", "optical"]) == 0
    index = open_index(out)
    assert index.cell(2, "post") == "opt/b_1_after.png" and index.cell(2, "split") == "val"
    assert index.stats("OMBRIA", "optical").images == 4  # both dates of the two training scenes


def test_scenes_are_named_by_what_clouds_hide(script: ModuleType, scenes: Path, tmp_path: Path) -> None:
    before, hidden = np.full((32, 32, 3), 40, np.uint8), np.full((32, 32, 3), 40, np.uint8)
    hidden[:4] = 200  # an eighth of the scene
    save(scenes / "opt/a_1_before.png", before)
    save(scenes / "opt/a_1_after.png", hidden)
    save(scenes / "opt/a_2_before.png", hidden)  # bright ground in both
    save(scenes / "opt/a_2_after.png", hidden)
    hidden[2:4] = (250, 250, 40)  # bright but no cloud
    save(scenes / "opt/b_1_before.png", before)
    save(scenes / "opt/b_1_after.png", hidden)
    assert script.main(["--root", str(scenes), "--out", str(tmp_path / "index")]) == 0
    index = open_index(tmp_path / "index")
    assert [index.cell(row, "group") for row in range(3)] == ["clouded_a_1", "clear_a_2", "clear_b_1"]


@pytest.mark.parametrize("missing", ["scenes.csv", "sar/a_2_after.png"])
def test_an_incomplete_folder_is_refused(
    script: ModuleType, scenes: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (scenes / missing).unlink()
    assert script.main(["--root", str(scenes), "--out", str(tmp_path / "index")]) == 2
    assert Path(missing).name in capsys.readouterr().err
