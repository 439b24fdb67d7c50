import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from data_makers import make_card, make_index, picture, save

from codemae.checkpoint import EncoderMetadata, InputSpec, save_encoder
from codemae.cli import main
from codemae.data.index import open_index
from codemae.doctor import Check, examine
from codemae.models.factory import create_encoder, load_encoder

REPO = Path(__file__).parents[1]
CONFIGS = REPO / "pretrain" / "configs"


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = create_encoder("hivit_tiny", img_size=32, pyramid=False)
    inputs = {
        "optical": InputSpec(
            channels=3, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], scaling="uint8", size=32
        ),
        "sar": InputSpec(channels=3, mean=3 * [0.3], std=3 * [0.1], scaling="uint8", size=32),
    }
    metadata = EncoderMetadata(
        arch="hivit_tiny",
        arch_kwargs={"img_size": 32, "pyramid": False},
        inputs=inputs,
        method="codemae",
        steps=0,
    )
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(path, encoder, metadata)
    return path


@pytest.fixture(scope="module")
def index_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("index"), paired=6, optical=1, size=32)


def test_models_lists_parameter_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    tiny = create_encoder("hivit_tiny", pyramid=False)
    assert listed["encoders"]["hivit_tiny"]["parameters"] == sum(p.numel() for p in tiny.parameters())
    assert round(listed["encoders"]["hivit_base"]["parameters"] / 1e6, 1) == 77.9
    assert round(listed["encoders"]["hivit_base"]["with_pyramid"] / 1e6, 1) == 81.6
    assert "efficientnet_lite0" in listed["teachers"]
    assert "itpn_base_pixel" in listed["released"]


def test_embed_equals_the_encoder_on_standardised_images(
    encoder_file: Path, index_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "features.npz"
    words = ["--data.index", str(index_dir), "--modality", "optical", "--out", str(out), "--batch", "4"]
    assert main(["embed", str(encoder_file), *words]) == 0
    stored = np.load(out)
    index = open_index(index_dir)
    assert stored["values"].shape == (7, 192)
    assert stored["rows"].tolist() == index.rows_with("optical").tolist()

    row = 2
    pixels = torch.from_numpy(picture(row, 32).copy()).permute(2, 0, 1).float() / 255
    stats = index.stats("made", "optical")
    mean, std = (torch.tensor(values)[:, None, None] for values in (stats.mean, stats.std))
    with torch.no_grad():
        expected = load_encoder(encoder_file).pooled(((pixels - mean) / std)[None], "optical")[0]
    np.testing.assert_allclose(stored["values"][row], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_embed_folder_uses_the_files_own_statistics(encoder_file: Path, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "images" / "deep" / f"{number}.png", picture(number, 48, 1))
    out = tmp_path / "features.parquet"
    words = ["--images", str(tmp_path / "images"), "--modality", "s1", "--out", str(out)]
    assert main(["embed", str(encoder_file), *words]) == 0
    table = pq.read_table(out)
    assert table["name"].to_pylist() == ["deep/0.png", "deep/1.png", "deep/2.png"]
    assert np.isfinite(np.array(table["feature"].to_pylist())).all()
    assert len(table["feature"][0].as_py()) == 192


def test_embed_without_statistics_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png", picture(0, 32))
    words = ["--images", str(tmp_path), "--modality", "optical", "--out", str(tmp_path / "f.npz")]
    assert main(["embed", "random:hivit_tiny", *words]) == 1
    assert "prepare.py folder" in capsys.readouterr().err


def test_embed_wants_one_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "f.npz")
    assert main(["embed", "random:hivit_tiny", "--modality", "optical", "--out", out]) == 1
    assert "--images DIR or --data.index DIR" in capsys.readouterr().err


def test_unknown_modality_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["embed", "random:hivit_tiny", "--modality", "lidar", "--out", "f.npz"])
    assert stopped.value.code == 2
    assert "known: optical" in capsys.readouterr().err


