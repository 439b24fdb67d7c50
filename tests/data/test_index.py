import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_makers import make_index, picture, save, statistics

from codemae.data.images import PathError
from codemae.data.index import Index, IndexFileError, open_index, write_index
from codemae.data.statistics import IndexStatistics, SourceStatistics

ROWS = [
    {"source": "a", "split": "train", "group": "g0", "optical": "o/0.png", "sar": "s/0.png"},
    {"source": "a", "split": "train", "group": "g1", "optical": "o/1.png"},
    {
        "source": "b",
        "split": "test",
        "group": "g0",
        "sar": "s/2.png",
        "x": 4,
        "y": 8,
        "width": 16,
        "height": 12,
    },
    {"source": "b", "split": "train", "group": "g3", "sar": "shard.tar", "sar_offset": 512, "sar_size": 99},
]


@pytest.fixture
def written(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_index(tmp_path / "index", ROWS, statistics("a", "b"), root)
    return tmp_path / "index"


def test_rows_come_back_as_written(written):
    index = open_index(written)
    assert len(index) == 4
    for row, expected in enumerate(ROWS):
        for column in ("source", "split", "group", "optical", "sar", "x", "height", "sar_offset", "label"):
            assert index.cell(row, column) == expected.get(column)
    assert index.paired_rows.tolist() == [0]
    assert index.optical_only_rows.tolist() == [1]
    assert index.sar_only_rows.tolist() == [2, 3]
    assert index.window(2) == (4, 8, 16, 12)
    assert index.window(0) is None
    location = index.location(3, "sar")
    assert (location.path, location.offset, location.size) == (
        str(written.parent / "root/shard.tar"),
        512,
        99,
    )


def test_row_ids_do_not_depend_on_the_split(written):
    train = open_index(written, split="train")
    assert train.rows.tolist() == [0, 1, 3]
    assert train.sar_only_rows.tolist() == [3]
    assert train.cell(3, "sar") == "shard.tar"
    with pytest.raises(IndexFileError, match="no split 'val'; it has 'test', 'train'|it has 'train', 'test'"):
        open_index(written, split="val")


def test_several_folders_are_one_index(tmp_path):
    first, second = make_index(tmp_path / "1", paired=2), make_index(tmp_path / "2", optical=1, sar=2)
    index = open_index([first, second])
    assert len(index) == 5
    assert index.sar_only_rows.tolist() == [3, 4]
    assert index.cell(3, "sar") == "sar/sar0.png"
    assert index.location(3, "sar").path.startswith(str(tmp_path / "2"))
    merged = Index.merge([open_index(first), open_index(second)])
    assert merged.hash() == index.hash()
    assert merged.source_counts("optical") == {"made": 3}


def test_one_source_name_with_two_statistics_is_refused(tmp_path):
    first = make_index(tmp_path / "1", optical=1)
    other = SourceStatistics(channels=3, mean=(0.1,) * 3, std=(0.1,) * 3)
    row = {"source": "made", "split": "train", "group": "g", "optical": "x.png"}
    write_index(tmp_path / "2", [row], IndexStatistics(sources={"made": {"optical": other}}), tmp_path)
    with pytest.raises(IndexFileError, match="another --source NAME"):
        open_index([first, tmp_path / "2"])


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/x.png", "..", "C:\\x.png"])
def test_paths_that_leave_the_root_are_not_written(tmp_path, path):
    row = {"source": "a", "split": "train", "group": "g", "sar": path}
    with pytest.raises(PathError):
        write_index(tmp_path / "index", [row], statistics("a"), tmp_path)
    assert not (tmp_path / "index" / "index.parquet").exists()


def test_foreign_index_with_a_climbing_path_is_refused_when_opened(written):
    parquet = written / "index.parquet"
    table = pq.read_table(parquet)
    place = table.schema.get_field_index("sar")
    evil = table.set_column(place, "sar", pa.array(["../../secret.png", None, None, None]))
    pq.write_table(evil.replace_schema_metadata(table.schema.metadata), parquet)
    with pytest.raises(PathError, match="climbs out"):
        open_index(written)


def test_link_out_of_the_root_is_refused_when_read(tmp_path):
    index = make_index(tmp_path, paired=1)
    image = tmp_path / "images" / "opt" / "paired0.png"
    save(tmp_path / "outside.png", picture(0))
    image.unlink()
    image.symlink_to(tmp_path / "outside.png")
    with pytest.raises(PathError, match="through a link"):
        open_index(index).location(0, "optical")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "not a single sample"),
        ([{"source": "a", "split": "train", "group": "g"}], "neither an optical nor a SAR"),
        (
            [{"source": "z", "split": "train", "group": "g", "sar": "x"}],
            "no entry for the sar images of source 'z'",
        ),
        ([{"source": "a", "group": "g", "sar": "x"}], "'split' has empty cells"),
        (
            [{"source": "a", "split": "train", "group": "g", "sar": "x", "rader": 1}],
            "unknown columns .'rader'",
        ),
        (
            [{"source": "a", "split": s, "group": "g", "sar": s} for s in ("train", "test")],
            "must not cut a group",
        ),
    ],
)
def test_contradictory_rows_are_refused(tmp_path, rows, reason):
    with pytest.raises(IndexFileError, match=reason):
        write_index(tmp_path / "index", rows, statistics("a"), tmp_path)


