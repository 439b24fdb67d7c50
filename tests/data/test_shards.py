import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
import torch
from data_makers import make_index, picture, save, save_geotiff, statistics

from codemae.data import shards
from codemae.data.dataset import Draw, PairDataset
from codemae.data.images import read_picture, read_window
from codemae.data.index import open_index, write_index
from codemae.data.loader import make_loader
from codemae.data.sampler import PretrainSampler
from codemae.data.shards import ShardError, pack
from codemae.data.views import View, Views


def _files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def _fields(batch):
    for name, value in vars(batch).items():
        for key, tensor in value.items() if isinstance(value, dict) else [("", value)]:
            yield f"{name}.{key}", tensor


def test_batches_of_plain_and_packed_images_are_identical(tmp_path):
    plain = make_index(tmp_path, paired=12)
    packed = pack(plain, tmp_path / "packed", shard_bytes=8_000)
    assert packed.shards > 2 and packed.images == 24
    views = Views({m: View(modality=m, size=16, crop_group="both") for m in ("optical", "sar")})
    indexes = [open_index(folder) for folder in (plain, tmp_path / "packed")]
    assert indexes[0].hash() == indexes[1].hash()
    assert indexes[0].statistics_hash() == indexes[1].statistics_hash()
    draws = [Draw(0, 0, row, row, True) for row in range(12)]
    batches = []
    datasets = [PairDataset(index, views, seed=3) for index in indexes]
    for dataset in datasets:
        batches.append(dataset.collate(dataset.__getitems__(draws)))
        shutil.rmtree(tmp_path / "images", ignore_errors=True)  # the packed copy stands alone
    for (name, first), (_, second) in zip(*map(_fields, batches), strict=True):
        same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
        assert same, name
    assert not batches[1].bad


def test_every_format_reads_alike_from_a_shard(tmp_path):
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    save_geotiff(root / "five.tif", rng.integers(0, 4000, (20, 24, 5), dtype=np.uint16), nodata=0)
    save(root / "deep.png", rng.integers(0, 65535, (20, 24), dtype=np.uint16))
    save(root / "grey.jpg", picture(1, (20, 24), 1))
    np.save(root / "bands.npy", rng.normal(size=(4, 20, 24)).astype(np.float32))
    long = "a" * 90 + "/" + "é" * 60 + ".png"
    save(root / long, picture(2, (20, 24)))
    names = ["five.tif", "deep.png", "grey.jpg", "bands.npy", long]
    rows = [{"source": "made", "split": "train", "group": n, "optical": n} for n in names]
    write_index(tmp_path / "plain", rows, statistics("made"), root)
    pack(tmp_path / "plain", tmp_path / "packed")
    one, two = open_index(tmp_path / "plain"), open_index(tmp_path / "packed")
    for row, name in enumerate(names):
        at = one.location(row, "optical"), two.location(row, "optical")
        assert at[1].offset is not None and at[1].member == name
        whole = [np.asarray(read_picture(location)) for location in at]
        part = [np.asarray(read_window(location, (3, 2, 9, 7), None)) for location in at]
        assert whole[0].dtype == whole[1].dtype and part[0].shape[:2] == (7, 9)
        np.testing.assert_array_equal(*whole)
        np.testing.assert_array_equal(*part)
        np.testing.assert_array_equal(part[1], whole[0][2:9, 3:12])


def test_tar_lists_and_extracts_the_shards(tmp_path):
    packed = pack(make_index(tmp_path, paired=3, optical=2), tmp_path / "packed", shard_bytes=8_000)
    out = tmp_path / "unpacked"
    out.mkdir()
    listed = []
    for shard in sorted(packed.folder.glob("*.tar")):
        assert shard.stat().st_size <= 8_000 + tarfile.RECORDSIZE
        listed += subprocess.run(
            ["tar", "tf", shard], capture_output=True, text=True, check=True
        ).stdout.split()
        subprocess.run(["tar", "xf", shard, "-C", out], check=True)
    assert listed[:2] == ["opt/paired0.png", "sar/paired0.png"]
    assert len(listed) == 8
    assert _files(out) == _files(tmp_path / "images")


