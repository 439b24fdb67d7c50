import hashlib
import http.server
import io
import random
import sys
import tarfile
import threading
import types
import zipfile
from functools import partial

import pytest
from recipes.card import card_names, read_card
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


def test_an_archive_without_the_list_fetched_after_it_is_begun_anew(torchgeo, tmp_path):
    """As RESISC45 does: where the archive is there, the lists that come after it are not fetched."""
    from pathlib import Path

    stops = [True]

    class Listed:
        def __init__(self, root="data", download=False, checksum=False):
            if not (Path(root) / "a.zip").exists():
                with zipfile.ZipFile(Path(root) / "a.zip", "w") as made:
                    made.writestr("a.txt", "a")
                if stops[0]:
                    raise ConnectionError("reset by peer")
                (Path(root) / "list.txt").write_text("a")
            (Path(root) / "list.txt").read_text()

    torchgeo.Listed = Listed
    with pytest.raises(PrepareError, match="reset by peer"):
        download("listed", "Listed", tmp_path / "root", GET)
    stops[0] = False
    download("listed", "Listed", tmp_path / "root", GET)
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == ["a.zip", "list.txt"]


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


def test_only_the_splits_that_a_card_names_are_fetched(torchgeo, tmp_path):
    from pathlib import Path

    fetched = []

    class Keyed:
        """Its splits stand only as the keys of its hashes, as in FAIR1M."""

        urls = ("one", "two")
        md5s = {"train": ("a",), "val": ("b",), "test": ("c",)}

        def __init__(self, root="data", split="train", download=False, checksum=False):
            fetched.append(split)
            (Path(root) / split).write_text(split)

    torchgeo.Keyed = Keyed
    download("keyed", "Keyed:train,val", tmp_path / "some", GET)
    download("keyed", "Keyed", tmp_path / "all", GET)
    assert fetched == ["train", "val", "train", "val", "test"]
    with pytest.raises(PrepareError, match="has the splits.*not .*night"):
        download("keyed", "Keyed:train,night", tmp_path / "other", GET)


def test_a_folder_unpacked_by_a_run_that_stopped_is_not_taken_for_the_whole(torchgeo, tmp_path):
    """As FAIR1M and RESISC45 do: what is there is believed, so only archives may survive a stop."""
    from pathlib import Path

    stops = [True]

    class Believing:
        def __init__(self, root="data", download=False, checksum=False):
            folder = Path(root) / "train" / "images"
            if folder.exists():
                return
            archive_file = Path(root) / "train" / "images.zip"
            if not archive_file.exists():
                folder.parent.mkdir(exist_ok=True)
                with zipfile.ZipFile(archive_file, "w") as made:
                    made.writestr("1.tif", "one")
                    made.writestr("2.tif", "two")
            folder.mkdir()
            with zipfile.ZipFile(archive_file) as made:
                for name in made.namelist():
                    made.extract(name, folder)
                    if stops[0]:
                        raise KeyboardInterrupt

    torchgeo.Believing = Believing
    with pytest.raises(KeyboardInterrupt):
        download("believing", "Believing", tmp_path / "root", GET)
    assert not (tmp_path / "root").exists()
    stops[0] = False
    download("believing", "Believing", tmp_path / "root", GET)
    assert sorted(path.name for path in (tmp_path / "root" / "train" / "images").iterdir()) == [
        "1.tif",
        "2.tif",
    ]


def test_cut_off_tar_is_fetched_again(torchgeo, tmp_path):
    from pathlib import Path

    tries = []

    class Cut:
        def __init__(self, root="data", download=False, checksum=False):
            file = Path(root) / "data.tar.gz"
            if not file.exists():
                tries.append(len(tries))
                (Path(root) / "whole").mkdir()
                with tarfile.open(file, "w:gz") as tar:
                    for number in range(50):
                        entry = tarfile.TarInfo(f"{number}.txt")
                        entry.size = 5000
                        tar.addfile(entry, io.BytesIO(random.Random(number).randbytes(5000)))
                if len(tries) == 1:
                    file.write_bytes(file.read_bytes()[:100_000])
            with tarfile.open(file) as tar:
                tar.extractall(root)

    torchgeo.Cut = Cut
    download("cut", "Cut", tmp_path / "root", GET)
    assert len(tries) == 2 and len(list((tmp_path / "root").glob("*.txt"))) == 50


