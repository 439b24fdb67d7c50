import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import prepare
import pytest
import yaml
from data_makers import (
    SHARED_DATA,
    make_classes,
    make_ospretrain,
    make_pairs,
    picture,
    save,
    save_geotiff,
)

from codemae.data.index import open_index
from codemae.data.views import View, Views

REPOSITORY = Path(prepare.__file__).resolve().parents[1]
needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")


def run(*words, workers=1):
    return prepare.main([*map(str, words), "--workers", str(workers)])


def pairs(root, out, *more):
    return run("pairs", "--optical", root / "opt", "--sar", root / "sar", "--out", out, *more)


def report(out):
    return json.loads((out / "report.json").read_text())


def test_pairs_are_matched_by_stem_and_measured(tmp_path):
    root = make_pairs(tmp_path / "city", ["a", "b", "sub/c"])
    (root / "opt" / "a.png").rename(root / "opt" / "a.PNG")
    assert pairs(root, tmp_path / "out") == 0
    index = open_index(tmp_path / "out", split="train")
    assert [index.cell(row, "optical") for row in range(3)] == ["opt/a.PNG", "opt/b.png", "opt/sub/c.png"]
    assert [index.cell(row, "group") for row in range(3)] == ["a", "b", "sub/c"]
    assert index.source(0) == "city"
    pixels = np.stack([picture(seed) for seed in range(3)]).reshape(-1, 3) / 255
    found = index.stats("city", "optical")
    # stats.yaml keeps six decimals.
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), atol=1e-6)
    assert (found.images, found.computed, str(found.scaling)) == (3, "measured", "uint8")
    assert index.stats("city", "sar").channels == 1


