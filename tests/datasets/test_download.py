import io
import sys
import tarfile
import types
import zipfile

import pytest
from recipes.plan import PrepareError
from recipes.torchgeo_download import download

GET = "Ask the authors."


@pytest.fixture
def torchgeo(monkeypatch):
    """A torchgeo whose datasets the test supplies."""
    package, datasets = types.ModuleType("torchgeo"), types.ModuleType("torchgeo.datasets")
    package.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchgeo", package)
    monkeypatch.setitem(sys.modules, "torchgeo.datasets", datasets)
    return datasets


def archive(path, members, links=()):
    with tarfile.open(path, "w") as tar:
        for name in members:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)


def test_every_split_is_fetched_checked_and_only_then_shown(torchgeo, tmp_path):
    root, calls = tmp_path / "data" / "loveda", []

    class LoveDA:
        splits = ("train", "val", "test")

        def __init__(self, root="data", split="train", download=False, checksum=False):
            from pathlib import Path

            assert not final.exists()
            calls.append((split, download, checksum))
            (Path(root) / f"{split}.txt").write_text(split)

    final = root
    torchgeo.LoveDA = LoveDA
    said = download("loveda", "LoveDA", root, GET)
    assert calls == [(split, True, True) for split in ("train", "val", "test")]
    assert sorted(path.name for path in root.iterdir()) == ["test.txt", "train.txt", "val.txt"]
    assert "train, val, test" in said
    assert [path.name for path in root.parent.iterdir()] == ["loveda"]
    assert "nothing was downloaded" in download("loveda", "LoveDA", root, GET)
    assert len(calls) == 3


def test_without_torchgeo_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchgeo", None)
    monkeypatch.setitem(sys.modules, "torchgeo.datasets", None)
    with pytest.raises(PrepareError, match=r'pip install "codemae\[torchgeo\]"'):
        download("loveda", "LoveDA", tmp_path / "root", GET)
    assert not list(tmp_path.iterdir())


def test_what_torchgeo_cannot_do_is_said(torchgeo, tmp_path):
    with pytest.raises(PrepareError, match="cannot be downloaded by a program.*Ask the authors"):
        download("pie", None, tmp_path / "root", GET)
    with pytest.raises(PrepareError, match="no dataset Pie"):
        download("pie", "Pie", tmp_path / "root", GET)

    class Unchecked:
        def __init__(self, root="data", download=False):
            raise AssertionError("must not be asked")

    class Unsplit:
        def __init__(self, root="data", split="train", download=False, checksum=False):
            raise AssertionError("must not be asked")

    torchgeo.Unchecked, torchgeo.Unsplit = Unchecked, Unsplit
    with pytest.raises(PrepareError, match="no option checksum"):
        download("pie", "Unchecked", tmp_path / "root", GET)
    with pytest.raises(PrepareError, match="could be partial"):
        download("pie", "Unsplit", tmp_path / "root", GET)
    assert not list(tmp_path.iterdir())


def test_cut_off_download_leaves_no_root_and_goes_on(torchgeo, tmp_path):
    """The first try breaks in the second file; the next keeps the first and fetches the second again."""
    from pathlib import Path

    fetched = []
    broken = [True]

    class Two:
        def __init__(self, root="data", download=False, checksum=False):
            for name in ("a.zip", "b.zip"):
                file = Path(root) / name
                if file.exists():
                    if file.read_text() != "whole":
                        raise RuntimeError("Dataset found, but corrupted.")
                    continue
                fetched.append(name)
                if name == "b.zip" and broken[0]:
                    file.write_text("wh")
                    raise ConnectionError("reset by peer")
                file.write_text("whole")

    torchgeo.Two = Two
    with pytest.raises(PrepareError, match="ConnectionError: reset by peer.*same command goes on"):
        download("two", "Two", tmp_path / "root", GET)
    assert not (tmp_path / "root").exists()
    broken[0] = False
    download("two", "Two", tmp_path / "root", GET)
    assert fetched == ["a.zip", "b.zip", "b.zip"]
    assert {path.name: path.read_text() for path in (tmp_path / "root").iterdir()} == {
        "a.zip": "whole",
        "b.zip": "whole",
    }


