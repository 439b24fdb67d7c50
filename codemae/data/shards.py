"""Packs the images of an index into uncompressed tar shards that any tar program reads.

    OUT/index.parquet, stats.yaml          rows as before; optical and sar read "000000.tar/opt/a.png", with
                                           the offset and size of the member's bytes
    OUT/shards-3f2a9c01d5b7/000000.tar     members under their paths relative to the old root
    OUT/shards-3f2a9c01d5b7/mask/a.png     masks and second dates, copied: the index has no offsets for them

The folder is named after what is in it, is filled under a hidden name and appears by one renaming, and the
index is replaced last: whatever interrupts, OUT holds the index it held before or the new one, whole. Shards
finished before an interruption are kept, and the same call goes on after them.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from codemae.data.images import resolve_inside
from codemae.data.index_file import (
    FILE_NAME,
    ROOTS_VARIABLE,
    SHARD_COLUMNS,
    current_root,
    map_index,
    write_index,
)
from codemae.data.statistics import read_statistics
from codemae.modality import MODALITY_NAMES

SHARD_BYTES = 1_000_000_000
_COPIED = ("mask", "post")
_NAME = "shards-"
_STAGING = ".packing-"

PathLike = str | os.PathLike[str]


class ShardError(ValueError):
    """An index cannot be packed, or a shard is not what it should be."""


@dataclass(frozen=True, slots=True)
class _File:
    relative: str
    path: str
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing made.

    Attributes:
        folder: Folder of the shards, the root of the index.
        shards: How many there are.
        images: How many images they hold.
        copied: How many masks and second dates lie beside them.
        size: Bytes of the images.
    """

    folder: Path
    shards: int
    images: int
    copied: int
    size: int


