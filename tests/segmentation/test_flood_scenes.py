from pathlib import Path

import numpy as np
import pytest
from data_makers import load_script, picture, save

from codemae.data.index import open_index

flood_scenes = load_script("segmentation/flood_scenes.py")


def make(root: Path) -> Path:
    for seed, name in enumerate(("a", "b", "c")):
        save(root / f"opt/{name}_after.png", picture(seed, 32))
        save(root / f"sar/{name}_after.png", picture(seed + 9, 32, 1))
        save(root / f"mask/{name}.png", np.full((32, 32), 255 * (seed % 2), np.uint8))
    (root / "scenes.csv").write_text("scene,split\na,train\nb,train\nc,val\n")
    return root


def test_index_has_masks_splits_and_statistics_of_training_scenes(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    assert flood_scenes.main(["--root", str(root), "--out", str(tmp_path / "index")]) == 0
    index = open_index(tmp_path / "index")
    assert index.classes == ("dry", "flood")
    assert [index.cell(row, "split") for row in range(3)] == ["train", "train", "val"]
    assert [index.cell(row, "mask") for row in range(3)] == ["mask/a.png", "mask/b.png", "mask/c.png"]
    wanted = np.stack([picture(seed + 9, 32, 1) for seed in (0, 1)]) / 255
    assert index.stats("OMBRIA", "sar").mean[0] == pytest.approx(wanted.mean(), abs=1e-5)


def test_missing_files_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "data")
    (root / "sar/b_after.png").unlink()
    assert flood_scenes.main(["--root", str(root), "--out", str(tmp_path / "index")]) == 2
    assert "b_after.png" in capsys.readouterr().err
