import html.parser
import io
import shutil

import numpy as np
import pair_doctor
import prepare
import pyarrow.parquet as pq
import pytest
from data_makers import save
from PIL import Image

from codemae.analysis.displacement import displacement
from codemae.analysis.registration import CONFIDENT
from codemae.data.images import ImageError
from codemae.data.index import open_index
from codemae.data.synthetic import SynthesisOptions, synthesise


def pair(seed, size=96, shift=(0.0, 0.0)):
    options = SynthesisOptions(cloud_fraction=0.0, nuisance=0.5, looks=(6, 8), misregistration=shift)
    made = synthesise(seed, size, options)
    return made.optical, made.sar


def index_of(folder, pairs, *more):
    for name, (optical, sar) in pairs.items():
        save(folder / "opt" / f"{name}.png", optical)
        save(folder / "sar" / f"{name}.png", sar)
    return again(folder, folder / "index", *more)


def again(folder, out, *more):
    words = ["pairs", "--optical", folder / "opt", "--sar", folder / "sar", "--out", out, "--workers", 1]
    assert prepare.main([str(word) for word in [*words, *more]]) == 0
    return out


def run(*words):
    return pair_doctor.main([*map(str, words), "--workers", "1"])


def rows_of(out):
    return {row["key"]: row for row in pq.read_table(out / "pairs.parquet").to_pylist()}


def reencoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer))


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """An index with one pair of each illness, and what the doctor wrote about it."""
    folder = tmp_path_factory.mktemp("sick")
    pairs = {f"good{seed}": pair(seed) for seed in range(1, 5)}
    pairs["moved"] = pair(20, shift=(7.0, -6.0))
    pairs["strange"] = pair(21)[0], pair(22)[1]
    pairs["dark"] = pair(23)[0], np.zeros((96, 96), np.uint8)
    pairs["glaring"] = pair(24)[0], np.where(np.arange(96) < 40, 255, pair(24)[1]).astype(np.uint8)
    cloudy = pair(25)[0].copy()
    cloudy[:, :50] = 220
    pairs["white"] = cloudy, pair(25)[1]
    pairs["twin"] = tuple(reencoded(side) for side in pairs["good1"])
    index = index_of(folder / "pretraining", pairs)
    assert run(index, "--out", folder / "found") == 0
    return folder, index


def test_every_illness_is_flagged_and_healthy_pairs_are_not(sick):
    folder, _ = sick
    flags = {key.split("/")[1][:-4]: set(row["flags"]) for key, row in rows_of(folder / "found").items()}
    assert all(flags[f"good{seed}"] == set() for seed in range(1, 5))
    assert flags["moved"] == {"shifted"}
    assert flags["strange"] == {"unrelated"}
    assert flags["dark"] == {"empty"}
    assert "saturated" in flags["glaring"]
    assert "clouded" in flags["white"]
    assert flags["twin"] == {"duplicate"}


def test_offsets_and_similarity_are_in_the_table(sick):
    folder, _ = sick
    rows = rows_of(folder / "found")
    moved = rows["opt/moved.png"]
    assert (moved["offset_y"], moved["offset_x"]) == pytest.approx((7, -6), abs=2)
    assert rows["opt/dark.png"]["offset_x"] is None
    # 96 pixels hold the 11 pixels of the window at 1/8 of the resolution, and similarity is a real number.
    assert all(-1 < rows["opt/good1.png"][f"similarity_{scale}"] < 1 for scale in (1, 2, 4, 8))


def test_prepare_leaves_out_what_the_doctor_names(sick):
    folder, index = sick
    left = again(folder / "pretraining", folder / "clean", "--exclude", folder / "found" / "exclude.txt")
    kept = open_index(left)
    flagged = {key for key, row in rows_of(folder / "found").items() if row["flags"]}
    everything = {open_index(index).cell(row, "optical") for row in range(10)}
    assert {kept.cell(row, "optical") for row in range(len(kept))} == everything - flagged
    assert flagged


def test_offset_that_a_scene_shares_is_reported(tmp_path, capsys):
    pairs = {"still": pair(31, 256), "moved": pair(32, 256, shift=(0.0, 9.0))}
    index = index_of(tmp_path / "scenes", pairs, "--tile", 128)
    assert run(index, "--out", tmp_path / "found") == 0
    rows = rows_of(tmp_path / "found")
    groups = [row["group"] for row in rows.values()]
    assert [len(set(groups)), len(groups)] == [2, 8]
    offsets = np.array([[row["offset_x"], row["offset_y"]] for row in rows.values()])
    sure = np.array([row["confidence"] >= CONFIDENT for row in rows.values()])
    expected = displacement(offsets[sure], [group for group, good in zip(groups, sure, strict=True) if good])
    assert expected.aligned_scene > expected.aligned
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  scenes: "))
    assert f"{expected.aligned:.0%} of {sum(sure)} sure offsets within 2 px" in line
    assert f"{expected.aligned_scene:.0%} without each scene's own" in line
    page = (tmp_path / "found" / "report.html").read_text()
    assert "What the offsets have in common" in page
    assert f"{expected.right:+.1f}, {expected.below:+.1f}" in page