def test_failed_writing_leaves_the_index_that_was_there(written):
    before = open_index(written).hash()
    with pytest.raises(IndexFileError):
        write_index(written, ROWS, statistics("a"), written)
    assert open_index(written).hash() == before
    assert not [name for name in os.listdir(written) if name.startswith(".")]


def test_rewriting_replaces_the_mapped_copy(written):
    old = open_index(written)
    write_index(written, ROWS[:2], statistics("a"), written.parent / "root")
    assert len(open_index(written)) == 2
    assert old.cell(3, "sar_size") == 99


def test_moved_root(tmp_path, monkeypatch):
    index = make_index(tmp_path, paired=2)
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(IndexFileError, match="CODEMAE_DATA_ROOTS=.*root=NEW_PLACE"):
        open_index(index)
    assert os.path.isfile(open_index(index, root=tmp_path / "elsewhere").location(1, "sar").path)
    monkeypatch.setenv("CODEMAE_DATA_ROOTS", f"{tmp_path}/images={tmp_path}/elsewhere")
    assert os.path.isfile(open_index(index).location(1, "sar").path)
    monkeypatch.setenv("CODEMAE_DATA_ROOTS", "nonsense")
    with pytest.raises(IndexFileError, match="OLD=NEW"):
        open_index(index)


def test_missing_and_mistaken_folders_name_the_command(tmp_path):
    command = "python datasets/prepare.py pairs --optical DIR --sar DIR --out"
    with pytest.raises(IndexFileError, match=f"no index folder at .*typo(.|\n)*{command}"):
        open_index(tmp_path / "typo")
    save(tmp_path / "images" / "a.png", picture(0))
    with pytest.raises(IndexFileError, match=f"it holds a.png(.|\n)*{command}"):
        open_index(tmp_path / "images")


def test_truncated_parquet_is_named(written):
    parquet = written / "index.parquet"
    parquet.write_bytes(parquet.read_bytes()[:-40])
    with pytest.raises(IndexFileError, match="is damaged"):
        open_index(written)


def test_unwritable_index_folder_is_mapped_from_the_temporary_folder(written, monkeypatch, tmp_path):
    # A folder in the place of the mapped copy can be neither read nor replaced, for root as for anyone.
    (written / "index.arrow").unlink()
    (written / "index.arrow").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert open_index(written).cell(0, "optical") == "o/0.png"
    assert [p.suffix for p in (tmp_path / "tmp").iterdir()] == [".arrow"]


def test_split_hash_follows_the_samples_not_their_place(written, tmp_path):
    whole = open_index(written)
    shutil.copytree(written, tmp_path / "copy")
    assert open_index(tmp_path / "copy", root=tmp_path).hash() == whole.hash()
    hashes = {
        whole.hash(),
        open_index(written, split="train").hash(),
        open_index(written, split="test").hash(),
    }
    changed = [dict(row) for row in ROWS]
    changed[2]["x"] = 5
    write_index(tmp_path / "changed", changed, statistics("a", "b"), tmp_path)
    assert len(hashes | {open_index(tmp_path / "changed").hash()}) == 4


def test_labels_of_one_and_of_several_classes(tmp_path):
    def write(labels):
        rows = [
            {"source": "a", "split": "train", "group": str(i), "sar": f"{i}.png", "label": label}
            for i, label in enumerate(labels)
        ]
        facts = statistics("a")
        facts.classes = ("x", "y", "z")
        write_index(tmp_path / "index", rows, facts, tmp_path)
        return open_index(tmp_path / "index")

    assert write([2, 0, 1]).labels().tolist() == [2, 0, 1]
    several = write([[0, 2], [], [1]])
    assert several.labels().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert several.classes == ("x", "y", "z")
    with pytest.raises(IndexFileError, match="row 1 .*no label"):
        write([0, None, 1]).labels()


def test_pickling_carries_folders_not_rows(tmp_path):
    index = open_index(make_index(tmp_path, paired=40), split="train")
    packed = pickle.dumps(index)
    assert len(packed) < 1000
    assert pickle.loads(packed).hash() == index.hash()


def test_reading_an_index_does_not_import_torch(written):
    code = (
        "import sys; from codemae.data.index import open_index; "
        f"assert len(open_index({str(written)!r})) == 4; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pooled_statistics_weigh_sources_by_their_rows(tmp_path):
    narrow = SourceStatistics(channels=1, mean=(0.2,), std=(0.1,))
    wide = SourceStatistics(channels=1, mean=(0.6,), std=(0.3,))
    rows = [
        {"source": s, "split": "train", "group": f"{s}{i}", "sar": f"{s}{i}"}
        for s, n in (("n", 3), ("w", 1))
        for i in range(n)
    ]
    write_index(
        tmp_path / "i", rows, IndexStatistics(sources={"n": {"sar": narrow}, "w": {"sar": wide}}), tmp_path
    )
    pooled = open_index(tmp_path / "i").pooled_stats("sar")
    # 3/4 (0.01 + 0.04) + 1/4 (0.09 + 0.36) - 0.3^2 = 0.06
    np.testing.assert_allclose([pooled.mean[0], pooled.std[0]], [0.3, np.sqrt(0.06)])
