import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from foreign_files import SIDE, itpn_file

from codemae import downloads
from codemae.checkpoint import WeightsError
from codemae.downloads import file_hash
from codemae.models.factory import load_encoder

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Mirror(ThreadingHTTPServer):
    """Serves files from memory, cuts connections off where told, and remembers what was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []  # bytes of the body after which to hang up, one entry an answer
        self.ignores_range = False
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights"

    def add(self, name: str, file: str, content: bytes, **entry: str) -> None:
        self.files[f"/weights/{file}"] = content
        fields = {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "arch": "hivit_tiny"} | entry
        manifest = yaml.safe_load(self.files.get("/weights/manifest.yaml", b"{}"))
        manifest[name] = {"format": "itpn"} | fields
        self.files["/weights/manifest.yaml"] = yaml.safe_dump(manifest).encode()


class Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        if self.path not in self.server.files:
            self.send_error(404)
            return
        content, start = self.server.files[self.path], 0
        wanted = self.headers.get("Range")
        if not self.path.endswith("manifest.yaml"):
            self.server.ranges.append(wanted)
        if wanted and not self.server.ignores_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut_after and not self.path.endswith("manifest.yaml"):
            body = body[: self.server.cut_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("CODEMAE_MIRROR", server.address)
    monkeypatch.setenv("CODEMAE_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_release_is_fetched_checked_and_then_read_from_the_cache_offline(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.add("ours", "ours.bin", CONTENT, licence="MIT")
    fetched = downloads.fetch_released("ours")
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.release.arch, fetched.release.licence) == ("hivit_tiny", "MIT")
    monkeypatch.delenv("CODEMAE_MIRROR")
    assert downloads.fetch_released("ours").path == fetched.path
    assert mirror.ranges == [None]


def test_a_broken_connection_is_resumed_where_it_broke(mirror: Mirror) -> None:
    mirror.add("ours", "ours.bin", CONTENT)
    mirror.cut_after = [300_000, 500_000]
    assert downloads.fetch_released("ours").path.read_bytes() == CONTENT
    assert mirror.ranges == [None, "bytes=300000-", "bytes=800000-"]


def test_a_download_given_up_is_completed_by_the_next_call(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/weights/ours.bin"] = CONTENT
    mirror.cut_after = [100_000, 100_000]
    url, path = f"{mirror.address}/ours.bin", tmp_path / "ours.bin"
    digest = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(downloads.DownloadError, match="200000 bytes are kept"):
        downloads.fetch(url, path, digest, attempts=2)
    assert not path.exists()
    assert (tmp_path / "ours.bin.part").stat().st_size == 200_000
    downloads.fetch(url, path, digest)
    assert path.read_bytes() == CONTENT
    assert not (tmp_path / "ours.bin.part").exists()


def test_a_server_that_ignores_ranges_is_read_from_the_start(mirror: Mirror) -> None:
    mirror.add("ours", "ours.bin", CONTENT)
    mirror.cut_after, mirror.ignores_range = [300_000], True
    assert downloads.fetch_released("ours").path.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_started_over(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["/weights/ours.bin"] = CONTENT
    (tmp_path / "ours.bin.part").write_bytes(CONTENT + b"left over")
    downloads.fetch(f"{mirror.address}/ours.bin", tmp_path / "ours.bin", hashlib.sha256(CONTENT).hexdigest())
    assert (tmp_path / "ours.bin").read_bytes() == CONTENT


def test_a_wrong_hash_is_refused_and_nothing_is_left(mirror: Mirror, tmp_path: Path) -> None:
    mirror.add("ours", "ours.bin", CONTENT)
    mirror.files["/weights/ours.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(downloads.DownloadError, match="refused and removed"):
        downloads.fetch_released("ours")
    assert [p.name for p in (tmp_path / "cache" / "ours").iterdir() if p.name != ".lock"] == []


def test_a_file_changed_in_the_cache_is_fetched_again(mirror: Mirror) -> None:
    mirror.add("ours", "ours.bin", CONTENT)
    path = downloads.fetch_released("ours").path
    path.write_bytes(b"bit rot")
    assert downloads.fetch_released("ours").path.read_bytes() == CONTENT


@pytest.mark.parametrize("file", ["../outside.bin", "/etc/passwd", "a/../../b", "http://elsewhere/x"])
def test_a_manifest_cannot_point_outside_its_mirror(mirror: Mirror, file: str) -> None:
    mirror.add("ours", file, CONTENT)
    with pytest.raises(downloads.DownloadError, match="leaves the mirror"):
        downloads.fetch_released("ours")


@pytest.mark.parametrize("name", ["../ours", ".hidden", "a/b"])
def test_a_manifest_name_cannot_leave_the_cache(mirror: Mirror, name: str) -> None:
    mirror.add(name, "ours.bin", CONTENT)
    with pytest.raises(downloads.DownloadError, match="is no name"):
        downloads.fetch_released("ours")


def test_a_manifest_without_a_hash_is_refused(mirror: Mirror) -> None:
    mirror.add("ours", "ours.bin", CONTENT, sha256="unknown")
    with pytest.raises(downloads.DownloadError, match="not 64 hexadecimal digits"):
        downloads.fetch_released("ours")


def test_without_a_mirror_the_error_says_where_the_weights_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CODEMAE_MIRROR", raising=False)
    monkeypatch.setenv("CODEMAE_CACHE", str(tmp_path))
    with pytest.raises(downloads.DownloadError, match=r"BaiduNetDisk.*CODEMAE_MIRROR is not set"):
        downloads.fetch_released("codemae_hivit_base")
    with pytest.raises(FileNotFoundError, match="did you mean 'codemae_hivit_base'"):
        downloads.fetch_released("codemae_hivit_bas")


def test_a_folder_serves_as_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "ours.bin").write_bytes(CONTENT)
    entry = {"file": "ours.bin", "sha256": hashlib.sha256(CONTENT).hexdigest(), "arch": "a", "format": "itpn"}
    (tmp_path / "shelf" / "manifest.yaml").write_text(yaml.safe_dump({"ours": entry}))
    monkeypatch.setenv("CODEMAE_MIRROR", str(tmp_path / "shelf"))
    monkeypatch.setenv("CODEMAE_CACHE", str(tmp_path / "cache"))
    assert downloads.fetch_released("ours").path.read_bytes() == CONTENT


def test_load_encoder_by_released_name(mirror: Mirror, tmp_path: Path) -> None:
    state = itpn_file()
    torch.save({"model": state}, tmp_path / "itpn.pth")
    mirror.add("itpn_base_pixel", "itpn.pth", (tmp_path / "itpn.pth").read_bytes())
    encoder = load_encoder("itpn_base_pixel")
    assert encoder.pooled(torch.zeros(1, 3, SIDE, SIDE), "optical").shape == (1, 192)
    assert torch.equal(encoder.state_dict()["absolute_pos_embed"], state["absolute_pos_embed"])


def test_a_downloaded_page_in_place_of_weights_is_refused(mirror: Mirror) -> None:
    mirror.add("page", "page.pth", b"<html>log in first</html>")
    with pytest.raises(WeightsError, match="damaged"):
        load_encoder("page")


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert file_hash(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