def pack(
    index_dir: PathLike,
    out: PathLike,
    shard_bytes: int = SHARD_BYTES,
    root: PathLike | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Packed:
    """Packs an index's images, each file once, in the order of the rows, a pair's two sides together.

    Args:
        index_dir: The index, of plain files.
        out: Folder of the packed index; may be ``index_dir`` itself. Plain files stay where they are.
        shard_bytes: A shard is closed before it would pass this size; a larger image has one for itself.
        root: Where the images are now, if they have moved; else the recorded root, after the replacements in
            the environment variable ``CODEMAE_DATA_ROOTS``.
        advance: Told the bytes packed and all bytes after each shard.

    Raises:
        ShardError: The index is packed already, its root is gone, an image is missing or changes meanwhile,
            or another process packs into the same folder.
        PathError: A path leaves the root.
    """
    source, target = Path(index_dir), Path(out)
    if shard_bytes < 1:
        raise ShardError(f"a shard needs at least one byte, got {shard_bytes}")
    mapped = map_index(source)
    base = str(root) if root is not None else current_root(mapped)
    if not os.path.isdir(base):
        raise ShardError(
            f"the images of {source} should lie in {base!r}, which does not exist; if they have moved, set "
            f"{ROOTS_VARIABLE}={base}=NEW_PLACE or give --root NEW_PLACE"
        )
    rows = pq.read_table(source / FILE_NAME)
    if any(rows.column(name).null_count < rows.num_rows for name in SHARD_COLUMNS):
        raise ShardError(f"{source} is packed already")
    statistics = read_statistics(source)
    images = [_looked_at(base, path) for path in _paths(rows, MODALITY_NAMES)]
    copied = [_looked_at(base, path) for path in _paths(rows, _COPIED)]
    name = _NAME + _fingerprint(images, copied, shard_bytes)
    target.mkdir(parents=True, exist_ok=True)
    final, staging = target / name, target / f"{_STAGING}{name}"
    try:
        with FileLock(target / ".packing.lock", timeout=0):
            if not final.is_dir():
                staging.mkdir(exist_ok=True)
                _fill(staging, images, copied, shard_bytes, advance)
                _flush(staging)
                os.rename(staging, final)
                _flush(target)
            places = _places(final, images, shard_bytes)
            if source.resolve() != target.resolve():
                _copy_beside(source, target)
            write_index(target, _packed_rows(rows, places), statistics, final)
            for old in target.iterdir():
                if old != final and old.name.startswith((_NAME, _STAGING)):
                    shutil.rmtree(old)
    except Timeout:
        raise ShardError(f"another process packs into {target}; wait for it") from None
    return Packed(
        folder=final,
        shards=sum(1 for _ in _groups(images, shard_bytes)),
        images=len(images),
        copied=len(copied),
        size=sum(file.size for file in images),
    )


def _paths(rows: pa.Table, columns: Sequence[str]) -> list[str]:
    """Distinct paths of the columns, in the order of the rows."""
    found: dict[str, None] = {}
    for batch in rows.select(list(columns)).to_batches():
        for paths in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            found.update(dict.fromkeys(path for path in paths if path is not None))
    return list(found)


def _looked_at(root: str, relative: str) -> _File:
    path = resolve_inside(root, relative)
    try:
        status = os.stat(path)
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; prepare the index again") from None
    return _File(relative, path, status.st_size, status.st_mtime_ns)


def _fingerprint(images: Sequence[_File], copied: Sequence[_File], shard_bytes: int) -> str:
    digest = hashlib.sha256(f"{shard_bytes}:{len(images)}".encode())
    for file in (*images, *copied):
        digest.update(f"\0{file.relative}\0{file.size}\0{file.modified}".encode())
    return digest.hexdigest()[:12]


def _groups(images: Sequence[_File], shard_bytes: int) -> Iterator[tuple[str, list[_File]]]:
    """Name and files of each shard."""
    group: list[_File] = []
    size = number = 0
    for file in images:
        length = 512 + -(-file.size // 512) * 512
        if group and size + length > shard_bytes:
            yield f"{number:06d}.tar", group
            group, size, number = [], 0, number + 1
        group.append(file)
        size += length
    if group:
        yield f"{number:06d}.tar", group


def _fill(
    staging: Path,
    images: Sequence[_File],
    copied: Sequence[_File],
    shard_bytes: int,
    advance: Callable[[int, int], None],
) -> None:
    total, done = sum(file.size for file in images), 0
    for name, group in _groups(images, shard_bytes):
        if not (staging / name).exists():
            _write_shard(staging / name, group)
        done += sum(file.size for file in group)
        advance(done, total)
    for file in copied:
        place = staging / file.relative
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(file.path, place)
        except OSError as error:
            raise ShardError(f"{file.path}: {error.strerror or error}") from None


def _write_shard(path: Path, files: Sequence[_File]) -> None:
    part = path.with_name(path.name + ".part")
    with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as shard:
        for file in files:
            member = tarfile.TarInfo(file.relative)
            member.size, member.mtime, member.mode = file.size, file.modified // 10**9, 0o644
            try:
                with open(file.path, "rb") as content:
                    status = os.fstat(content.fileno())
                    if (status.st_size, status.st_mtime_ns) != (file.size, file.modified):
                        raise ShardError(f"{file.path} has changed while it was packed; begin again")
                    shard.addfile(member, content)
            except OSError as error:
                raise ShardError(f"packing {file.path} into {path}: {error.strerror or error}") from None
    _flush(part)
    os.replace(part, path)


def _places(folder: Path, images: Sequence[_File], shard_bytes: int) -> dict[str, tuple[str, int, int]]:
    """Path of each image to its packed path, offset and size, as the shards themselves say."""
    places = {}
    for name, group in _groups(images, shard_bytes):
        try:
            with tarfile.open(folder / name, "r:") as shard:
                members = [(member.name, member.offset_data, member.size) for member in shard]
        except (OSError, tarfile.TarError) as error:
            raise ShardError(
                f"{folder / name} is damaged ({error}); delete {folder} and pack again"
            ) from None
        if [(name, size) for name, _, size in members] != [(file.relative, file.size) for file in group]:
            raise ShardError(f"{folder / name} does not hold what it should; delete {folder} and pack again")
        for relative, offset, size in members:
            places[relative] = f"{name}/{relative}", offset, size
    return places


def _packed_rows(rows: pa.Table, places: dict[str, tuple[str, int, int]]) -> pa.Table:
    for modality in MODALITY_NAMES:
        found = [None if path is None else places[path] for path in rows.column(modality).to_pylist()]
        for place, (column, kind) in enumerate(
            ((modality, pa.string()), (f"{modality}_offset", pa.int64()), (f"{modality}_size", pa.int64()))
        ):
            values = pa.array([None if each is None else each[place] for each in found], kind)
            rows = rows.set_column(rows.schema.get_field_index(column), column, values)
    return rows


def _copy_beside(source: Path, target: Path) -> None:
    """Reports, lists and annotations of an index, which name samples and not places."""
    for entry in source.iterdir():
        if entry.name == "annotations" and entry.is_dir():
            shutil.copytree(entry, target / entry.name, dirs_exist_ok=True)
        elif entry.is_file() and not entry.name.startswith((".", "index.", "stats.")):
            shutil.copyfile(entry, target / entry.name)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
