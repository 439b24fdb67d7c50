"""Every config and script that ships runs; the presets differ where they say."""

import subprocess
from pathlib import Path

import pytest
import torch
from small_encoders import SMALL

from codemae.config import build_config, diff_configs, read_yaml, to_dict
from codemae.downloads import RELEASED
from codemae.engine.pretraining import pretrain
from codemae.engine.run import Run
from codemae.engine.settings import PretrainConfig
from codemae.methods.base import METHODS

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "pretrain" / "configs").rglob("*.yaml"))
SCRIPTS = sorted(ROOT.glob("*/scripts/*.sh"))
REDUCED_METHOD: dict[str, dict[str, dict[str, object]]] = {
    "codemae": {
        "encoder": {"img_size": 32, "init": ""},
        "decoder": {"dim": 48, "depth": 1, "num_heads": 3},
        "okd": {
            "auxiliary_block": 1,
            "auxiliary_depth": 1,
            "teacher": {"name": "efficientnet_lite0", "pretrained": False, "vault": None},
        },
        "ccl": {"num_heads": 3},
    },
    "decur": {
        "encoder": {"img_size": 32, "init": "", "channels": {"optical": 3, "sar": 1}},
        "projector": {"dims": [32, 32, 32]},
    },
    "cmid": {
        "encoder": {"img_size": 64},
        "mask_block": 32,
        "contrast": {"hidden_dim": 32, "dim": 16, "queue_size": 64},
        "local": {"hidden_dim": 32, "bottleneck_dim": 16, "prototypes": 8},
    },
    "fusmae": {
        "encoder": {"img_size": 32, "channels": {"optical": 3, "sar": 1}},
        "decoder": {"dim": 48, "depth": 1, "num_heads": 3},
    },
}
# At this seed steps 1 and 3 of the toy index are paired and step 2 is not.
REDUCED = {
    "seed": 0,
    "optim": {
        "max_steps": 3,
        "batch_per_gpu": 2,
        "global_batch": 2,
        "grad_accum_steps": 1,
        "amp": "float32",
        "compile": False,
    },
    "data": {"num_workers": 0},
    "log": {"every": 1, "tensorboard": False, "sentinel_every": 0},
    "checkpoint": {"every_epochs": None},
    "device": "cpu",
}
FROM_ITPN = {
    *(f"codemae_hivit_base_{name}" for name in ("paper", "official", "ablation")),
    "mae_hivit_base",
    "decur_hivit_base",
    "rigid_alignment_hivit_base",
}
ABLATIONS = {
    path.stem for path in CONFIGS if path.parent.name == "ablations" and not path.stem.startswith("tiny_")
}
TERMS = {
    "codemae": ("reconstruction", "okd", "ccl", "cdr"),
    "decur": ("intra_optical", "intra_sar", "common", "unique", "vicreg", "contrast"),
    "cmid": ("spatial", "frequency", "nce", "local"),
    "fusmae": ("reconstruction_optical", "reconstruction_sar"),
}


def resolved(path: Path, **extra: object) -> PretrainConfig:
    sources = [(path.name, {**read_yaml(path)}), ("test", extra)]
    return build_config(PretrainConfig, sources, variants={"method": METHODS.config})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_fills_its_schema_and_runs_three_steps(
    path: Path, toy_index: Path, tmp_path: Path, metrics
) -> None:
    method = resolved(path, output_dir="x").method
    name, arch = method.name, method.encoder.arch
    reduced = dict(REDUCED_METHOD[name])
    reduced["encoder"] = {"arch": SMALL.get(arch, arch), **reduced["encoder"]}
    extra = {**REDUCED, "method": reduced, "output_dir": str(tmp_path / "run")}
    extra["data"] = {"num_workers": 0, "index": [str(toy_index)], "split": None}
    config = resolved(path, **extra)
    assert config.method.encoder.arch == SMALL.get(arch, arch)
    torch.manual_seed(0)
    run = Run(config, torch.device("cpu"))
    kinds = [run.sampler.is_paired(0, step) for step in range(3)]
    if config.data.samples == "both" and run.sampler.modalities == ("optical", "sar"):
        assert kinds == [True, False, True]
    else:
        assert kinds == [config.data.samples == "paired"] * 3
    pretrain(run)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, paired in zip(lines, kinds, strict=True):
        terms = {term: line[term] for term in TERMS[name] if term in line}
        assert line["loss"] == pytest.approx(sum(terms.values()), rel=1e-9)
        if name == "codemae":
            switches = {"okd", "ccl", "cdr"}
            wanted = {switch for switch in switches if getattr(config.method, switch).enabled}
            assert set(terms) == {"reconstruction", *(wanted if paired else wanted & {"okd"})}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_released_start_is_of_the_encoder_it_is_for(path: Path) -> None:
    encoder = resolved(path, output_dir="x").method.encoder
    if encoder.init:
        assert RELEASED[encoder.init].arch == encoder.arch
    assert bool(encoder.init) == (path.stem in FROM_ITPN or path.stem in ABLATIONS)