def test_windows_of_a_scene_share_one_member_and_masks_lie_beside(tmp_path):
    save(tmp_path / "images" / "scene.png", picture(0, 32))
    save(tmp_path / "images" / "mask" / "scene.png", picture(1, 32, 1))
    window = {"y": 0, "width": 16, "height": 16}
    rows = [
        {"source": "made", "split": "train", "group": "s", "optical": "scene.png", "mask": "mask/scene.png"}
        | window
        | {"x": x}
        for x in (0, 16)
    ]
    write_index(tmp_path / "index", rows, statistics("made"), tmp_path / "images")
    before = open_index(tmp_path / "index").hash()
    packed = pack(tmp_path / "index", tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert (packed.images, packed.copied) == (1, 1)
    assert index.location(0, "optical") == index.location(1, "optical")
    assert index.hash() == before
    assert (packed.folder / index.cell(1, "mask")).read_bytes() == (
        tmp_path / "images" / "mask" / "scene.png"
    ).read_bytes()
    with pytest.raises(ShardError, match="packed already"):
        pack(tmp_path / "index", tmp_path / "again")


_KILLED = """
import sys, time
from codemae.data import shards
write, count = shards._write_shard, 0
def slow(path, files):
    global count
    count += 1
    if count == 3:
        part = path.with_name(path.name + ".part")
        part.write_bytes(b"half a shard")
        print("reached", flush=True)
        time.sleep(60)
    write(path, files)
shards._write_shard = slow
shards.pack(sys.argv[1], sys.argv[2], shard_bytes=8_000)
"""


def test_killed_packing_leaves_the_old_index_and_goes_on(tmp_path, monkeypatch):
    plain = make_index(tmp_path, paired=8)
    before = _files(plain)
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, plain, plain], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "reached\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    visible = {path.name for path in plain.iterdir() if not path.name.startswith(".")}
    assert visible == {"index.parquet", "index.arrow", "stats.yaml"}
    assert all(_files(plain)[name] == before[name] for name in ("index.parquet", "stats.yaml"))
    assert read_picture(open_index(plain).location(0, "sar")).mode == "L"

    written = []
    write = shards._write_shard
    monkeypatch.setattr(
        shards, "_write_shard", lambda path, files: (written.append(path.name), write(path, files))
    )
    packed = pack(plain, plain, shard_bytes=8_000)
    assert written == [f"{number:06d}.tar" for number in range(2, packed.shards)]
    assert not list(packed.folder.glob("*.part")) and not list(plain.glob(".packing-*"))
    index = open_index(plain)
    for row in range(8):
        assert np.array_equal(read_picture(index.location(row, "optical")), picture(row, 24))


def test_kill_between_shards_and_index_leaves_the_plain_index(tmp_path, monkeypatch):
    plain = make_index(tmp_path, paired=2)
    with monkeypatch.context() as broken:
        broken.setattr(shards, "write_index", lambda *_: (_ for _ in ()).throw(OSError("power")))
        with pytest.raises(OSError, match="power"):
            pack(plain, plain)
    assert open_index(plain).location(0, "sar").offset is None
    pack(plain, plain)
    assert open_index(plain).location(0, "sar").offset == 512 + _padded(tmp_path) + 512


def _padded(folder):
    return -(-os.path.getsize(folder / "images/opt/paired0.png") // 512) * 512


def test_changed_images_are_packed_anew_and_the_old_shards_go(tmp_path):
    plain = make_index(tmp_path, paired=2)
    first = pack(plain, tmp_path / "packed")
    time.sleep(0.01)
    save(tmp_path / "images" / "opt" / "paired0.png", picture(77, 24))
    second = pack(plain, tmp_path / "packed")
    assert first.folder != second.folder and not first.folder.exists()
    location = open_index(tmp_path / "packed").location(0, "optical")
    assert np.array_equal(read_picture(location), picture(77, 24))


def test_missing_and_escaping_images_and_a_full_disk_leave_nothing(tmp_path, monkeypatch):
    plain = make_index(tmp_path, paired=2)
    (tmp_path / "images" / "sar" / "paired1.png").unlink()
    with pytest.raises(ShardError, match=r"sar/paired1\.png: No such file"):
        pack(plain, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    save(tmp_path / "secret.png", picture(0, 24, 1))
    (tmp_path / "images" / "sar" / "paired1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="outside the root"):
        pack(plain, tmp_path / "packed")
    (tmp_path / "images" / "sar" / "paired1.png").unlink()
    save(tmp_path / "images" / "sar" / "paired1.png", picture(0, 24, 1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(ShardError, match="No space left"):
        pack(plain, tmp_path / "packed")
    assert not [path for path in (tmp_path / "packed").iterdir() if not path.name.startswith(".")]


def test_loader_with_workers_reads_shards(tmp_path):
    plain = make_index(tmp_path, paired=6)
    pack(plain, tmp_path / "packed", shard_bytes=8_000)
    views = Views({m: View(modality=m, size=16) for m in ("optical", "sar")})
    seen = []
    for folder in (plain, tmp_path / "packed"):
        index = open_index(folder)
        sampler = PretrainSampler(index, global_batch=2, seed=0)
        loader = make_loader(PairDataset(index, views, seed=0), sampler, num_workers=2)
        seen.append([batch.images for batch in loader])
    assert len(seen[0]) == len(seen[1]) > 0
    for one, two in zip(*seen, strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_images_that_moved_are_packed_from_where_they_are(tmp_path, monkeypatch):
    plain = make_index(tmp_path, paired=2)
    before = _files(tmp_path / "images")
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(ShardError, match="does not exist; if they have moved, set CODEMAE_DATA_ROOTS="):
        pack(plain, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    monkeypatch.setenv("CODEMAE_DATA_ROOTS", f"{tmp_path}/images={tmp_path}/moved")
    packed = pack(plain, tmp_path / "packed")
    monkeypatch.delenv("CODEMAE_DATA_ROOTS")
    with tarfile.open(packed.folder / "000000.tar") as shard:
        held = {member.name: shard.extractfile(member).read() for member in shard}
    assert held == before
    assert open_index(tmp_path / "packed").location(0, "optical").offset is not None
