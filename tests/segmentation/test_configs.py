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
from segmentation.conftest import CONFIGS, SIDE, reduced  # noqa: E402

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


@pytest.mark.parametrize("path", sorted((ROOT / "segmentation/scripts").glob("*.sh")), ids=lambda p: p.name)
def test_scripts_parse_and_say_how_they_are_used(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    answer = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    assert answer.returncode == 2 and "Usage:" in answer.stderr
