import io
import json
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from data_makers import load_script
from PIL import Image

from codemae.evaluation.card import Card

conftest = load_script("tests/bright/conftest.py")
words, LISTS = conftest.words, conftest.LISTS
from damage_submission import check_submission  # noqa: E402

TILES = {f"{name}_building_damage.png": (64, 64) for name in LISTS["test"]}


def test_the_archive_is_flat_and_holds_the_raw_classes_of_every_test_tile(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path, root: Path
) -> None:
    assert script.main(["submit", *words(index, tmp_path, f"--trained={trained}", "--split=test")]) == 0
    path = tmp_path / "submission.zip"
    assert check_submission(path, TILES) == []
    hits = pixels = 0
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted(TILES)
        for name in TILES:
            guess = np.asarray(Image.open(io.BytesIO(archive.read(name))))
            truth = np.asarray(Image.open(root / "target" / name.replace(".png", ".tif")))
            hits, pixels = hits + (guess == truth).sum(), pixels + truth.size
    accuracy = Card.load(trained / "test").metrics["overall_accuracy"]
    assert accuracy == pytest.approx([100 * hits / pixels])


def test_pictures_show_three_tiles_and_the_curves(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path
) -> None:
    assert script.main(["pictures", *words(index, tmp_path, f"--trained={trained}")]) == 0
    for name in ("scenes.png", "curves.png"):
        with Image.open(tmp_path / name) as drawn:
            colours = drawn.convert("RGB").getcolors(1 << 20)
        assert colours is not None and len(colours) > 10
    with Image.open(tmp_path / "scenes.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    assert (pixels == (182, 70, 69)).all(-1).sum() > 500  # destroyed houses of the labels


def test_pictures_can_leave_the_images_out(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path
) -> None:
    hidden = words(index, tmp_path, f"--trained={trained}", "--hide_images=true")
    assert script.main(["pictures", *hidden]) == 0
    with Image.open(tmp_path / "scenes.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB")).reshape(-1, 3)
    from damage_pictures import GROUND, UNLABELLED, VERDICTS, verdicts

    assert max((pixels == colour).all(-1).sum() for colour in VERDICTS.values()) > 500
    assert not (pixels == (182, 70, 69)).all(-1).any()
    mask, damage = np.array([[1, 2, 0, 0, 3]]), np.array([[1, 0, 2, 0, 1]])
    unlabelled = np.array([[False, False, False, False, True]])
    expected = [VERDICTS["right"], VERDICTS["missed"], VERDICTS["false alarm"], GROUND, UNLABELLED]
    np.testing.assert_array_equal(verdicts(mask, damage, unlabelled)[0], expected)


def test_the_running_mean_is_that_of_the_last_tenth(script: ModuleType) -> None:
    from damage_pictures import running_mean

    values = [float(value) for value in np.random.default_rng(0).normal(size=35)]
    expected = [np.mean(values[max(0, place - 2) : place + 1]) for place in range(35)]
    np.testing.assert_allclose(running_mean(values), expected)


def archive_of(path: Path, files: dict[str, np.ndarray], form: str = "PNG") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in files.items():
            content = io.BytesIO()
            Image.fromarray(values).save(content, format=form)
            archive.writestr(name, content.getvalue())
    return path


def test_what_a_leaderboard_would_refuse_is_found(tmp_path: Path) -> None:
    good = {name: np.zeros((64, 64), np.uint8) for name in TILES}
    first, second, third = TILES
    cases: list[tuple[dict[str, np.ndarray], str]] = [
        ({first: good[first], second: good[second]}, f"{third} is missing"),
        (good | {"more.png": good[first]}, "more.png is not a tile"),
        ({f"maps/{name}": values for name, values in good.items()}, "lies in a folder"),
        (good | {first: np.full((64, 64), 4, np.uint8)}, "holds 4"),
        (good | {first: np.zeros((64, 32), np.uint8)}, "64 x 32"),
        (good | {first: np.zeros((64, 64, 3), np.uint8)}, "mode RGB"),
    ]
    for place, (files, word) in enumerate(cases):
        problems = check_submission(archive_of(tmp_path / f"{place}.zip", files), TILES)
        assert any(word in problem for problem in problems), (word, problems)
    assert check_submission(archive_of(tmp_path / "good.zip", good), TILES) == []
    assert "PNG" in check_submission(archive_of(tmp_path / "t.zip", good, "TIFF"), TILES)[0]
    (tmp_path / "no.zip").write_text("hello")
    assert "no zip archive" in check_submission(tmp_path / "no.zip", TILES)[0]


def test_curves_start_at_the_undisturbed_figure_and_are_drawn(
    script: ModuleType, index: Path, trained: Path, tmp_path: Path
) -> None:
    more = (f"--trained={trained}", "--robustness.shifts=0,8", "--robustness.looks=1,16")
    assert script.main(["robustness", *words(index, tmp_path, *more)]) == 0
    curves = json.loads((tmp_path / "robustness.json").read_text())
    assert (
        curves["split"] == "val"
        and set(curves["shifts"]) == {"0", "8"}
        and set(curves["looks"]) == {"1", "16"}
    )
    assert curves["shifts"]["0"] == curves["clean"]
    assert curves["clean"]["mean_iou"] == pytest.approx(Card.load(trained / "val").values[0], abs=1e-3)
    # The first date is left as it is, and with it what it tells of buildings.
    for figures in (*curves["shifts"].values(), *curves["looks"].values(), curves["missing"]["pre alone"]):
        assert figures["localisation_f1"] == curves["clean"]["localisation_f1"]
    assert set(curves["missing"]) == {"pre alone", "post alone"}
    table = (tmp_path / "robustness.md").read_text().splitlines()
    loss = curves["missing"]["post alone"]["localisation_f1"] - curves["clean"]["localisation_f1"]
    assert table[-1].startswith("| post alone |") and f"({loss:+.2f})" in table[-1]
    with Image.open(tmp_path / "robustness.png") as drawn:
        assert drawn.width > 600
