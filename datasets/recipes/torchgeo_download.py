"""Fetches a dataset through torchgeo, where that is installed and knows it.

Files are fetched into a hidden folder beside the root and get the root's name when all of them are there and
their checksums hold, so a root is complete or absent. What an interrupted download has left is used by the
next one: whole archives are kept, the one that was cut off is fetched again. What was unpacked from them is
not kept, because torchgeo takes a folder that is there for one that is complete. Tried with torchgeo 0.8.1.
"""

import hashlib
import importlib
import inspect
import lzma
import os
import re
import shutil
import tarfile
import typing
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from codemae.data.images import PathError, check_relative
from recipes.plan import PrepareError

INSTALL = 'pip install "codemae[torchgeo]"'
_SPLIT_LISTS = ("splits", "splits_metadata", "split_urls", "split_filenames", "valid_aois", "md5s")
_ARCHIVE = re.compile(r"\.(zip|rar|7z|tar|tgz|tbz2?|txz|gz|bz2|xz)(\.?part\w*|[a-z]{2})?$", re.IGNORECASE)


def download(name: str, torchgeo_class: str | None, root: Path, get: str) -> str:
    """Fills a root that does not exist yet.

    Args:
        name: Name of the card, for messages.
        torchgeo_class: Class of ``torchgeo.datasets`` the card names, if any; after a colon the splits to
            fetch, as in ``FAIR1M:train,val``; all of them without.
        root: Where to; a folder that holds something is taken as it is.
        get: How else the dataset can be had.

    Returns:
        What was done, in a line.

    Raises:
        PrepareError: torchgeo is missing, does not know the dataset or cannot fetch all of it, hashes
            included. No root is made then.
    """
    if torchgeo_class is None:
        raise PrepareError(f"{name} cannot be downloaded by a program (--download). {get}")
    if root.is_dir() and any(root.iterdir()):
        return f"{root} is there already; nothing was downloaded"
    try:
        datasets = importlib.import_module("torchgeo.datasets")
    except ImportError as error:
        raise PrepareError(f"--download needs torchgeo ({error}): {INSTALL}. Or by hand: {get}") from None
    torchgeo_class, _, chosen_splits = torchgeo_class.partition(":")
    dataset = getattr(datasets, torchgeo_class, None)
    if dataset is None:
        raise PrepareError(f"this torchgeo has no dataset {torchgeo_class}; update it: {INSTALL} --upgrade")
    splits = _splits(name, dataset, get)
    if chosen_splits:
        wanted = chosen_splits.split(",")
        if not set(wanted) <= set(splits):
            raise PrepareError(f"torchgeo's {torchgeo_class} has the splits {splits}, not {wanted}; {get}")
        splits = list(wanted)
    root = root.absolute()
    staging = root.parent / f".downloading-{root.name}"
    staging.mkdir(parents=True, exist_ok=True)
    resumed = any(staging.iterdir())
    _keep_archives(staging)
    options: dict[str, Any] = {"root": str(staging), "download": True, "checksum": True}
    with _refusing_archives():
        for split in splits:
            chosen = {} if split is None else {"split": split}
            _fetch(name, partial(dataset, **options, **chosen), staging, resumed)
    _check_links(staging)
    _check_hashes(name, dataset, staging)
    if root.is_dir():
        root.rmdir()
    os.rename(staging, root)
    which = ", ".join(split for split in splits if split) or "all that torchgeo offers"
    return f"downloaded {torchgeo_class} ({which}) to {root}"


def _splits(name: str, dataset: Any, get: str) -> list[str | None]:
    """Every split that has to be asked for; a single None where the class knows none.

    Raises:
        PrepareError: The class cannot download, cannot check hashes, or does not say its splits.
    """
    parameters = inspect.signature(dataset).parameters
    lacking = [option for option in ("root", "download", "checksum") if option not in parameters]
    if lacking:
        raise PrepareError(
            f"torchgeo's {dataset.__name__} has no option {' or '.join(lacking)}, so {name} cannot be "
            f"downloaded and checked through it. {get}"
        )
    if "split" not in parameters:
        return [None]
    usual = parameters["split"].default
    for attribute in _SPLIT_LISTS:
        known = getattr(dataset, attribute, None)
        if isinstance(known, (list, tuple, Mapping)) and usual in known:
            return [str(split) for split in known]
    annotation = typing.get_type_hints(dataset.__init__).get("split")
    if typing.get_origin(annotation) is typing.Literal:
        return [str(split) for split in typing.get_args(annotation)]
    raise PrepareError(
        f"torchgeo's {dataset.__name__} does not say which splits it has, so its download could be partial. "
        f"{get}"
    )