def test_wrong_hash_is_refused_and_the_file_removed(torchgeo, tmp_path):
    from pathlib import Path

    class Forged:
        def __init__(self, root="data", download=False, checksum=False):
            (Path(root) / "f.zip").write_text("forged")
            raise RuntimeError("File not found or corrupted.")

    torchgeo.Forged = Forged
    with pytest.raises(PrepareError, match=r"corrupted.*f\.zip was removed"):
        download("forged", "Forged", tmp_path / "root", GET)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("members", "links"),
    [
        (["/ESCAPED"], ()),
        (["../ESCAPED"], ()),
        (["a/../../ESCAPED"], ()),
        ([], [("a", "/etc"), ("b", "../../x")]),
    ],
)
def test_tar_archive_with_names_that_leave_the_root_is_refused(torchgeo, tmp_path, members, links):
    outside = tmp_path / "ESCAPED"
    members = [str(outside) if name == "/ESCAPED" else name for name in members]

    class Hostile:
        def __init__(self, root="data", download=False, checksum=False):
            archive(f"{root}/h.tar", ["fine.txt", *members], links)
            with tarfile.open(f"{root}/h.tar") as tar:
                tar.extractall(root)

    torchgeo.Hostile = Hostile
    before = tarfile.TarFile.extraction_filter
    with pytest.raises(PrepareError, match="refused and removed"):
        download("hostile", "Hostile", tmp_path / "root", GET)
    assert not list(tmp_path.iterdir())
    assert tarfile.TarFile.extraction_filter is before


def test_zip_archive_stays_inside_and_links_out_are_refused(torchgeo, tmp_path):
    from pathlib import Path

    class Zipped:
        def __init__(self, root="data", download=False, checksum=False):
            with zipfile.ZipFile(f"{root}/z.zip", "w") as made:
                made.writestr("../../ESCAPED", "abc")
                made.writestr(str(tmp_path / "ESCAPED"), "abc")
            with zipfile.ZipFile(f"{root}/z.zip") as made:
                made.extractall(root)

    class Linked:
        def __init__(self, root="data", download=False, checksum=False):
            (Path(root) / "away").symlink_to("/etc")

    torchgeo.Zipped, torchgeo.Linked = Zipped, Linked
    download("zipped", "Zipped", tmp_path / "root", GET)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    with pytest.raises(PrepareError, match="link out of its folder, away"):
        download("linked", "Linked", tmp_path / "other", GET)
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_prepare_downloads_before_it_indexes_and_packs_afterwards(torchgeo, tmp_path, capsys):
    import prepare
    from data_makers import picture, save
    from recipes.card import read_card

    from codemae.data.images import read_picture
    from codemae.data.index import open_index

    class UCMerced:
        splits = ("train",)

        def __init__(self, root="data", split="train", download=False, checksum=False):
            raise ConnectionError("no network")

    assert read_card("ucmerced").torchgeo == "UCMerced"
    torchgeo.UCMerced = UCMerced
    words = ["ucmerced", "--root", tmp_path / "root", "--out", tmp_path / "out", "--download"]
    assert prepare.main([str(word) for word in words]) == 2
    assert "no network" in capsys.readouterr().err
    assert not (tmp_path / "root").exists() and not (tmp_path / "out").exists()

    save(tmp_path / "plain" / "c" / "a.png", picture(0, 16))
    words = ["folder", "--root", tmp_path / "plain", "--modality", "optical", "--out", tmp_path / "out"]
    assert prepare.main([*map(str, words), "--workers", "1", "--shards", "--shard-size", "1MB"]) == 0
    assert "1 images in 1 shards" in capsys.readouterr().err
    location = open_index(tmp_path / "out").location(0, "optical")
    assert location.offset == 512 and (read_picture(location).getpixel((3, 2)) == tuple(picture(0, 16)[2, 3]))
    with pytest.raises(SystemExit):
        prepare.main([*map(str, words), "--shards", "--shard-size", "huge"])


def test_shards_script_packs_and_explains(tmp_path, capsys):
    import shards
    from data_makers import make_index

    index = make_index(tmp_path, paired=2)
    assert shards.main([str(index), "--out", str(tmp_path / "packed")]) == 0
    assert "4 images in 1 shards" in capsys.readouterr().out
    assert shards.main([str(tmp_path / "packed"), "--out", str(tmp_path / "again")]) == 2
    assert "packed already" in capsys.readouterr().err
    assert shards.main([str(tmp_path / "none"), "--out", str(tmp_path / "again")]) == 2
    assert "no index folder" in capsys.readouterr().err
