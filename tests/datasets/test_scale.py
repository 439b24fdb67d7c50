import re
import subprocess
import sys

import numpy as np
import pytest
from data_makers import picture, save
from recipes.candidates import BATCH, Candidate, Candidates
from recipes.left_out import LeftOut, LeftOuts
from recipes.listing import Keyed
from recipes.parallel import Workers

from benchmarks.prepare_scale import PREPARE, make_listing, measure
from codemae.data.index import open_index

MILLION = 1_000_000
GIGABYTE = 1000.0


@pytest.mark.slow
def test_memory_grows_so_little_a_pair_that_a_million_stay_under_a_gigabyte(tmp_path):
    few, many = 16_000, 32_000
    found = []
    for rows in (few, many):
        make_listing(tmp_path / str(rows), rows)
        found.append(measure(tmp_path / str(rows), workers=1))
    assert [each["rows"] for each in found] == [few, many]
    smaller, larger = (each["largest_process_mb"] for each in found)
    a_row = (larger - smaller) / (many - few)
    assert larger + a_row * (MILLION - many) < GIGABYTE, found


def test_a_million_windows_of_one_scene_stay_under_a_gigabyte(tmp_path):
    side = 1007
    save(tmp_path / "optical" / "a.png", picture(0, side))
    save(tmp_path / "sar" / "a.png", picture(1, side, 1))
    found = measure(tmp_path, 1, ["--tile", "8", "--stride", "1"])
    assert found["rows"] == MILLION
    assert found["largest_process_mb"] < GIGABYTE
    index = open_index(tmp_path / "index")
    for row in (0, 1, 999, 1000, 1001, MILLION - 1):
        assert index.window(row) == (row % 1000, row // 1000, 8, 8)


def test_progress_tells_rate_and_time_left(tmp_path):
    make_listing(tmp_path, 1500)
    sides = ["--optical", tmp_path / "optical", "--sar", tmp_path / "sar"]
    words = [sys.executable, PREPARE, "pairs", *sides, "--out", tmp_path / "index", "--workers", "2"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
    told = [int(n) for n in re.findall(r"^read (\d+) of 1500 samples, [\d,]+ a second", done.stderr, re.M)]
    assert 8 <= len(told) <= 10 and told == sorted(told) and told[-1] == 1500
    assert len(re.findall(r"about \d+ s left$", done.stderr, re.M)) == len(told) - 1


def test_work_is_taken_only_a_little_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    with Workers(2) as run:
        results = run.map(abs, items())
        assert next(results) == (0, 0)
        assert len(taken) <= 8
        assert [result for _, result in results] == list(range(1, 1000))


def test_candidates_in_columns_equal_a_list():
    rng = np.random.default_rng(0)
    plain = [
        Candidate(f"k{i}", "s", "train" if i % 3 else "test", f"g{i // 2}", f"o/{i}.png", label=int(label))
        for i, label in enumerate(rng.integers(0, 7, BATCH + 100))
    ]
    columns = Candidates(plain)
    assert len(columns) == len(plain) and list(columns) == plain
    assert columns.class_numbers().tolist() == [candidate.label for candidate in plain]

    def change(candidate):
        candidate.group += "!"
        return None if candidate.label == 3 else candidate

    columns.update(change)
    order = {0: 5, 1: 4, 2: 3, 4: 2, 5: 1, 6: 0}
    columns.renumber(order)
    wanted = [candidate for candidate in plain if candidate.label != 3]
    assert [(c.key, c.group, c.label) for c in columns] == [
        (c.key, c.group + "!", order[c.label]) for c in wanted
    ]
    assert not columns.has_doubled_keys()
    columns.append(plain[0])
    assert columns.has_doubled_keys()


def test_lists_of_classes_stay_lists():
    labels = [[1], None, [], [2, 0]]
    columns = Candidates(Candidate(str(i), "s", "t", "g", label=label) for i, label in enumerate(labels))
    assert columns.several and [candidate.label for candidate in columns] == labels


def test_names_are_found_and_doubled_ones_are_not():
    entries = [("b", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("b", "5")]
    names = Keyed(entries)
    assert list(names) == [("a", "2"), ("c", "4")]
    assert names.doubled == [("b", "1", "3"), ("b", "1", "5")]
    assert names.places(["c", "b", "nobody", "a"]).tolist() == [1, -1, -1, 0]


def test_names_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("recipes.listing.hash", lambda text: len(text), raising=False)
    names = Keyed([("aa", "1"), ("bb", "2"), ("c", "3"), ("bb", "4"), ("dd", "5")])
    assert list(names) == [("aa", "1"), ("c", "3"), ("dd", "5")]
    assert names.places(["dd", "bb", "aa", "ee", "c"]).tolist() == [2, -1, 0, -1, 1]


@pytest.mark.parametrize("number", [0, 3, 30_000])
def test_what_is_left_out_is_counted_and_listed_in_full(tmp_path, number):
    listed = LeftOuts()
    (tmp_path / "left_out.jsonl").write_text("of a run before")
    for item in range(number):
        listed.append(LeftOut(f"s{item}", "kind", f"because of {item} ü"))
        if item == 1:
            assert [entry.sample for entry in listed.first(5)] == ["s0", "s1"]
    assert len(listed) == number == sum(1 for _ in listed)
    listed.write(tmp_path)
    path = tmp_path / "left_out.jsonl"
    assert path.exists() == bool(number)
    assert not number or len(path.read_text().splitlines()) == number