def _fetch(name: str, construct: Callable[[], object], staging: Path, resumed: bool) -> None:
    """Lets torchgeo fetch and check one split; a file cut off earlier is removed and fetched once more."""
    for attempt in (1, 2):
        try:
            construct()
            return
        except PathError as error:
            shutil.rmtree(staging)
            raise PrepareError(f"an archive of {name} was refused and removed: {error}") from None
        except Exception as error:  # torchgeo raises what its libraries raise
            damaged = _newest_archive(staging) if _is_damage(error) else None
            if damaged is not None:
                damaged.unlink()
            elif resumed and isinstance(error, FileNotFoundError) and attempt == 1:
                # An earlier run stopped between an archive and a list that torchgeo fetches only with it.
                shutil.rmtree(staging)
                staging.mkdir()
                continue
            if damaged is None or attempt == 2:
                removed = f"; {damaged.name} was removed" if damaged else ""
                raise PrepareError(
                    f"downloading {name} failed ({type(error).__name__}: {error}){removed}. The same command "
                    f"goes on from the files in {staging}"
                ) from None
            _keep_archives(staging)


def _is_damage(error: Exception) -> bool:
    words = str(error).lower()
    known = ("corrupt", "checksum", "md5", "not a zip file", "truncated", "end-of-stream", "end of data")
    return isinstance(
        error, (EOFError, tarfile.ReadError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
    ) or any(word in words for word in known)


def _archives(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and _ARCHIVE.search(path.name)]


def _newest_archive(folder: Path) -> Path | None:
    files = _archives(folder) or [path for path in folder.iterdir() if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


def _keep_archives(folder: Path) -> None:
    """Removes all but the archives and the files beside them at the top."""
    kept = {*_archives(folder), *(path for path in folder.iterdir() if not path.is_dir())}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            if path not in kept:
                path.unlink()
        elif not any(path.iterdir()):
            path.rmdir()


def _check_hashes(name: str, dataset: Any, folder: Path) -> None:
    """Refuses an archive whose MD5 the class does not name: not every class looks at what it has fetched.

    An archive that the class put together from parts is not looked at, its parts are.

    Raises:
        PrepareError: There is one; it is removed.
    """
    known = set(_md5s(vars(dataset)))
    for path in _archives(folder) if known else ():
        if any(path.parent.glob(f"{path.name}.part*")):
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5") if hasattr(hashlib, "file_digest") else _md5(file)
        if found.hexdigest() not in known:
            path.unlink()
            raise PrepareError(
                f"{path.name} of {name} has the MD5 {found.hexdigest()}, which torchgeo does not name; it "
                "was removed. The same command fetches it again"
            )


def _md5(file: Any) -> Any:
    """The digest of an open file on Python 3.10."""
    found = hashlib.md5()
    while block := file.read(1 << 20):
        found.update(block)
    return found


def _md5s(plain: Any) -> Iterator[str]:
    """Every text of 32 hexadecimal digits in nested mappings and lists."""
    if isinstance(plain, str):
        if re.fullmatch("[0-9a-f]{32}", plain):
            yield plain
    elif isinstance(plain, Mapping):
        for value in plain.values():
            yield from _md5s(value)
    elif isinstance(plain, (list, tuple)):
        for value in plain:
            yield from _md5s(value)


@contextmanager
def _refusing_archives() -> Iterator[None]:
    """While it lasts, no tar archive unpacks a path that is absolute, climbs, or links out of its folder."""
    if not hasattr(tarfile, "data_filter"):
        raise PrepareError("this Python cannot refuse hostile archives; update it (3.10.12, 3.11.4 or later)")
    before = tarfile.TarFile.extraction_filter

    def refuse(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        check_relative(member.name)
        try:
            return tarfile.data_filter(member, folder)
        except tarfile.FilterError as error:
            raise PathError(str(error)) from None

    tarfile.TarFile.extraction_filter = staticmethod(refuse)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _check_links(folder: Path) -> None:
    """Refuses links out of the folder, which archives of other kinds may have made."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            shutil.rmtree(folder)
            raise PrepareError(f"the download had a link out of its folder, {path.name}; refused and removed")
