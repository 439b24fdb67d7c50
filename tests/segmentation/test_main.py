import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from data_makers import picture, save
from rasterio.transform import from_origin
from safetensors.torch import load_file

pytest.importorskip("mmseg")

from mm.encoder_data import encoder_file  # noqa: E402
from mm.segmentation_data import make_scenes  # noqa: E402
from segmentation.conftest import CONFIGS  # noqa: E402

from codemae.evaluation.card import Card  # noqa: E402
from codemae.mm.checkpoints import read_mm_checkpoint  # noqa: E402

pytestmark = pytest.mark.mm
CONFIG = str(CONFIGS / "upernet_hivit-tiny_1xb8-800_ombria-both-128x128.py")
SMALL = [
    "train_cfg.max_iters=2",
    "train_dataloader.batch_size=2",
    "model.data_preprocessor.size=(64,64)",
    "train_dataloader.dataset.pipeline.1.crop_size=(64,64)",
    "train_dataloader.dataset.pipeline.0.scale=(64,64)",
    "test_dataloader.dataset.split=test",
    "tiling.window=64",
    "tiling.overlap=16",
    "tiling.panel=64",
]


def geotiff(
    path: Path, pixels: np.ndarray, nodata: float | None = None, crs: str | None = "EPSG:32632"
) -> Path:
    height, width, bands = pixels.shape
    profile: dict[str, Any] = {"driver": "GTiff", "height": height, "width": width, "count": bands}
    profile |= {"dtype": pixels.dtype, "nodata": nodata, "crs": crs, "transform": from_origin(4e5, 5e6, 2, 2)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def run(script: ModuleType, *words: str, options: list[str] = SMALL) -> int:
    return int(script.main([*words, "--cfg-options", *options]))


def test_train_test_and_infer(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMBRIA_INDEX", str(make_scenes(tmp_path / "data")))
    folder = tmp_path / "run"
    assert run(script, "train", CONFIG, "--encoder", "random:hivit_tiny", "--work-dir", str(folder)) == 0
    card = Card.load(folder)
    assert card.task == "segmentation" and card.modality == "both" and card.encoder == "random:hivit_tiny"
    assert card.settings["batch"] == 2 and "batch_per_process" not in card.settings
    assert card.metrics["mean_f1"][0] > 0 and "iou_class 1" in card.metrics
    assert f"mean iou {card.mean:.2f}" in capsys.readouterr().out.splitlines()[-1]
    assert "| class 1 |" in (folder / "classes.md").read_text()
    assert (folder / "examples.png").stat().st_size > 10_000

    (folder / "results.json").unlink()
    other_batch = [*SMALL, "train_dataloader.batch_size=1"]
    assert run(script, "test", CONFIG, "--work-dir", str(folder), options=other_batch) == 0
    again = json.loads((folder / "results.json").read_text())
    assert again["values"] == card.values and again["checkpoint_hash"] == card.checkpoint_hash
    assert again["settings"] == card.settings

    optical = geotiff(tmp_path / "optical.tif", picture(1, (100, 150)), nodata=0)
    with rasterio.open(optical, "r+") as file:
        pixels = file.read().clip(1)
        pixels[:, :10, :20] = 0
        file.write(pixels)
    sar = geotiff(tmp_path / "sar.tif", picture(2, (100, 150), 1)[..., None])
    words = ("infer", CONFIG, str(optical), "--sar", str(sar), "--work-dir", str(folder), "--probabilities")
    assert run(script, *words) == 0
    with rasterio.open(folder / "optical_classes.tif") as file, rasterio.open(optical) as source:
        assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
        assert file.nodata == 255
        classes = file.read(1)
    assert (classes[:10, :20] == 255).all() and set(np.unique(classes)) <= {0, 1, 255}
    assert (classes == 255).sum() == 200
    with rasterio.open(folder / "optical_classes_probabilities.tif") as file:
        shares = file.read()
    assert np.isnan(shares[:, :10, :20]).all()
    valid = classes != 255
    np.testing.assert_allclose(shares.sum(axis=0)[valid], 1, atol=1e-5)
    np.testing.assert_array_equal(shares.argmax(axis=0)[valid], classes[valid])

    capsys.readouterr()
    assert run(script, "infer", CONFIG, str(optical), "--work-dir", str(folder)) == 2
    assert "add --sar SCENE" in capsys.readouterr().err
    plain = save(tmp_path / "plain.png", picture(3, (70, 80)))
    other = save(tmp_path / "plain_sar.png", picture(4, (70, 80), 1))
    words = ("infer", CONFIG, str(plain), "--sar", str(other), "--work-dir", str(folder))
    assert run(script, *words) == 0
    assert "no coordinate system, so neither has the map" in capsys.readouterr().err
    with rasterio.open(folder / "plain_classes.tif") as file:
        assert file.crs is None and file.shape == (70, 80)


@pytest.mark.slow
def test_two_encoder_files_are_trained_tested_and_applied_without_them(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMBRIA_INDEX", str(make_scenes(tmp_path / "data")))
    optical = encoder_file(tmp_path, name="encoder_optical", seed=1, channels={"optical": 3})
    sar = encoder_file(tmp_path, name="encoder_sar", seed=2, channels={"sar": 1})
    folder, names = tmp_path / "run", f"{optical},{sar}"
    options = [*SMALL, "optim_wrapper.optimizer.lr=0"]
    words = ("train", CONFIG, "--encoder", names, "--work-dir", str(folder))
    assert run(script, *words, options=options) == 0
    card = Card.load(folder)
    assert card.encoder == names and card.modality == "both"
    state = read_mm_checkpoint(folder / "iter_2.pth")["state_dict"]
    for path, modality in ((optical, "optical"), (sar, "sar")):
        for key, value in load_file(path).items():
            if not key.startswith("patch_embed."):
                assert torch.equal(state[f"backbone.encoder.encoders.{modality}.{key}"], value)
    optical.unlink()
    sar.unlink()

    (folder / "results.json").unlink()
    assert run(script, "test", CONFIG, "--work-dir", str(folder)) == 0
    again = Card.load(folder)
    assert (again.values, again.checkpoint_hash) == (card.values, card.checkpoint_hash)
    scenes = [str(save(tmp_path / f"{n}.png", picture(n, (70, 80), 3 - 2 * n))) for n in (0, 1)]
    assert run(script, "infer", CONFIG, scenes[0], "--sar", scenes[1], "--work-dir", str(folder)) == 0
    with rasterio.open(folder / "0_classes.tif") as file:
        assert set(np.unique(file.read(1))) <= {0, 1}


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_unbroken_one_does(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMBRIA_INDEX", str(make_scenes(tmp_path / "data")))
    # What is drawn anew after a resumption is left out: crops, flips and dropout.
    still = ["0.ratio_range=(1.0,1.0)", "2.prob=0.0", "3.prob=0.0"]
    options = [*SMALL[1:], *(f"train_dataloader.dataset.pipeline.{step}" for step in still)]
    options += ["model.backbone.drop_path=0.0", "model.decode_head.dropout_ratio=0.0"]
    options += ["model.auxiliary_head.dropout_ratio=0.0", "param_scheduler.0.start_factor=1.0"]

    def train(name: str, steps: int, *words: str) -> dict[str, Any]:
        counted = [*options, f"train_cfg.max_iters={steps}"]
        assert run(script, "train", CONFIG, "--work-dir", str(tmp_path / name), *words, options=counted) == 0
        return read_mm_checkpoint(tmp_path / name / f"iter_{steps}.pth")

    whole = train("whole", 4)
    half = train("broken", 2)
    resumed = train("broken", 4, "--resume")
    assert resumed["meta"]["iter"] == whole["meta"]["iter"] == 4
    assert [g["lr"] for g in resumed["optimizer"]["param_groups"]] == [
        g["lr"] for g in whole["optimizer"]["param_groups"]
    ]
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value, rtol=1e-4, atol=1e-6)
    key = "decode_head.conv_seg.weight"
    assert not torch.allclose(half["state_dict"][key], whole["state_dict"][key], atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test"], "no checkpoint at"),
        (["train", "--encoder", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str],
    message: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OMBRIA_INDEX", str(make_scenes(tmp_path / "data")))
    assert run(script, words[0], CONFIG, *words[1:], "--work-dir", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and error.startswith("error: ")


def test_a_strange_mask_ends_training_with_its_name(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMBRIA_INDEX", str(make_scenes(tmp_path / "data", values=(0, 7))))
    options = [*SMALL, "train_dataloader.num_workers=1"]
    assert run(script, "train", CONFIG, "--work-dir", str(tmp_path / "run"), options=options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "holds the values [7]" in error and "mask_values" in error
