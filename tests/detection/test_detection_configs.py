import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from data_makers import ROOT
from detection_data import make_ships
from gradients import reached_parameters

pytest.importorskip("mmdet")

import yaml  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

from codemae.data.statistics import IndexStatistics, SourceStatistics  # noqa: E402
from codemae.mm.launch import Command, read_config  # noqa: E402

pytestmark = pytest.mark.mm
CONFIGS = sorted((ROOT / "detection" / "configs").glob("*.py"))
VARIABLES = ("DIOR", "SARDET100K", "SHIP_OPTICAL")


def smaller(node: Any) -> None:
    """Sizes a test can afford, wherever a config has them."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "scale":
                node[key] = (96, 96)
            elif key == "scales" and "type" in node and node["type"] == "RandomChoiceResize":
                node[key] = [(64, 96), (96, 96)]
            elif key == "crop_size":
                node[key] = (64, 64)
            elif key == "num_workers":
                node[key] = 0
            elif key in ("nms_pre", "max_per_img"):
                node[key] = 64
            elif key == "num":
                node[key] = 16
            elif key == "persistent_workers":
                node[key] = False
            elif key == "fc_out_channels":
                node[key] = 32
            else:
                smaller(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            smaller(value)


def open_config(path: Path, work_dir: Path) -> Any:
    words = argparse.Namespace(launcher="none")
    command = Command(
        action="train", config=path, encoder="random:hivit_tiny", work_dir=work_dir, options={}, more=words
    )
    return read_config(command)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_a_step_and_predicts(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = SourceStatistics(channels=1, mean=(0.25,), std=(0.125,))
    for name in VARIABLES:
        monkeypatch.setenv(f"{name}_ROOT", str(tmp_path / "data"))
        monkeypatch.setenv(f"{name}_INDEX", str(tmp_path / "data" / "index"))
    (tmp_path / "data" / "index").mkdir(parents=True)
    sources = IndexStatistics(sources={"SARDet-100K": {"sar": statistics}})
    (tmp_path / "data" / "index" / "stats.yaml").write_text(yaml.safe_dump(sources.to_dict()))
    config = open_config(path, tmp_path / "run")
    if "sardet" in path.stem:
        official = "official" in path.stem
        assert list(config.model.data_preprocessor.mean) == [35.8299 if official else 63.75] * 3
        assert list(config.model.data_preprocessor.std) == [51.4447 if official else 31.875] * 3
    classes = config.metainfo.classes
    make_ships(tmp_path / "made", classes, count=8)
    (tmp_path / "data" / "index" / "stats.yaml").unlink()
    (tmp_path / "data" / "index").rmdir()
    (tmp_path / "data").rmdir()
    (tmp_path / "made").rename(tmp_path / "data")

    smaller(config._cfg_dict)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    batch = next(iter(Runner.build_dataloader(config.train_dataloader, seed=0)))
    model: Any = MODELS.build(config.model)
    heads = model.roi_head.bbox_head
    for head in heads if isinstance(heads, torch.nn.ModuleList) else [heads]:
        assert head.num_classes == len(classes)
    model = revert_sync_batchnorm(model)
    model.init_weights()
    optimizer = build_optim_wrapper(model, config.optim_wrapper)
    reached = reached_parameters(model)
    before = [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    losses = model.train_step(batch, optimizer)
    assert torch.isfinite(losses["loss"]) and losses["loss"] > 0
    after = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moved = sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    # Crops without an object leave some gradients at zero; DDP needs one for each all the same.
    assert moved > 0.7 * len(after)
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    model.eval()
    batch = next(iter(Runner.build_dataloader(config.test_dataloader, seed=0)))
    with torch.no_grad():
        answers = model.test_step(batch)
    assert len(answers) == config.test_dataloader.batch_size
    assert answers[0].pred_instances.bboxes.shape[1] == 4
    assert torch.isfinite(answers[0].pred_instances.bboxes).all()


def test_presets_state_what_the_protocols_differ_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str) -> Any:
        return Config.fromfile(ROOT / "detection" / "configs" / f"{name}.py")

    paper, official = (load(f"faster-rcnn_hivit-base_itpn_8xb2-1x_dior_{p}") for p in ("paper", "official"))
    for config in (paper, official):
        assert config.train_cfg.max_epochs == 12 and config.param_scheduler[1].milestones == [8, 11]
        assert config.optim_wrapper.optimizer.lr == 3e-4 and config.optim_wrapper.clip_grad.max_norm == 35
        assert config.optim_wrapper.paramwise_cfg == {"variant": "official", "decay": 0.85}
        assert config.model.neck is None and config.model.backbone.stride64 == "average"
        assert len(config.metainfo.classes) == 20
    assert paper.model.roi_head.bbox_head.loss_bbox.type == "L1Loss"
    assert official.model.roi_head.bbox_head.loss_bbox == {"type": "GIoULoss", "loss_weight": 10.0}
    assert official.model.roi_head.bbox_head.reg_decoded_bbox
    assert "save_best" not in paper.default_hooks.checkpoint
    assert official.default_hooks.checkpoint.save_best == "coco/bbox_mAP"
    for config, least in ((paper, 32), (official, 16)):
        parts = config.train_dataloader.dataset.datasets
        assert [Path(part.ann_file).stem for part in parts] == ["train", "val"]
        assert [part.filter_cfg.min_size for part in parts] == [least] * 2
    theirs, ours = (config.train_dataloader.to_dict() for config in (paper, official))
    for part in (*theirs["dataset"]["datasets"], *ours["dataset"]["datasets"]):
        part.pop("filter_cfg")
    assert theirs == ours
    paper, official = (
        load(f"faster-rcnn_hivit-base_itpn_8xb2-3x_sardet100k_{p}") for p in ("paper", "official")
    )
    assert paper.train_cfg.max_epochs == official.train_cfg.max_epochs == 36
    assert (paper.param_scheduler[0].end, official.param_scheduler[0].end) == (500, 1500)
    assert paper.val_evaluator.ann_file.endswith("val.json")
    assert official.val_evaluator.ann_file.endswith("test.json")
    assert official.val_dataloader.dataset.ann_file.endswith("test.json")
    assert official.optim_wrapper.type == "AmpOptimWrapper"
    assert official.default_hooks.checkpoint.save_best == "coco/bbox_mAP"
    filters = [config.train_dataloader.dataset.filter_cfg.to_dict() for config in (paper, official)]
    assert filters == [{"filter_empty_gt": True, "min_size": size} for size in (32, 16)]
    assert paper.statistics.endswith("stats.yaml") and official.statistics is None
    assert official.model.data_preprocessor.to_dict() == {
        "type": "DetDataPreprocessor",
        **{"mean": [35.8299] * 3, "std": [51.4447] * 3, "bgr_to_rgb": True, "pad_size_divisor": 32},
    }
    (choice,) = (step for step in official.train_dataloader.dataset.pipeline if step.type == "RandomChoice")
    whole, cropped = choice.transforms
    assert whole[0].scales == cropped[2].scales == [(side, 1333) for side in range(480, 801, 32)]
    assert cropped[0].scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert [step.type for step in official.test_dataloader.dataset.pipeline if step.type == "Resize"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_warm_up_counts_steps_of_the_optimiser(path: Path) -> None:
    assert Config.fromfile(path).default_hooks.param_scheduler.type == "OptimizerStepHook"


def test_no_config_has_a_path_of_one_machine() -> None:
    for path in (ROOT / "detection" / "configs").rglob("*.py"):
        assert '"/' not in path.read_text(), path.name
