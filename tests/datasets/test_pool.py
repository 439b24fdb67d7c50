import json

import numpy as np
import prepare
from data_makers import make_index, picture, save

from codemae.data.images import read_picture
from codemae.data.index import open_index
from codemae.data.index_file import write_index
from codemae.data.statistics import IndexStatistics, SourceStatistics


def one_sided(folder, source, modality, count):
    images = folder / "images"
    for item in range(count):
        save(images / f"{item:02d}.png", picture(item, 8, 3 if modality == "optical" else 1))
    channels = 3 if modality == "optical" else 1
    numbers = SourceStatistics(channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels)
    rows = [
        {"source": source, "split": "train", "group": f"{item}", modality: f"{item:02d}.png"}
        for item in range(count)
    ]
    write_index(folder / "index", rows, IndexStatistics(sources={source: {modality: numbers}}), images)
    return folder / "index"


def pool(*indexes, out, more=()):
    return prepare.main(["pool", "--index", ",".join(map(str, indexes)), "--out", str(out), *more])


def test_indexes_of_different_roots_become_one(tmp_path):
    first = make_index(tmp_path / "a", paired=2)
    second = one_sided(tmp_path / "b/c", "only", "sar", 3)
    assert pool(first, second, out=tmp_path / "out") == 0
    index = open_index(tmp_path / "out")
    assert (len(index.paired_rows), len(index.sar_only_rows)) == (2, 3)
    for row in range(len(index)):
        modality = "sar" if index.cell(row, "optical") is None else "optical"
        assert (tmp_path / index.cell(row, modality)).is_file()
        assert index.location(row, modality).path == str(tmp_path / index.cell(row, modality))
    assert index.stats("only", "sar").mean == (0.5,)


def test_balance_draws_the_larger_side_down_by_the_stated_rule(tmp_path):
    optical = one_sided(tmp_path / "o", "many", "optical", 9)
    sar = one_sided(tmp_path / "s", "few", "sar", 4)
    assert pool(optical, sar, out=tmp_path / "out", more=["--balance", "--seed", "3"]) == 0
    index = open_index(tmp_path / "out")
    kept = sorted(index.cell(row, "optical") for row in index.optical_only_rows)
    wanted = np.random.default_rng(3).permutation(9)[:4]
    assert kept == sorted(f"o/images/{item:02d}.png" for item in wanted)
    assert len(index.sar_only_rows) == 4
    facts = json.loads((tmp_path / "out/report.json").read_text())["balance"]
    assert (facts["drawn down"], facts["unpaired before"]["optical"], facts["unpaired after"]) == (
        "optical",
        9,
        4,
    )


def test_one_name_for_two_sources_is_refused(tmp_path, capsys):
    first = one_sided(tmp_path / "o", "same", "optical", 2)
    second = make_index(tmp_path / "a", paired=2)
    third = tmp_path / "other"
    numbers = SourceStatistics(channels=3, mean=(0.1,) * 3, std=(0.2,) * 3)
    rows = [{"source": "same", "split": "train", "group": "x", "optical": "x.png"}]
    write_index(third, rows, IndexStatistics(sources={"same": {"optical": numbers}}), tmp_path)
    assert pool(first, second, third, out=tmp_path / "out") == 2
    assert "different statistics of the optical images of source 'same'" in capsys.readouterr().err
    assert pool(first, tmp_path / "nowhere", out=tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()


def test_a_pool_is_packed_into_shards_and_not_twice(tmp_path, capsys):
    first = make_index(tmp_path / "a", paired=2)
    second = one_sided(tmp_path / "b", "only", "sar", 3)
    assert pool(first, second, out=tmp_path / "plain") == 0
    wanted = open_index(tmp_path / "plain")
    words = ["--shards", "--shard-size", "1KB"]
    assert pool(first, second, out=tmp_path / "out", more=words) == 0
    assert "7 images in" in capsys.readouterr().err
    index = open_index(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("shards-*/*.tar"))) > 1
    assert index.hash() == wanted.hash()
    for row in range(len(index)):
        for modality in ("optical", "sar"):
            if wanted.cell(row, modality) is not None:
                pixels = [np.asarray(read_picture(each.location(row, modality))) for each in (index, wanted)]
                np.testing.assert_array_equal(*pixels)
                assert index.location(row, modality).offset is not None
    assert pool(tmp_path / "out", out=tmp_path / "again", more=words) == 2
    assert "packed already" in capsys.readouterr().err and not (tmp_path / "again").exists()
    assert pool(tmp_path / "out", out=tmp_path / "again") == 0


def test_a_pool_of_moved_images_records_where_they_are(tmp_path, monkeypatch):
    first = make_index(tmp_path / "a", paired=2)
    (tmp_path / "a/images").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("CODEMAE_DATA_ROOTS", f"{tmp_path}/a/images={tmp_path}/elsewhere")
    assert pool(first, out=tmp_path / "out") == 0
    monkeypatch.delenv("CODEMAE_DATA_ROOTS")
    assert read_picture(open_index(tmp_path / "out").location(0, "optical")).size == (24, 24)


def test_a_balanced_pool_counts_rows_over_several_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.pool._BATCH", 2)
    optical = one_sided(tmp_path / "o", "many", "optical", 9)
    sar = one_sided(tmp_path / "s", "few", "sar", 4)
    assert pool(optical, sar, out=tmp_path / "out", more=["--balance", "--seed", "3"]) == 0
    facts = json.loads((tmp_path / "out/report.json").read_text())
    assert (facts["rows"], facts["paired"]) == (8, 0)
    assert facts["rows_by_source"] == {"few": 4, "many": 4}
    kept = {open_index(tmp_path / "out").cell(row, "group") for row in range(4)}
    assert kept == {str(item) for item in np.random.default_rng(3).permutation(9)[:4]}