def test_analyze_writes_a_page_without_the_map(
    encoder_file: Path, index_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.index", str(index_dir), "--out", str(tmp_path), "--count", "5", "--no-map"]
    assert main(["analyze", str(encoder_file), *words]) == 0
    page = (tmp_path / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "5 pairs" in page and "Singular value spectra" in page and "Alignment of patches" in page
    assert "Map of the pairs" not in page


def test_convert_there_and_back_keeps_every_weight(
    encoder_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    encoder = create_encoder("hivit_tiny", img_size=32, pyramid=False)
    metadata = EncoderMetadata(
        arch="hivit_tiny",
        arch_kwargs={"img_size": 32, "pyramid": False},
        inputs={},
        method="test",
        steps=0,
    )
    ours, foreign, back = (tmp_path / name for name in ("ours.safetensors", "foreign.pt", "back.safetensors"))
    save_encoder(ours, encoder, metadata)
    assert main(["convert", str(ours), str(foreign), "--to", "hivit"]) == 0
    assert main(["convert", str(foreign), str(back)]) == 0
    assert str(back) in capsys.readouterr().out
    loaded = load_encoder(back).state_dict()
    for key, value in encoder.state_dict().items():
        if not key.startswith("patch_embed.sar"):
            assert torch.equal(loaded[key], value), key


def test_convert_refuses_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"not a checkpoint")
    assert main(["convert", str(path), str(tmp_path / "out.safetensors")]) == 1
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def save_card(path: Path, values: list[float], split_hash: str = "s") -> Path:
    make_card(seeds=list(range(len(values))), values=values, split_hash=split_hash).save(path)
    return path


def test_compare_ranks_like_and_refuses_unlike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = save_card(tmp_path / "a.json", [50.0, 52.0])
    b = save_card(tmp_path / "b.json", [55.0, 57.0])
    other = save_card(tmp_path / "c.json", [60.0, 60.0], split_hash="another")
    assert main(["compare", str(a), str(b)]) == 0
    assert "5.00 points" in capsys.readouterr().out
    assert main(["compare", str(a), str(other)]) == 1
    assert "split_hash" in capsys.readouterr().err


def test_diff_of_paper_and_official_lists_the_disagreements(capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(CONFIGS / f"codemae_hivit_base_{preset}.yaml") for preset in ("paper", "official")]
    assert main(["diff", *names]) == 0
    shown = capsys.readouterr().out
    for field in ("method.modality_reduction", "method.okd.loss", "method.okd.branches", "method.ccl.input"):
        assert field in shown
    assert "method.mask_ratio" not in shown
    assert main(["diff", names[0], names[0]]) == 0
    assert "equal" in capsys.readouterr().out


def test_diff_of_a_mistyped_key_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("method: {name: codemae, mask_ration: 0.5}\n")
    assert main(["diff", str(path), str(path)]) == 1
    assert "mask_ratio" in capsys.readouterr().err


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_doctor_compares_versions_with_the_pins(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("torch==0.0.1  # of another age\nnumpy>=1\n")
    checks = by_name(examine(tmp_path, pins))
    assert checks["torch"].verdict == "note" and "0.0.1" in checks["torch"].found
    assert checks["numpy"].verdict == "ok"
    assert checks["python"].verdict == "ok"
    assert "GFLOP/s float32" in checks["matrix products"].found


def test_doctor_finds_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["no-such-package>=1", "numpy>=9999", "skipped==1; extra == 'dev'"]
    monkeypatch.setattr("codemae.doctor.metadata.requires", lambda _: needed)
    checks = by_name(examine(tmp_path))
    assert checks["no-such-package"].verdict == "problem" and "missing" in checks["no-such-package"].found
    assert checks["numpy"].verdict == "problem" and ">=9999" in checks["numpy"].found
    assert "skipped" not in checks
    assert main(["doctor", "--folder", str(tmp_path)]) == 1


def test_help_and_usage_start_without_torch() -> None:
    code = (
        "import sys; from codemae.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