def test_report_is_one_file_with_pictures(sick):
    folder, _ = sick
    sources = []

    class Sources(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            sources.extend(value for name, value in attrs if name in ("src", "href"))
            assert tag != "script"

    page = (folder / "found" / "report.html").read_text()
    Sources().feed(page)
    pictures = [source for source in sources if source.startswith("data:image/png")]
    assert len(pictures) == 3 * 6
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "opt/strange.png" in page
    assert '<td class="words">a side cannot be decoded</td>' in page


def test_windows_are_excluded_one_by_one(tmp_path):
    optical, sar = pair(3, 128)
    sar = sar.copy()
    sar[64:, :64] = 0
    index = index_of(tmp_path / "scenes", {"deep/a": (optical, sar)}, "--tile", 64)
    assert run(index, "--out", tmp_path / "found", "--exclude-flags", "empty") == 0
    assert (tmp_path / "found" / "exclude.txt").read_text() == "opt/deep/a.png@0,64 # empty\n"
    options = ("--tile", 64, "--exclude", tmp_path / "found" / "exclude.txt")
    left = open_index(again(tmp_path / "scenes", tmp_path / "clean", *options))
    assert [left.window(row)[:2] for row in range(len(left))] == [(0, 0), (64, 0), (64, 64)]


def test_images_of_a_benchmark_are_found_in_the_pretraining_index(tmp_path):
    pairs = {f"p{seed}": pair(seed, 64) for seed in range(4)}
    pretraining = index_of(tmp_path / "a", pairs)
    benchmark = index_of(tmp_path / "b", {"x": (reencoded(pairs["p2"][0]), pair(9, 64)[1])})
    assert run(pretraining, "--against", benchmark, "--out", tmp_path / "found") == 0
    rows = rows_of(tmp_path / "found")
    assert [key for key, row in rows.items() if "duplicate" in row["flags"]] == ["opt/p2.png"]


def test_across_splits_the_training_row_goes(tmp_path):
    pairs = {f"p{seed}": pair(seed, 64) for seed in range(3)} | {"q": pair(1, 64)}
    splits = tmp_path / "splits.csv"
    splits.write_text("scene,split\np0,train\np1,test\np2,train\nq,train\n")
    index = index_of(tmp_path / "a", pairs, "--split-csv", splits)
    assert run(index, "--out", tmp_path / "found") == 0
    assert [key for key, row in rows_of(tmp_path / "found").items() if "duplicate" in row["flags"]] == [
        "opt/q.png"
    ]


def test_equal_optical_image_alone_is_no_duplicate_within_a_split(tmp_path):
    first, second = pair(0, 64), pair(1, 64)
    index = index_of(tmp_path / "a", {"one": first, "two": (first[0], second[1])})
    assert run(index, "--out", tmp_path / "found") == 0
    assert not any("duplicate" in row["flags"] for row in rows_of(tmp_path / "found").values())


def test_unreadable_image_is_flagged_and_the_rest_examined(tmp_path):
    index = index_of(tmp_path / "a", {f"p{seed}": pair(seed, 64) for seed in range(3)})
    (tmp_path / "a" / "sar" / "p1.png").write_bytes(b"")
    with pytest.raises(ImageError):
        pair_doctor.read_side(open_index(index), 1, "sar")
    assert run(index, "--out", tmp_path / "found") == 0
    assert rows_of(tmp_path / "found")["opt/p1.png"]["flags"] == ["unreadable"]


def test_two_processes_find_the_same(tmp_path):
    index = index_of(tmp_path / "a", {f"p{seed}": pair(seed, 32) for seed in range(20)})
    assert run(index, "--out", tmp_path / "one") == 0
    assert pair_doctor.main([str(index), "--out", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two")


def test_a_part_of_the_rows_can_be_examined(tmp_path):
    index = index_of(tmp_path / "a", {f"p{seed}": pair(seed, 32) for seed in range(9)})
    assert run(index, "--out", tmp_path / "found", "--pairs", 3) == 0
    assert list(rows_of(tmp_path / "found")) == ["opt/p0.png", "opt/p4.png", "opt/p8.png"]


def test_mistakes_are_one_sentence(tmp_path, capsys):
    index = index_of(tmp_path / "a", {"p": pair(0, 32)})
    shutil.copytree(index, tmp_path / "copy")
    assert run(tmp_path / "none", "--out", tmp_path / "x") == 2
    assert run(index, "--out", tmp_path / "x", "--exclude-flags", "cloudy") == 2
    assert run(index, "--out", tmp_path / "x", "--pairs", 0) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len([line for line in errors if line.startswith("error: ")]) == 3
    assert "flags are unreadable, empty" in errors[-2]
