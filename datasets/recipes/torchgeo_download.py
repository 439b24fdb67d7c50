"""Fetches a dataset through torchgeo, where that is installed and knows it.

Files are fetched into a hidden folder beside the root and get the root's name when all of them are there and
their checksums hold, so a root is complete or absent. What an interrupted download has left is used by the
next one: whole files are kept, the one that was cut off is fetched again.
"""

import importlib
import inspect
import os
import shutil
import tarfile
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from codemae.data.images import PathError, check_relative
from recipes.plan import PrepareError

INSTALL = 'pip install "codemae[torchgeo]"'
_SPLIT_LISTS = ("splits", "splits_metadata", "split_urls", "split_filenames")


def download(name: str, torchgeo_class: str | None, root: Path, get: str) -> str:
    """Fills a root that does not exist yet.

    Args:
        name: Name of the card, for messages.
        torchgeo_class: Class of ``torchgeo.datasets`` the card names, if any.
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
    dataset = getattr(datasets, torchgeo_class, None)
    if dataset is None:
        raise PrepareError(f"this torchgeo has no dataset {torchgeo_class}; update it: {INSTALL} --upgrade")
    splits = _splits(name, dataset, get)
    root = root.absolute()
    staging = root.parent / f".downloading-{root.name}"
    staging.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"root": str(staging), "download": True, "checksum": True}
    with _refusing_archives():
        for split in splits:
            chosen = {} if split is None else {"split": split}
            _fetch(name, partial(dataset, **options, **chosen), staging)
    _check_links(staging)
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
    for attribute in _SPLIT_LISTS:
        known = getattr(dataset, attribute, None)
        if isinstance(known, (list, tuple, Mapping)) and known:
            return [str(split) for split in known]
    annotation = typing.get_type_hints(dataset.__init__).get("split")
    if typing.get_origin(annotation) is typing.Literal:
        return [str(split) for split in typing.get_args(annotation)]
    raise PrepareError(
        f"torchgeo's {dataset.__name__} does not say which splits it has, so its download could be partial. "
        f"{get}"
    )


def _fetch(name: str, construct: Callable[[], object], staging: Path) -> None:
    """Lets torchgeo fetch and check one split; a file cut off earlier is removed and fetched once more."""
    for attempt in (1, 2):
        try:
            construct()
            return
        except PathError as error:
            shutil.rmtree(staging)
            raise PrepareError(f"an archive of {name} was refused and removed: {error}") from None
        except Exception as error:  # torchgeo raises what its libraries raise
            damaged = _newest(staging) if _is_damage(error) else None
            if damaged is not None:
                damaged.unlink()
            if damaged is None or attempt == 2:
                removed = f"; {damaged.name} was removed" if damaged else ""
                raise PrepareError(
                    f"downloading {name} failed ({type(error).__name__}: {error}){removed}. The same command "
                    f"goes on from the files in {staging}"
                ) from None


def _is_damage(error: Exception) -> bool:
    words = str(error).lower()
    return any(word in words for word in ("corrupt", "checksum", "md5", "not a zip file", "truncated"))


def _newest(folder: Path) -> Path | None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime_ns, default=None)


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
