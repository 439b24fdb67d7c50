"""Released weights by name, fetched from a mirror of one's own, resumed, and checked against their hash.

The environment variable CODEMAE_MIRROR names the mirror: a web address or a folder, with a ``manifest.yaml``:

    codemae_hivit_base:
      file: codemae_base_800ep.pth      # relative to the manifest
      sha256: 64 hexadecimal digits
      arch: hivit_base
      format: codemae                   # itpn, hivit, saratrx, codemae or encoder
      licence: Apache-2.0

Files are kept in CODEMAE_CACHE, by default ~/.cache/codemae.
"""

import difflib
import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import yaml
from filelock import FileLock

log = logging.getLogger(__name__)

MIRROR_VARIABLE, CACHE_VARIABLE = "CODEMAE_MIRROR", "CODEMAE_CACHE"
MANIFEST = "manifest.yaml"
FORMATS = ("itpn", "hivit", "saratrx", "codemae", "encoder")
CHUNK = 1 << 20


class DownloadError(OSError):
    """A file could not be fetched or is not what it should be; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """Weights that somebody published.

    Attributes:
        about: What they are, in a line.
        arch: Name for ``create_encoder``.
        format: Layout of the file.
        licence: Its terms.
        filename: Name on the mirror; from the manifest.
        sha256: From the manifest; a file is never used without it.
    """

    about: str
    arch: str
    format: str
    licence: str
    filename: str = ""
    sha256: str = ""


class Fetched(NamedTuple):
    """A release on disk."""

    path: Path
    release: Release


# The authors' own addresses are cloud-drive pages (CoDe-MAE: BaiduNetDisk) that no program can read, and they
# publish no hashes, so a mirror's manifest has to supply file name and sha256.
RELEASED: dict[str, Release] = {
    "codemae_hivit_base": Release(
        about="CoDe-MAE pretrained on OSPretrain-1M, the authors' release (BaiduNetDisk, see their README)",
        arch="hivit_base",
        format="codemae",
        licence="Apache-2.0; distilled from DINOv3-Sat, whose licence reaches it",
    ),
    "itpn_base_pixel": Release(
        about="iTPN-B pretrained on ImageNet pixels; CoDe-MAE's starting point",
        arch="hivit_base",
        format="itpn",
        licence="none stated",
    ),
    "hivit_base_mae": Release(
        about="HiViT-B, masked autoencoder on ImageNet",
        arch="hivit_base20",
        format="hivit",
        licence="MIT",
    ),
    "saratrx_hivit_base": Release(
        about="SARATR-X, HiViT-B pretrained on SAR targets",
        arch="hivit_base20",
        format="saratrx",
        licence="CC BY-NC 4.0",
    ),
}


def fetch_released(name: str) -> Fetched:
    """The file of a release, from the cache or the mirror.

    Raises:
        FileNotFoundError: Neither a release nor an entry of the mirror's manifest; names the nearest.
        DownloadError: No mirror is set, it cannot be reached, or the file is not the one the manifest names.
    """
    mirror = os.environ.get(MIRROR_VARIABLE, "")
    if cached := _cached(name):
        return cached
    manifest = read_manifest(mirror) if mirror else {}
    if name not in manifest:
        raise _unavailable(name, mirror, manifest)
    release = manifest[name]
    folder = _cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(release.filename).name
    with FileLock(folder / ".lock"):
        if not path.exists():
            fetch(_join(mirror, release.filename), path, release.sha256)
        (folder / "release.yaml").write_text(yaml.safe_dump(vars(release)))
    return Fetched(path, release)


def read_manifest(mirror: str) -> dict[str, Release]:
    """Reads a mirror's list of files.

    Raises:
        DownloadError: It cannot be read, or an entry lacks something or points outside the mirror.
    """
    address = _join(mirror, MANIFEST)
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            entries = yaml.safe_load(answer.read())
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise DownloadError(
            f"no readable manifest at {address} ({error}); correct {MIRROR_VARIABLE}"
        ) from error
    if not isinstance(entries, Mapping):
        raise DownloadError(f"{address} must map names to file, sha256, arch, format and licence")
    return {name: _entry(name, entry, address) for name, entry in entries.items()}


def fetch(url: str, path: Path, sha256: str, *, attempts: int = 5, timeout: float = 60.0) -> None:
    """Downloads a file; what a broken connection left behind is completed, not fetched again.

    Args:
        url: From where; http, https or file.
        path: Where to; meanwhile the bytes lie beside it with ``.part`` appended.
        sha256: What the complete file must hash to.
        attempts: How often to go on after a broken connection before giving up.
        timeout: Seconds without an answer that count as broken.

    Raises:
        DownloadError: Unreachable, still incomplete after all attempts (the part is kept), or of another
            hash (the part is removed).
    """
    part = path.with_name(path.name + ".part")
    problem = ""
    for _ in range(attempts):
        try:
            if _fetch_rest(url, part, timeout):
                break
            problem = "the connection closed early"
        except urllib.error.HTTPError as error:
            if error.code == 416:
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise DownloadError(
                    f"{url} answered {error.code} {error.reason}; check the mirror"
                ) from error
            problem = f"answered {error.code}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
    else:
        have = part.stat().st_size if part.exists() else 0
        raise DownloadError(
            f"{url}: {problem}; {have} bytes are kept in {part}, the same command goes on from there"
        )
    found = file_hash(part)
    if found != sha256.lower():
        part.unlink()
        raise DownloadError(
            f"{url} hashes to {found}, the manifest says {sha256}: refused and removed. "
            "Correct the manifest or the file on the mirror"
        )
    os.replace(part, path)


def _fetch_rest(url: str, part: Path, timeout: float) -> bool:
    """Appends what is missing; True once the size the server stated is reached."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        resumed = have > 0 and answer.status == 206
        length = answer.headers.get("Content-Length")
        total = None if length is None else int(length) + (have if resumed else 0)
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
    return total is None or part.stat().st_size == total


