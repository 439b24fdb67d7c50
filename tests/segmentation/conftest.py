"""The scripts of ``segmentation/`` as modules, and every config at a size that trains in a second."""

import copy
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from data_makers import ROOT, load_script
from small_encoders import WIDTHS

sys.path.insert(0, str(ROOT / "segmentation"))

CONFIGS = ROOT / "segmentation" / "configs"
SIDE = 64
ENCODER = {"name": "hivit_tiny", "img_size": SIDE, "channels": {"optical": 3, "sar": 3}}
RESNET = {"name": "resnet_test", "img_size": SIDE}
RESNET_WIDTHS = [4 * width for width in WIDTHS]


def read(path: Path) -> Any:
    """A config of one's own; each file is parsed once."""
    return copy.deepcopy(_parsed(path))


@cache
def _parsed(path: Path) -> Any:
    pytest.importorskip("mmseg")
    from mmengine.config import Config

    import codemae.mm.segmentation  # noqa: F401

    return Config.fromfile(path)


def reduced(path: Path, index: Path) -> Any:
    """A config with tiny encoder, head, crops and batches, on another index."""
    config = read(path)
    model = config.model
    both = model.backbone.modality == "both"
    is_resnet = "resnet50" in path.stem
    for key in ("encoder", "channels", "img_size"):
        model.backbone.pop(key, None)
    model.backbone.arch = RESNET if is_resnet else ENCODER
    model.backbone.drop_path = 0.0
    if is_resnet:
        widths = [(2 if both else 1) * width for width in RESNET_WIDTHS]
        used = model.decode_head.get("in_index", [0, 1, 2, 3])
        model.decode_head.in_channels = [widths[level] for level in used]
        if model.auxiliary_head:
            model.auxiliary_head.in_channels = widths[2]
    elif both:
        model.neck.in_channels = [192] * 4
        model.neck.out_channels = 16
    else:
        model.backbone.out_channels = 16
    if not is_resnet:
        model.decode_head.in_channels = [16] * 4
        model.auxiliary_head.in_channels = 16
    if model.decode_head.type == "UPerHead":
        model.decode_head.channels = model.auxiliary_head.channels = 16
    model.data_preprocessor.size = (SIDE, SIDE)
    if model.test_cfg.mode == "slide":
        model.test_cfg.crop_size, model.test_cfg.stride = (SIDE // 2,) * 2, (SIDE // 4,) * 2
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        loader = config.get(name)
        if loader is None:
            continue
        loader.num_workers, loader.persistent_workers, loader.batch_size = 0, False, 2
        loader.dataset.index = str(index)
        for step in loader.dataset.pipeline:
            if step.type == "RandomResize":
                step.scale = (2 * SIDE, SIDE)
            if step.type == "RandomCrop":
                step.crop_size = (SIDE, SIDE)
            if step.type == "RandomResizedWindow":
                step.side = SIDE
    if config.optim_wrapper.type == "AmpOptimWrapper":
        config.optim_wrapper.type = "OptimWrapper"
        config.optim_wrapper.pop("loss_scale")
    return config


@pytest.fixture(scope="session")
def script() -> ModuleType:
    pytest.importorskip("mmseg")
    return load_script("segmentation/main.py")