@pytest.mark.parametrize(
    ("config", "amp"),
    [("codemae_hivit_base_official", "float16"), ("codemae_hivit_small_1gpu", "bfloat16")],
)
def test_shipped_precision_trains_all_four_terms(
    config: str, amp: str, toy_index: Path, tmp_path: Path, metrics
) -> None:
    path = ROOT / "pretrain" / "configs" / f"{config}.yaml"
    assert resolved(path, output_dir="x").optim.amp == amp
    method = REDUCED_METHOD["codemae"]
    method = {**method, "encoder": {"arch": "hivit_tiny", **method["encoder"]}}
    lines = {}
    for dtype in ("float32", amp):
        extra = {**REDUCED, "method": method, "output_dir": str(tmp_path / dtype)}
        extra["data"] = {"num_workers": 0, "index": [str(toy_index)], "samples": "paired"}
        extra["optim"] = {**REDUCED["optim"], "max_steps": 2, "amp": dtype, "warmup_epochs": 0}
        run = Run(resolved(path, **extra), torch.device("cpu"))
        pretrain(run)
        lines[dtype] = metrics(tmp_path / dtype)
    assert run.learner.scaler.is_enabled() == (amp == "float16")
    # Float16 begins with a scale that overflows once and is halved.
    assert [line["skipped"] for line in lines[amp]] == [1.0 if amp == "float16" else 0.0, 0.0]
    moved = [pair for pair in zip(lines[amp], lines["float32"], strict=True) if not pair[0]["skipped"]]
    for reduced, exact in moved:
        for term in (*TERMS["codemae"], "grad_norm"):
            assert reduced[term] == pytest.approx(exact[term], rel=0.05), term


def test_paper_and_official_differ_in_every_row_of_the_table() -> None:
    paper, official = (
        to_dict(resolved(ROOT / "pretrain" / "configs" / f"codemae_hivit_base_{name}.yaml", output_dir="x"))
        for name in ("paper", "official")
    )
    assert {key: (a, b) for key, a, b in diff_configs(paper, official)} == {
        "method.modality_reduction": ("sum", "mean"),
        "method.okd.loss": ("l1", "smooth_l1"),
        "method.okd.branches": ("encoder", "fused_and_auxiliary"),
        "method.okd.teacher.normalize_output": (False, True),
        "method.ccl.input": ("encoder", "decoder_embed"),
        "method.ccl.num_heads": (1, 16),
        "method.ccl.pre_norm": (False, True),
        "method.ccl.output_projection": (False, True),
        "method.ccl.gather_gradient": (True, False),
        "method.cdr.computed_from": ("image", "standardised"),
        "method.cdr.norm_target": (False, True),
    }


def test_published_learning_rate_and_batch() -> None:
    config = resolved(ROOT / "pretrain" / "configs" / "codemae_hivit_base_paper.yaml", output_dir="x")
    # 8 GPUs x 128 pairs x 2 images / 256 x 1.5e-4, as the paper's batch of 2048 gives.
    images = config.optim.global_batch * 2
    assert images == 8 * config.optim.batch_per_gpu * 2 == 2048
    assert config.optim.base_lr * images / 256 == pytest.approx(1.2e-3)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_script_parses_and_names_existing_files(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    for word in script.read_text().split():
        name = word.strip("'\"\\")
        if name.endswith((".py", ".yaml")) and not set(name) & set("$*"):
            assert (ROOT / name).exists(), f"{script.name} names {name}, which is not there"


def test_script_without_arguments_says_how_to_use_it() -> None:
    for script in SCRIPTS:
        if script.parent.parent.name == "pretrain":
            done = subprocess.run(["bash", str(script)], capture_output=True, text=True)
            assert done.returncode == 2 and "Usage:" in done.stderr
