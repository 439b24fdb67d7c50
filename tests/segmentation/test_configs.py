import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from data_makers import ROOT
from gradients import reached_parameters

pytest.importorskip("mmseg")

from mm.segmentation_data import make_scenes  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import DATASETS, MODELS, DefaultScope, init_default_scope  # noqa: E402
from segmentation.conftest import CONFIGS, SIDE, read, reduced  # noqa: E402

pytestmark = pytest.mark.mm
NAMES = sorted(path.name for path in CONFIGS.glob("*.py"))
assert DefaultScope


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An index for each way masks are stored."""
    return {}


def index_of(config_values: Any, made: dict[str, Path], folder: Path) -> Path:
    values = [list(value) if not isinstance(value, int) else value for value in config_values]
    key = str(values)
    if key not in made:
        made[key] = make_scenes(folder, values, SIDE)
    return made[key]


@pytest.mark.parametrize("name", NAMES)
def test_config_trains_one_step_and_predicts(
    name: str, indexes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = reduced(CONFIGS / name, Path("unset"))
    values = config.train_dataloader.dataset.mask_values
    index = index_of(values, indexes, tmp_path_factory.mktemp("scenes"))
    init_default_scope("mmseg")
    torch.manual_seed(0)
    rows = config.train_dataloader.dataset
    rows.index = str(index)
    training = DATASETS.build(rows)
    assert len(training.metainfo["classes"]) == len(values) == config.model.decode_head.num_classes
    model: Any = MODELS.build(config.model)
    optimizer = build_optim_wrapper(model, config.optim_wrapper)
    reached = reached_parameters(model)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    losses = model.train().train_step(pseudo_collate([training[0], training[1]]), optimizer)
    assert torch.isfinite(losses["loss"])
    assert reached == {key for key, value in model.named_parameters() if value.requires_grad}
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    for modality in ("optical", "sar"):
        used = config.model.backbone.modality in (modality, "both")
        embeds = [key for key in before if f"patch_embed.{modality}." in key or f"stem.{modality}." in key]
        assert embeds and used == any(key in moved for key in embeds)
    assert any(key.startswith("decode_head.") for key in moved)

    tested = config.test_dataloader or config.train_dataloader
    rows = {**tested.dataset, "index": str(index), "split": "test", "pipeline": _test_pipeline(config)}
    test_rows = DATASETS.build(rows)
    (sample,) = model.eval().test_step(pseudo_collate([test_rows[0]]))
    predicted = sample.pred_sem_seg.data
    assert predicted.shape == (1, SIDE, SIDE) and predicted.max() < len(values)
    assert sample.gt_sem_seg.data.shape == predicted.shape


def _test_pipeline(config: Any) -> Any:
    return config.test_dataloader.dataset.pipeline if config.test_dataloader else config.test_pipeline


def leaves(node: Any, place: str = "") -> dict[str, Any]:
    """Every value of a config by its dotted key; lists whole."""
    if not isinstance(node, dict):
        return {place: node}
    return {key: value for name in node for key, value in leaves(node[name], f"{place}.{name}").items()}


def loveda(name: str) -> Any:
    (path,) = CONFIGS.glob(f"*_loveda-{name}.py")
    config = read(path)
    # What inheriting leaves behind: names of the base files that no module reads.
    for key in ("rows", "train_pipeline", "levels"):
        config.pop(key, None)
    return config


def test_loveda_of_the_paper_and_of_the_published_config_differ_in_four_keys() -> None:
    paper, official = (leaves(loveda(f"trainval-512x512_{name}").to_dict()) for name in ("paper", "official"))
    differing = {key for key in paper.keys() | official.keys() if paper.get(key) != official.get(key)}
    assert differing == {
        ".protocol",
        ".optim_wrapper.optimizer.lr",
        ".train_dataloader.dataset.pipeline",
        ".train_dataloader.dataset.levels.optical.mean",
        ".train_dataloader.dataset.levels.optical.std",
    }
    pipeline = ".train_dataloader.dataset.pipeline"
    assert [step for step in official[pipeline] if step not in paper[pipeline]] == [
        {"type": "DistortPhotometry"}
    ]
    assert [step for step in paper[pipeline] if step not in official[pipeline]] == []


LOVEDA = {
    "512x512_clean": (1e-4, 0.85, 10_000, 500, 2, 256, False, ["train"]),
    "trainval-512x512_paper": (1e-4, 0.85, 10_000, 500, 2, 256, False, ["train", "val"]),
    "trainval-512x512_official": (3e-5, 0.85, 10_000, 500, 2, 256, True, ["train", "val"]),
    "trainval-512x512_selectivemae": (6e-5, 0.9, 80_000, 1500, 1, 384, True, ["train", "val"]),
}


@pytest.mark.parametrize("name", LOVEDA)
def test_loveda_s_settings_are_the_published_ones(name: str) -> None:
    rate, decay, steps, warm_up, batch, stride, distorted, splits = LOVEDA[name]
    config = loveda(name)
    optim, rows = config.optim_wrapper, config.train_dataloader.dataset
    assert optim.type == "AmpOptimWrapper" and optim.clip_grad == {"max_norm": 35, "norm_type": 2}
    assert optim.optimizer == {"type": "AdamW", "lr": rate, "betas": (0.9, 0.999), "weight_decay": 0.05}
    assert optim.paramwise_cfg == {"variant": "official", "decay": decay}
    assert config.train_cfg.max_iters == steps and config.train_dataloader.batch_size == batch
    line, fall = config.param_scheduler
    assert (line.type, line.start_factor, line.end) == ("LinearLR", 1e-6, warm_up)
    assert (fall.type, fall.power, fall.eta_min, fall.begin, fall.end) == ("PolyLR", 1.0, 0.0, warm_up, steps)
    model = config.model
    assert model.backbone.drop_path == 0.15 and model.decode_head.channels == 768
    assert model.decode_head.in_channels == [256] * 4 and model.auxiliary_head.channels == 256
    assert model.decode_head.num_classes == model.auxiliary_head.num_classes == len(rows.mask_values) == 7
    assert model.test_cfg == {"mode": "slide", "crop_size": (512, 512), "stride": (stride, stride)}
    steps_of = {step.type: step for step in rows.pipeline}
    resize, crop = steps_of["RandomResize"], steps_of["RandomCrop"]
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (crop.crop_size, crop.cat_max_ratio, steps_of["RandomFlip"].prob) == ((512, 512), 0.75, 0.5)
    assert ("DistortPhotometry" in steps_of) == distorted
    split = rows.split if isinstance(rows.split, list) else [rows.split]
    assert split == splits and rows.ignore_values == [0]
    stated = {"optical": {"mean": [73.10, 79.13, 75.95], "std": [39.29, 35.37, 34.07]}}
    assert rows.get("levels") == (stated if name.endswith("official") else None)


@pytest.mark.parametrize("name", NAMES)
def test_headers_name_the_command_and_the_batch_of_the_file(name: str) -> None:
    header = "".join(line for line in (CONFIGS / name).read_text().splitlines(True) if line.startswith("#"))
    command, hardware = (re.search(rf"# {word}: *(.*)", header) for word in ("Command", "Hardware"))
    gpus, batch = re.findall(r"_(\d)xb(\d+)-", name)[0]
    assert command and hardware
    if "CPU" in hardware[1]:
        wanted = "python segmentation/main.py train segmentation/configs/THIS_FILE --encoder ENCODER"
    else:
        wanted = f"bash segmentation/scripts/train_{gpus}gpu.sh segmentation/configs/THIS_FILE ENCODER"
    assert command[1] == wanted
    assert read(CONFIGS / name).train_dataloader.batch_size == int(batch)
    if each := re.search(r"(\d+) (images?|windows) each", hardware[1]):
        assert each[1] == batch


@pytest.mark.parametrize("path", sorted((ROOT / "segmentation/scripts").glob("*.sh")), ids=lambda p: p.name)
def test_scripts_parse_and_say_how_they_are_used(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    answer = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    assert answer.returncode == 2 and "Usage:" in answer.stderr