def test_an_archive_of_another_content_is_refused_even_where_the_class_does_not_look(torchgeo, tmp_path):
    """As SpaceNet does, which computes the hash and drops the answer."""
    from pathlib import Path

    class Careless:
        md5s = {"train": {11: ["0" * 32]}}

        def __init__(self, root="data", download=False, checksum=False):
            with zipfile.ZipFile(Path(root) / "careless.zip", "w") as made:
                made.writestr("a.txt", "a")

    torchgeo.Careless = Careless
    with pytest.raises(PrepareError, match="careless.zip of careless has the MD5"):
        download("careless", "Careless", tmp_path / "root", GET)
    assert not (tmp_path / "root").exists() and not list(tmp_path.rglob("careless.zip"))


def test_parts_are_hashed_and_the_file_made_of_them_is_not(torchgeo, tmp_path):
    from pathlib import Path

    class Parts:
        md5s = {"aa": hashlib.md5(b"first").hexdigest(), "ab": hashlib.md5(b"second").hexdigest()}

        def __init__(self, root="data", download=False, checksum=False):
            for suffix, content in (("aa", b"first"), ("ab", b"second")):
                (Path(root) / f"s1.tar.gz.part{suffix}").write_bytes(content)
            (Path(root) / "s1.tar.gz").write_bytes(b"firstsecond")

    torchgeo.Parts = Parts
    download("parts", "Parts", tmp_path / "root", GET)
    assert (tmp_path / "root" / "s1.tar.gz").exists()


@pytest.fixture(scope="module")
def real():
    """The package itself, where it is installed."""
    return pytest.importorskip("torchgeo.datasets")


@pytest.mark.parametrize("name", [name for name in card_names() if read_card(name).torchgeo])
def test_the_real_class_of_a_card_can_be_asked_for_its_splits(real, name):
    from recipes.torchgeo_download import _md5s, _splits

    chosen, _, splits = read_card(name).torchgeo.partition(":")
    dataset = getattr(real, chosen)
    known = _splits(name, dataset, GET)
    assert set(splits.split(",")) <= set(known) if splits else known
    assert list(_md5s(vars(dataset)))


@pytest.fixture
def server(tmp_path):
    """A folder, and the address at which this machine gives it out."""
    folder = tmp_path / "server"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{serving.server_port}/"
    serving.shutdown()
    serving.server_close()


def test_a_real_class_fetches_a_card_and_prepare_indexes_it(real, server, tmp_path, monkeypatch):
    """UC Merced in small, from an own server: torchgeo's own code fetches, checks and unpacks it."""
    import prepare
    from data_makers import picture, save

    from codemae.data.index import open_index

    names = [f"agricultural{item:02d}" for item in range(5)] + [f"river{item:02d}" for item in range(5)]
    for seed, name in enumerate(names):
        save(tmp_path / "UCMerced_LandUse" / "Images" / name[:-2] / f"{name}.tif", picture(seed, 12))
    folder, address = server
    with zipfile.ZipFile(folder / "UCMerced_LandUse.zip", "w") as made:
        for path in sorted((tmp_path / "UCMerced_LandUse").rglob("*.tif")):
            made.write(path, path.relative_to(tmp_path))
    lists = real.UCMerced.split_filenames
    for name in lists.values():
        (folder / name).write_text("".join(f"{stem}.tif\n" for stem in names))
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(real.UCMerced, "url", address)
    monkeypatch.setattr(real.UCMerced, "md5", md5["UCMerced_LandUse.zip"])
    monkeypatch.setattr(real.UCMerced, "split_md5s", {split: md5[name] for split, name in lists.items()})
    words = ["ucmerced", "--root", tmp_path / "root", "--out", tmp_path / "out", "--download"]
    assert prepare.main([*map(str, words), "--workers", "1"]) == 0
    index = open_index(tmp_path / "out")
    assert len(index) == 10 and sum(index.cell(row, "split") == "train" for row in range(10)) == 8

    monkeypatch.setattr(real.UCMerced, "md5", "0" * 32)
    with pytest.raises(PrepareError, match="UCMerced_LandUse.zip was removed"):
        download("ucmerced", "UCMerced", tmp_path / "forged", GET)
    assert not (tmp_path / "forged").exists()


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
