"""What strange images become when they are prepared and read for training."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import prepare
import pytest
import statistics_table
from data_makers import picture, save, save_geotiff
from normalization import OSPRETRAIN
from PIL import Image

from codemae.data.index import open_index
from codemae.data.labelled import LabelledImages
from codemae.data.statistics import IndexStatistics


def _prepared(root, out, modality="optical"):
    words = ["folder", "--root", root, "--modality", modality, "--out", out, "--workers", 1]
    assert prepare.main([str(word) for word in words]) == 0
    return LabelledImages(open_index(out), modality, 16)


def _palette(path):
    Image.fromarray(picture(0, 16)).quantize(8).save(path.with_suffix(".png"))


def _cmyk(path):
    Image.fromarray(picture(0, 16)).convert("CMYK").save(path.with_suffix(".jpg"))


def _sixteen(path):
    save(path.with_suffix(".png"), np.random.default_rng(0).integers(0, 60_000, (16, 16), dtype=np.uint16))


def _five(path):
    save_geotiff(path.with_suffix(".tif"), np.random.default_rng(0).random((16, 16, 5), dtype=np.float32))


def _array(path):
    np.save(
        path.with_suffix(".npy"), np.random.default_rng(0).integers(0, 4000, (13, 16, 16), dtype=np.uint16)
    )


@pytest.mark.parametrize(
    ("make", "channels", "rule"),
    [
        (_palette, 3, "uint8"),
        (_cmyk, 3, "uint8"),
        (_sixteen, 1, "linear"),
        (_five, 5, "linear"),
        (_array, 13, "linear"),
    ],
)
def test_odd_images_are_standardised_like_any_other(tmp_path, make, channels, rule):
    (tmp_path / "r" / "c").mkdir(parents=True)
    make(tmp_path / "r" / "c" / "a")
    (tmp_path / "r" / "c" / "empty.png").write_bytes(b"")
    images = _prepared(tmp_path / "r", tmp_path / "out")
    image, label, _ = images[0]
    assert (len(images), tuple(image.shape), label) == (1, (channels, 16, 16), 0)
    assert images.index.stats("r", "optical").scaling.rule == rule
    np.testing.assert_allclose(image.mean((1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(image.std((1, 2), correction=0), 1, atol=2e-3)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(entry["sample"], entry["kind"]) for entry in report["left_out"]] == [("c/empty", "unreadable")]


def test_ambiguous_radar_pixels_are_asked_about(tmp_path, capsys):
    values = np.random.default_rng(0).normal(0.1, 0.05, (16, 16, 1)).astype(np.float32)
    save_geotiff(tmp_path / "r" / "c" / "a.tif", values)
    words = [
        "folder",
        "--root",
        tmp_path / "r",
        "--modality",
        "sar",
        "--out",
        tmp_path / "out",
        "--workers",
        1,
    ]
    assert prepare.main([str(word) for word in words]) == 2
    assert "--sar-scaling linear" in capsys.readouterr().err
    assert prepare.main([*map(str, words), "--sar-scaling", "amplitude"]) == 0
    assert open_index(tmp_path / "out").stats("r", "sar").scaling.rule == "amplitude"


def test_table_has_the_published_format(tmp_path, capsys):
    published = {m: OSPRETRAIN["SpaceNet6"].of(m) for m in ("optical", "sar")}
    table = statistics_table.table(
        IndexStatistics(sources={"SpaceNet6": published, "b": {"sar": published["sar"]}})
    )
    assert table.splitlines() == [
        "| source | optical mean | optical std | SAR mean | SAR std |",
        "|---|---|---|---|---|",
        "| SpaceNet6 | .3712 .3928 .3576 | .1871 .1627 .1723 | .3552 | .2093 |",
        "| b | - | - | .3552 | .2093 |",
    ]
    save(tmp_path / "r" / "c" / "a.png", picture(0, 16))
    _prepared(tmp_path / "r", tmp_path / "out")
    capsys.readouterr()
    script = Path(statistics_table.__file__)
    run = [sys.executable, script, tmp_path / "out"]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    mean = " ".join(f"{value:.4f}"[1:] for value in picture(0, 16).reshape(-1, 3).mean(0) / 255)
    assert f"| r | {mean} |" in printed
    assert statistics_table.main([str(tmp_path)]) == 2
    assert "no stats.yaml" in capsys.readouterr().err