def _cached(name: str) -> Fetched | None:
    """A release fetched before, if its file still hashes to what it did."""
    description = _cache() / name / "release.yaml"
    if not description.is_file():
        return None
    release = Release(**yaml.safe_load(description.read_text()))
    path = description.parent / Path(release.filename).name
    if path.is_file() and file_hash(path) == release.sha256.lower():
        return Fetched(path, release)
    log.warning("%s is missing or has changed since it was fetched; fetching it again", path)
    path.unlink(missing_ok=True)
    return None


def _unavailable(name: str, mirror: str, manifest: Mapping[str, Release]) -> OSError:
    names = [*RELEASED, *manifest]
    if name not in RELEASED:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return FileNotFoundError(
            f"{name!r} is neither a file nor released weights{hint}. Known: {', '.join(sorted(set(names)))}"
        )
    where = f"the mirror {mirror} does not list it" if mirror else f"{MIRROR_VARIABLE} is not set"
    return DownloadError(
        f"{name} ({RELEASED[name].about}): {where}. Its authors publish it on cloud drives only: download it "
        f"by hand and pass the file, or put it on a mirror with a {MANIFEST} and set {MIRROR_VARIABLE}"
    )


def _entry(name: str, entry: object, address: str) -> Release:
    if not isinstance(entry, Mapping) or not {"file", "sha256", "arch", "format"} <= set(entry):
        raise DownloadError(f"{address}: entry {name!r} needs file, sha256, arch and format")
    if not re.fullmatch(r"[\w.-]+", str(name)) or str(name).startswith("."):
        raise DownloadError(f"{address}: {name!r} is no name; use letters, digits, dots, dashes")
    file, sha256 = str(entry["file"]), str(entry["sha256"])
    if file.startswith("/") or ".." in file.split("/") or urlsplit(file).scheme:
        raise DownloadError(f"{address}: the file of {name!r} leaves the mirror: {file}")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise DownloadError(f"{address}: the sha256 of {name!r} is not 64 hexadecimal digits")
    if entry["format"] not in FORMATS:
        raise DownloadError(f"{address}: unknown format {entry['format']!r} of {name!r}; known: {FORMATS}")
    return Release(
        about=str(entry.get("about", f"from {address}")),
        arch=str(entry["arch"]),
        format=str(entry["format"]),
        licence=str(entry.get("licence", "none stated")),
        filename=file,
        sha256=sha256,
    )


def _join(mirror: str, name: str) -> str:
    base = mirror if urlsplit(mirror).scheme in ("http", "https", "file") else Path(mirror).resolve().as_uri()
    return urljoin(base.rstrip("/") + "/", quote(name))


def _cache() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "codemae")


def file_hash(path: str | Path) -> str:
    """sha256 of a file, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
