import csv
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from data_makers import load_script
from detection_data import make_ships

pytest.importorskip("mmdet")

from codemae.checkpoint import EncoderMetadata, save_encoder  # noqa: E402
from codemae.evaluation.card import Card  # noqa: E402
from codemae.mm.checkpoints import export_encoder, read_mm_checkpoint  # noqa: E402
from codemae.models.factory import create_encoder, load_encoder  # noqa: E402

pytestmark = pytest.mark.mm
CONFIG = "detection/configs/faster-rcnn_hivit-tiny_itpn_1xb4-40e_ship-optical.py"
SMALL = [
    "train_dataloader.dataset.pipeline.2.crop_size=(64,64)",
    "test_dataloader.dataset.pipeline.1.scale=(96,96)",
    "val_dataloader.dataset.pipeline.1.scale=(96,96)",
    "model.train_cfg.rcnn.sampler.num=16",
    "model.test_cfg.rpn.max_per_img=50",
    "default_hooks.logger.interval=1",
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("detection/main.py")


def encoder_file(path: Path) -> Path:
    torch.manual_seed(5)
    options = {"img_size": 96, "channels": {"optical": 3, "sar": 3}, "center": ["sar"], "pyramid": True}
    encoder = create_encoder("hivit_tiny", **options)
    metadata = EncoderMetadata(arch="hivit_tiny", arch_kwargs=options, inputs={}, method="codemae", steps=3)
    save_encoder(path, encoder, metadata)
    return path


def run(
    script: ModuleType,
    action: str,
    work_dir: Path,
    *words: str,
    epochs: int = 1,
    lr: float = 3e-4,
    options: Sequence[str] = (),
) -> int:
    options = [*SMALL, f"train_cfg.max_epochs={epochs}", f"optim_wrapper.optimizer.lr={lr}", *options]
    return int(script.main([action, CONFIG, *words, f"--work-dir={work_dir}", "--cfg-options", *options]))


@pytest.fixture(scope="module")
def trained(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``encoder.safetensors``, ``ships`` and ``run``: an epoch at a rate of zero."""
    folder = tmp_path_factory.mktemp("detection")
    with pytest.MonkeyPatch.context() as patch:
        root = make_ships(folder / "ships")
        patch.setenv("SHIP_OPTICAL_ROOT", str(root))
        patch.setenv("SHIP_OPTICAL_INDEX", str(root / "index"))
        encoder = encoder_file(folder / "encoder.safetensors")
        assert run(script, "train", folder / "run", f"--encoder={encoder}", lr=0.0) == 0
        yield folder


def test_training_leaves_card_table_and_pictures(trained: Path) -> None:
    card = Card.load(trained / "run")
    assert card.task == "detection" and card.dataset == "ship_optical" and card.metric == "box_ap50"
    assert (card.protocol, card.selected_by, card.modality) == ("clean", "last", "optical")
    encoder = trained / "encoder.safetensors"
    assert card.encoder == str(encoder)
    assert card.checkpoint_hash == hashlib.sha256(encoder.read_bytes()).hexdigest()
    assert card.settings["epochs"] == 1 and card.settings["layer_decay"]["variant"] == "official"
    assert card.settings["batch"] == 4 and "batch_per_process" not in card.settings
    rows = list(csv.DictReader((trained / "run" / "per_class.csv").open()))
    assert [row["class"] for row in rows] == ["ship"] and rows[0]["boxes"] == "18"
    assert len(list((trained / "run" / "pictures").glob("*.jpg"))) == 6


def test_an_encoder_goes_through_a_checkpoint_and_back_bit_by_bit(trained: Path, tmp_path: Path) -> None:
    export_encoder(trained / "run" / "epoch_1.pth", tmp_path / "back.safetensors")
    there = load_encoder(trained / "encoder.safetensors").state_dict()
    encoder: Any = load_encoder(tmp_path / "back.safetensors")
    back = encoder.state_dict()
    assert there.keys() == back.keys()
    assert all(torch.equal(there[key], back[key]) for key in there)
    assert (encoder.metadata.method, encoder.metadata.steps) == ("codemae", 3)


def test_resume_goes_on_without_the_encoder_file_and_test_repeats_the_figure(
    script: ModuleType, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "last_checkpoint").write_text(str(tmp_path / "elsewhere" / "epoch_1.pth"))
    encoder = trained / "encoder.safetensors"
    encoder.rename(trained / "moved.safetensors")
    try:
        assert run(script, "train", tmp_path / "run", "--resume", epochs=2) == 0
        sentence = capsys.readouterr().out.strip().splitlines()[-1]
        assert sentence.startswith("ship_optical, optical, all training images, clean protocol (last): box")
        first = read_mm_checkpoint(trained / "run" / "epoch_1.pth")["meta"]
        second = read_mm_checkpoint(tmp_path / "run" / "epoch_2.pth")["meta"]
        assert (second["epoch"], second["iter"]) == (2, 2 * first["iter"])
        assert second["encoder_source"] == first["encoder_source"]
        before = Card.load(tmp_path / "run")
        # The batch of the card is that of the training, however the test is started.
        halved = ["train_dataloader.batch_size=2"]
        assert run(script, "test", tmp_path / "run", epochs=2, options=halved) == 0
        after = Card.load(tmp_path / "run")
        assert after.settings == before.settings and after.settings["batch"] == 4
        assert (after.values, after.metrics, after.checkpoint_hash) == (
            before.values,
            before.metrics,
            before.checkpoint_hash,
        )
    finally:
        (trained / "moved.safetensors").rename(encoder)


def test_the_official_protocol_scores_the_best_epoch_with_the_last_beside_it(
    script: ModuleType, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, last = tmp_path / "run", tmp_path / "run" / "epoch_1.pth"
    shutil.copytree(trained / "run", folder)
    (folder / "last_checkpoint").write_text(str(last))
    last.rename(folder / "best_coco_bbox_mAP_epoch_1.pth")
    checkpoint = read_mm_checkpoint(trained / "run" / "epoch_1.pth")
    # The last epoch finds nothing: all is background.
    checkpoint["state_dict"]["roi_head.bbox_head.fc_cls.bias"][-1] = 50
    torch.save({key: checkpoint[key] for key in ("state_dict", "meta")}, last)
    options = ["protocol=official"]

    assert run(script, "test", folder, options=options) == 0
    card, before = Card.load(folder), Card.load(trained / "run")
    assert (card.protocol, card.selected_by, card.settings["batch"]) == ("official", "test", 4)
    assert card.values == before.values and card.metrics == before.metrics
    assert before.values[0] > card.also["last"]["box_ap50"] == 0

    assert run(script, "test", folder, "--checkpoint", str(last), options=options) == 0
    named = Card.load(folder)
    assert (named.selected_by, named.values, named.also) == ("last", [0.0], {})

    (folder / "best_coco_bbox_mAP_epoch_1.pth").unlink()
    assert run(script, "test", folder, options=options) == 2
    assert "test --checkpoint FILE" in capsys.readouterr().err


def test_infer_writes_the_boxes_of_a_scene(
    script: ModuleType, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scene = tmp_path / "found.geojson", str(trained / "ships" / "images" / "1.png")
    words = [scene, f"--out={out}", "--score=0", "--window=96", "--overlap=32"]
    assert run(script, "infer", trained / "run", *words) == 0
    found = json.loads(out.read_text())
    assert "crs" not in found and len(found["features"]) > 0
    assert "columns and rows" in capsys.readouterr().out


def test_a_checkpoint_of_another_detector_is_refused_key_by_key(
    script: ModuleType, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = read_mm_checkpoint(trained / "run" / "epoch_1.pth")
    checkpoint["state_dict"].pop("rpn_head.rpn_cls.bias")
    torch.save({key: checkpoint[key] for key in ("state_dict", "meta")}, tmp_path / "cut.pth")
    assert run(script, "test", tmp_path / "run", f"--checkpoint={tmp_path / 'cut.pth'}") == 2
    assert "missing: rpn_head.rpn_cls.bias" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "detection/configs/no.py"], "no config at"),
        (["train", CONFIG, "--encoder", "nowhere.safetensors"], "nowhere.safetensors"),
        (["train", CONFIG, "--encoder", "random:vit_small"], "no feature maps"),
        (["train", CONFIG, "--resume"], "nothing to resume from"),
        (["test", CONFIG], "train first"),
        (["test", CONFIG, "--checkpoint", "nowhere.pth"], "no checkpoint at nowhere.pth"),
    ],
)
def test_a_mistake_ends_with_code_2_and_a_sentence(
    script: ModuleType,
    ships: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    assert script.main([*words, "--work-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error:") and message in error


def test_missing_annotations_and_categories_are_named(
    script: ModuleType, ships: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ships / "index" / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "boat"
    path.write_text(json.dumps(content))
    assert run(script, "train", tmp_path / "run") == 2
    assert "no category 'ship'" in capsys.readouterr().err
    path.unlink()
    assert run(script, "train", tmp_path / "run") == 2
    assert "no annotations at" in capsys.readouterr().err


def test_an_unreadable_training_image_is_replaced_and_recorded_and_a_test_image_is_not(
    script: ModuleType, ships: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ships / "index" / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "images/torn.png"
    path.write_text(json.dumps(content))
    whole = (ships / "images" / "2.png").read_bytes()
    (ships / "images" / "torn.png").write_bytes(whole[: len(whole) // 2])
    assert run(script, "train", tmp_path / "run") == 0
    lines = (tmp_path / "run" / "bad_samples.txt").read_text().splitlines()
    assert len(lines) == 1 and "torn.png" in lines[0]

    test = ships / "index" / "annotations" / "val.json"
    test.write_text(path.read_text())
    assert run(script, "test", tmp_path / "run") == 2
    assert "torn.png" in capsys.readouterr().err


def test_a_checkpoint_with_code_in_it_is_not_run(script: ModuleType, ships: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"state_dict": {}, "meta": Trap()}, tmp_path / "trap.pth")
    assert script.main(["test", CONFIG, "--checkpoint", str(tmp_path / "trap.pth")]) == 2
    assert not (tmp_path / "executed").exists()


def test_the_split_keeps_neighbours_together(tmp_path: Path) -> None:
    split = load_script("detection/split_coco.py").split
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 8, "height": 8} for n in range(1, 101)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 2, 2]} for n in range(1, 101)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "ship"}]}
    parts = split(content, share=0.25, block=10, seed=0, folder="images")
    val = {image["id"] for image in parts["val"]["images"]}
    train = {image["id"] for image in parts["train"]["images"]}
    assert not val & train and val | train == set(range(1, 101)) and len(val) == 30
    assert {(number - 1) // 10 for number in val} & {(number - 1) // 10 for number in train} == set()
    assert [entry["image_id"] for entry in parts["val"]["annotations"]] == sorted(val)
    assert parts["val"]["images"][0]["file_name"].startswith("images/")
    assert parts == split(content, share=0.25, block=10, seed=0, folder="images")
    assert parts != split(content, share=0.25, block=10, seed=1, folder="images")
    rng = np.random.default_rng(0)
    shuffled = {**content, "images": [images[place] for place in rng.permutation(100)]}
    again = split(shuffled, share=0.25, block=10, seed=0)
    assert {image["id"] for image in again["val"]["images"]} == val