def test_everything_left_out_is_reported_with_its_reason(tmp_path):
    root = make_pairs(tmp_path / "r", [f"p{i}" for i in range(8)])
    (root / "sar" / "p0.png").unlink()
    (root / "opt" / "p1.png").unlink()
    save(root / "sar" / "p2.png", picture(0, (32, 31), 1))
    for name, keep in (("p3", 0), ("p4", 150)):
        file = root / "opt" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:keep])
    save(root / "sar" / "p5.jpg", picture(0, 32, 1))
    (root / "sar" / "p6.txt").write_text("not an image")
    assert pairs(root, tmp_path / "out") == 0
    left = {
        entry["sample"]: (entry["kind"], entry["reason"]) for entry in report(tmp_path / "out")["left_out"]
    }
    assert {name: kind for name, (kind, _) in left.items()} == {
        "p0": "missing partner",
        "p1": "missing partner",
        "p2": "different sizes",
        "p3": "unreadable",
        "p4": "unreadable",
        "p5": "ambiguous",
    }
    assert "optical is 32 x 32 but sar is 32 x 31" in left["p2"][1]
    assert "the file is empty" in left["p3"][1]
    assert report(tmp_path / "out")["rows"] == len(open_index(tmp_path / "out")) == 2
    pixels = np.stack([picture(seed) for seed in (6, 7)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(
        open_index(tmp_path / "out").stats("r", "optical").mean, pixels.mean(axis=0), atol=1e-6
    )


def test_strict_fails_and_leaves_the_previous_index(tmp_path, capsys):
    root = make_pairs(tmp_path / "r", ["a", "b", "c"])
    assert pairs(root, tmp_path / "out") == 0
    before = open_index(tmp_path / "out").hash()
    (root / "sar" / "b.png").write_bytes(b"")
    assert pairs(root, tmp_path / "out", "--strict") == 2
    error = capsys.readouterr().err
    assert "1 samples would be left out (--strict)" in error and "b: " in error
    assert open_index(tmp_path / "out").hash() == before
    assert report(tmp_path / "out")["rows"] == 3


def test_killed_prepare_leaves_the_previous_index(tmp_path):
    root = make_pairs(tmp_path / "r", ["a", "b"])
    assert pairs(root, tmp_path / "out") == 0
    before = (tmp_path / "out" / "index.parquet").read_bytes()
    make_pairs(root, ["a", "b", "c"])
    code = (
        "import os, prepare\n"
        "from codemae.data import index_file\n"
        "index_file.yaml.safe_dump = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        f"prepare.main(['pairs', '--optical', {str(root / 'opt')!r}, '--sar', {str(root / 'sar')!r}, "
        f"'--out', {str(tmp_path / 'out')!r}, '--workers', '1'])\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "datasets", capture_output=True)
    assert killed.returncode == -9
    assert (tmp_path / "out" / "index.parquet").read_bytes() == before
    assert len(open_index(tmp_path / "out")) == 2
    assert pairs(root, tmp_path / "out") == 0
    assert len(open_index(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("size", "tile", "stride", "windows"), [(64, 32, 32, 4), (64, 32, 16, 9), (70, 32, 32, 4)]
)
def test_tiles_are_windows_of_uncut_scenes(tmp_path, size, tile, stride, windows):
    root = make_pairs(tmp_path / "r", ["a", "b"], size)
    assert pairs(root, tmp_path / "out", "--tile", tile, "--stride", stride) == 0
    index = open_index(tmp_path / "out")
    assert len(index) == 2 * windows
    corners = {index.window(row) for row in range(windows)}
    expected = {
        (x, y, tile, tile)
        for y in range(0, size - tile + 1, stride)
        for x in range(0, size - tile + 1, stride)
    }
    assert corners == expected
    assert {index.cell(row, "group") for row in range(windows)} == {"a"}
    seen = np.zeros((size, size), bool)
    for x, y, w, h in corners:
        seen[y : y + h, x : x + w] = True
    assert report(tmp_path / "out")["pixels_outside_windows"] == 2 * int((~seen).sum())


def test_scenes_smaller_than_a_tile_are_reported(tmp_path, capsys):
    root = make_pairs(tmp_path / "r", ["a"], 64)
    make_pairs(root, ["b"], 24)
    save(root / "opt" / "b.png", np.full((24, 24, 3), 255, np.uint8))
    assert pairs(root, tmp_path / "out", "--tile", 32) == 0
    (entry,) = report(tmp_path / "out")["left_out"]
    assert (entry["sample"], entry["kind"]) == ("b", "smaller than a tile")
    expected = picture(0, 64).reshape(-1, 3).mean(axis=0) / 255
    np.testing.assert_allclose(open_index(tmp_path / "out").stats("r", "optical").mean, expected, atol=1e-6)
    assert pairs(root, tmp_path / "none", "--tile", 128) == 2
    assert "no sample is left to index. a: 64 x 64" in capsys.readouterr().err


def test_excluded_samples_and_windows(tmp_path):
    root = make_pairs(tmp_path / "r", ["a", "b"], 64)
    names = tmp_path / "exclude.txt"
    names.write_text("b  # clouds\na@32,0\nnobody\n\n")
    assert pairs(root, tmp_path / "out", "--tile", 32, "--exclude", names) == 0
    index = open_index(tmp_path / "out")
    assert [index.window(row)[:2] for row in range(len(index))] == [(0, 0), (0, 32), (32, 32)]
    assert report(tmp_path / "out")["excluded"] == 2
    assert report(tmp_path / "out")["exclude_names_that_match_nothing"] == ["nobody"]


def test_both_dates_of_a_scene_stay_in_one_split(tmp_path, capsys):
    stems = [f"{scene}_{date}" for scene in ("s1", "s2") for date in ("before", "after")]
    root = make_pairs(tmp_path / "r", stems)
    table = tmp_path / "scenes.csv"
    table.write_text("scene,split\ns1,train\ns2,val\n")
    regex = ("--group-regex", "^(.+)_(?:before|after)$", "--split-csv", table)
    assert pairs(root, tmp_path / "out", *regex) == 0
    index = open_index(tmp_path / "out")
    facts = {(index.cell(row, "group"), index.cell(row, "split")) for row in range(4)}
    assert facts == {("s1", "train"), ("s2", "val")}
    assert index.stats("r", "sar").images == 2
    table.write_text("scene,split\ns1,train\n")
    assert pairs(root, tmp_path / "out", *regex) == 0
    assert report(tmp_path / "out")["left_out_by_kind"] == {"no split": 2}
    assert pairs(root, tmp_path / "out", "--group-regex", "^x") == 2
    assert "does not match 's1_after'" in capsys.readouterr().err


def test_mistyped_folders_and_foreign_layouts_name_the_command(tmp_path, capsys):
    root = make_pairs(tmp_path / "r", ["a"])
    command = "python datasets/prepare.py"
    assert run("pairs", "--optical", root / "optical", "--sar", root / "sar", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"no folder {root}/optical" in error and "holds opt, sar" in error and f"{command} pairs" in error
    (tmp_path / "empty").mkdir()
    assert (
        run("pairs", "--optical", tmp_path / "empty", "--sar", root / "sar", "--out", tmp_path / "out") == 2
    )
    assert f"{command} pairs" in capsys.readouterr().err
    (root / "opt" / "a.png").rename(root / "opt" / "a_rgb.png")
    assert pairs(root, tmp_path / "out") == 2
    assert "no stem is in both folders" in capsys.readouterr().err
    assert run("folder", "--root", root / "opt", "--modality", "sar", "--out", tmp_path / "out") == 2
    assert f"{command} folder" in capsys.readouterr().err
    assert run("ospretrain", "--root", root, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "looked for ROOT/<source>/RGB" in error and f"{command} ospretrain" in error
    assert not (tmp_path / "out").exists()


def test_link_that_leaves_the_root_is_refused(tmp_path, capsys):
    root = make_pairs(tmp_path / "r", ["a", "b"])
    outside = save(tmp_path / "outside.png", picture(0))
    (root / "opt" / "b.png").unlink()
    (root / "opt" / "b.png").symlink_to(outside)
    assert pairs(root, tmp_path / "out") == 2
    assert "leads through a link" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_geotiff_pairs_of_float_sar_with_nodata(tmp_path):
    rng = np.random.default_rng(0)
    for stem in ("a", "b"):
        save_geotiff(tmp_path / "r/opt" / f"{stem}.tif", rng.integers(0, 4000, (48, 48, 4), dtype=np.uint16))
        power = rng.gamma(1, 0.1, (48, 48, 2)).astype(np.float32)
        power[:5] = -9999
        save_geotiff(tmp_path / "r/sar" / f"{stem}.tif", power, nodata=-9999)
    assert pairs(tmp_path / "r", tmp_path / "out", "--tile", "24") == 0
    plain = yaml.safe_load((tmp_path / "out" / "stats.yaml").read_text())["sources"]["r"]
    assert (plain["optical"]["channels"], plain["sar"]["channels"]) == (4, 2)
    assert plain["optical"]["scaling"].startswith("linear:") and plain["sar"]["scaling"].startswith("db:")
    from codemae.data.dataset import Draw, PairDataset

    views = Views({m: View(modality=m, size=12) for m in ("optical", "sar")})
    dataset = PairDataset(open_index(tmp_path / "out"), views, seed=0)
    batch = dataset.collate([dataset[Draw(0, 0, row, row, True)] for row in range(8)])
    normalised = batch.normalised("optical")
    assert normalised.shape == (8, 4, 12, 12)
    assert abs(float(normalised.mean())) < 0.2 and 0.4 < float(normalised.std()) < 1.2
    assert batch.nonfinite > 0


def test_uint8_geotiff_with_nodata_stays_on_the_scale_of_bytes(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 255, (16, 16, 3), dtype=np.uint8)
    pixels[:4] = 0
    save_geotiff(tmp_path / "r" / "c" / "a.tif", pixels, nodata=0)
    assert run("folder", "--root", tmp_path / "r", "--modality", "optical", "--out", tmp_path / "out") == 0
    found = open_index(tmp_path / "out").stats("r", "optical")
    assert (str(found.scaling), found.pixels) == ("uint8", "float32")
    np.testing.assert_allclose(found.mean, pixels[4:].reshape(-1, 3).mean(axis=0) / 255, atol=1e-6)


def test_several_workers_find_what_one_finds(tmp_path):
    root = make_pairs(tmp_path / "r", [f"{i:03d}" for i in range(70)], 8)
    (root / "sar" / "013.png").write_bytes(b"")
    words = ("pairs", "--optical", root / "opt", "--sar", root / "sar", "--out")
    assert run(*words, tmp_path / "one", workers=1) == 0
    assert run(*words, tmp_path / "two", workers=2) == 0
    one, two = open_index(tmp_path / "one"), open_index(tmp_path / "two")
    assert (one.hash(), one.statistics_hash()) == (two.hash(), two.statistics_hash())
    assert report(tmp_path / "one")["left_out"] == report(tmp_path / "two")["left_out"]


def test_folder_of_classes_with_split_folders(tmp_path):
    make_classes(tmp_path / "r" / "train", ["ship", "car"], 3, channels=1)
    make_classes(tmp_path / "r" / "test", ["ship", "car"], 2, channels=1)
    assert run("folder", "--root", tmp_path / "r", "--modality", "sar", "--out", tmp_path / "out") == 0
    train, test = (open_index(tmp_path / "out", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == ("car", "ship")
    names = [train.cell(row, "sar").split("/")[1] for row in train.rows]
    assert [train.classes[label] for label in train.labels()] == names
    assert train.stats("r", "sar").images == 6


def test_stratified_half_is_a_half_of_each_class_and_repeatable(tmp_path):
    make_classes(tmp_path / "r", ["a", "b", "c"], 10)

    def half(seed, out):
        words = ("--split-fraction", "0.5", "--split-seed", seed)
        assert (
            run("folder", "--root", tmp_path / "r", "--modality", "optical", "--out", tmp_path / out, *words)
            == 0
        )
        return open_index(tmp_path / out, split="train")

    first, again, other = half(0, "1"), half(0, "2"), half(1, "3")
    assert np.bincount(first.labels()).tolist() == [5, 5, 5]
    assert len(open_index(tmp_path / "1", split="test")) == 15
    assert first.hash() == again.hash() != other.hash()


def test_list_files_say_the_split(tmp_path, capsys):
    make_classes(tmp_path / "r", ["a b", "c"], 3)
    (tmp_path / "train.txt").write_text("a b/000.png 0\na b/001.png 0\nc/000.png 1\n")
    (tmp_path / "test.txt").write_text("a b/002.png 0\nc/001.png 1\nc/009.png 1\n")
    words = ("folder", "--root", tmp_path / "r", "--modality", "optical", "--out", tmp_path / "out")
    lists = ("--train-list", tmp_path / "train.txt", "--test-list", tmp_path / "test.txt")
    assert run(*words, *lists) == 0
    assert report(tmp_path / "out")["rows_by_split"] == {"test": 2, "train": 3}
    assert report(tmp_path / "out")["left_out_by_kind"] == {"missing": 1}
    assert open_index(tmp_path / "out").classes == ("a b", "c")
    (tmp_path / "test.txt").write_text("a b/000.png 0\n")
    assert run(*words, *lists) == 2
    assert "is in the train list and in the test list" in capsys.readouterr().err
    (tmp_path / "test.txt").write_text("c/001.png 0\n")
    assert run(*words, *lists) == 2
    assert "several class numbers" in capsys.readouterr().err
    (tmp_path / "test.txt").write_text("../x.png\n")
    assert run(*words, *lists) == 2
    assert "not a path inside" in capsys.readouterr().err


def test_splits_beside_classes_are_ambiguous(tmp_path, capsys):
    make_classes(tmp_path / "r" / "train", ["a"], 1)
    make_classes(tmp_path / "r", ["b"], 1)
    assert run("folder", "--root", tmp_path / "r", "--modality", "optical", "--out", tmp_path / "out") == 2
    assert "splits or classes?" in capsys.readouterr().err


def test_ospretrain_as_released(tmp_path):
    root = make_ospretrain(tmp_path / "r")
    (root / "QXSLAB_SARPORT" / "train.txt").write_text("a1\na2.png\nlost\n")
    save(root / "DDHR" / "RGB" / "spare.png", picture(0))
    assert run("ospretrain", "--root", root, "--out", tmp_path / "out") == 0
    index = open_index(tmp_path / "out")
    names = {split: [] for split in ("train", "test")}
    for row in index.paired_rows:
        names[index.cell(row, "split")].append(index.cell(row, "optical"))
    assert sorted(names["train"]) == [
        "DDHR/RGB/d1.png", "DDHR/RGB/d2.png",
        "QXSLAB_SARPORT/RGB/a1.png", "QXSLAB_SARPORT/RGB/a2.png", "QXSLAB_SARPORT/RGB/a3.png",
    ]  # fmt: skip
    assert sorted(names["test"]) == ["DDHR/RGB/d3.png", "DDHR/RGB/d4.png"]
    assert (len(index.optical_only_rows), len(index.sar_only_rows)) == (3, 3)
    assert {index.source(row) for row in index.sar_only_rows} == {"Unpaired"}
    facts = report(tmp_path / "out")
    assert facts["held back"] == ["PIE-RGB-SAR"]
    assert facts["images that no list names"] == {"DDHR": 1}
    assert facts["left_out_by_kind"] == {"missing partner": 1}
    published = index.stats("DDHR", "sar")
    assert (published.mean, published.std, published.computed) == ((0.2365,), (0.2034,), "published")
    assert index.stats("Unpaired", "optical").mean == (0.3865, 0.4117, 0.3632)
    assert index.stats("QXSLAB_SARPORT", "sar").channels == 1


def test_ospretrain_measured_and_of_unknown_sources(tmp_path, capsys):
    root = make_ospretrain(tmp_path / "r")
    (root / "DDHR").rename(root / "MyCity")
    assert run("ospretrain", "--root", root, "--out", tmp_path / "out") == 2
    assert "no published statistics for MyCity" in capsys.readouterr().err
    assert run("ospretrain", "--root", root, "--out", tmp_path / "out", "--stats", "measure") == 0
    index = open_index(tmp_path / "out")
    assert index.stats("MyCity", "optical").computed == "measured"
    assert index.stats("MyCity", "optical").images == 4


def test_published_statistics_do_not_hold_for_other_images(tmp_path, capsys):
    root = make_ospretrain(tmp_path / "r")
    save(root / "DDHR" / "SAR" / "d1.png", picture(77))
    assert run("ospretrain", "--root", root, "--out", tmp_path / "out") == 2
    assert "not those the published statistics belong to" in capsys.readouterr().err


def test_unknown_recipe_and_the_script_itself(tmp_path):
    root = make_pairs(tmp_path / "r", ["a", "b"])
    script = [sys.executable, "datasets/prepare.py"]
    done = subprocess.run([*script, "pears", "--out", "x"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "pairs" in done.stderr
    words = [
        "pairs",
        "--optical",
        root / "opt",
        "--sar",
        root / "sar",
        "--out",
        tmp_path / "out",
        "--workers",
        "1",
    ]
    done = subprocess.run([*script, *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 rows (2 paired)" in done.stdout and "read 2 of 2 samples" in done.stderr


@needs_shared_data
def test_real_scenes_give_672_tiles(tmp_path):
    assert pairs(SHARED_DATA / "volkov_s1s2", tmp_path / "out", "--tile", 256, "--stride", 256) == 0
    index = open_index(tmp_path / "out")
    assert len(index.paired_rows) == 672
    assert len({index.cell(row, "group") for row in range(672)}) == 42
    assert report(tmp_path / "out")["left_out"] == []


@needs_shared_data
def test_real_floods_give_480_pairs_of_240_scenes(tmp_path):
    root = SHARED_DATA / "ombria"
    words = ("--group-regex", "^(.+)_(?:before|after)$", "--split-csv", root / "scenes.csv")
    assert pairs(root, tmp_path / "out", *words) == 0
    index = open_index(tmp_path / "out")
    assert len(index.paired_rows) == 480
    assert len({index.cell(row, "group") for row in range(480)}) == 240
    assert report(tmp_path / "out")["rows_by_split"] == {"train": 384, "val": 96}


def test_scripts_folder_is_no_package():
    assert not os.path.exists(REPOSITORY / "datasets" / "__init__.py")
