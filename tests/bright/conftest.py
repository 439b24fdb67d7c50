"""A tiny BRIGHT in the layout of the real one, and the scripts of ``bright/`` as modules."""

import contextlib
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from data_makers import ROOT, load_script, picture, save_geotiff

sys.path.insert(0, str(ROOT / "bright"))

LISTS = {
    "train": [f"bata-explosion_0000000{number}" for number in range(4)] + ["bata-explosion_00000049"],
    "holdout": ["bata-explosion_00000049", "turkey-earthquake_00000001", "turkey-earthquake_00000002"],
    "val": ["turkey-earthquake_00000003", "bata-explosion_00000050"],
    "test": ["noto-earthquake_00000000", "noto-earthquake_00000001", "noto-earthquake_00000002"],
}


def make_bright(root: Path, side: int = 64) -> Path:
    """pre-event, post-event, target and the lists; houses are bright before, and darker after if damaged."""
    names = dict.fromkeys(name for listed in LISTS.values() for name in listed)
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        pre, post = picture(seed, side), picture(seed + 100, side, 1)
        target = np.zeros((side, side), np.uint8)
        for number in (1, 2, 3):
            row, column = rng.integers(0, side - 12, 2)
            area = slice(row, row + 12), slice(column, column + 12)
            target[area] = number
            pre[area] = 200 + rng.integers(0, 40)
            post[area] = 230 - 60 * number
        save_geotiff(root / f"pre-event/{name}_pre_disaster.tif", pre)
        save_geotiff(root / f"post-event/{name}_post_disaster.tif", post[..., None])
        save_geotiff(root / f"target/{name}_building_damage.tif", target[..., None])
    for split, listed in LISTS.items():
        (root / f"{split}_set.txt").write_text("\n".join(listed) + "\n")
    return root


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bright(tmp_path_factory.mktemp("bright") / "data")


@pytest.fixture(scope="session")
def index(root: Path) -> Path:
    import prepare

    out = root.parent / "index"
    with contextlib.redirect_stdout(io.StringIO()):
        assert prepare.main(["bright", "--root", str(root), "--out", str(out), "--workers", "1"]) in (0, None)
    return out


@pytest.fixture(scope="session")
def script() -> ModuleType:
    return load_script("bright/main.py")


def words(index: Path, output: Path, *more: str) -> list[str]:
    named: dict[str, object] = {"encoder": "random:hivit_tiny", "data.index": index, "output_dir": output}
    named |= {
        "model.width": 8,
        "model.norm_levels": True,
        "augmentation.crop": 32,
        "optim.max_steps": 4,
        "optim.warmup_steps": 1,
    }
    named |= {"optim.batch_size": 2, "optim.lr": 1e-3, "evaluate_every": 2, "loss.post_localisation": 0.5}
    named |= {"tiling.window": 32, "tiling.overlap": 16, "tiling.panel": 64, "device": "cpu"}
    return [f"--{key}={value}" for key, value in named.items()] + list(more)


@pytest.fixture(scope="session")
def trained(script: ModuleType, index: Path) -> Path:
    """The run folder of a model trained for four steps."""
    out = index.parent / "run"
    assert script.main(["train", *words(index, out)]) == 0
    return out
