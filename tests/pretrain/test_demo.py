import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "pretrain" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_demo_runs_end_to_end_without_the_teacher(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "TEACHER_PACKAGE", "no_such_package")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = ["--train", "60", "--test", "12", "--size", "32", "--seeds", "2"]
    small = ["--optim.max_steps=2", "--log.every=1", "--log.sentinel_every=2", "--data.num_workers=0"]
    assert demo.main(["--out", str(tmp_path), *sizes, *small, "--optim.batch_per_gpu=4"]) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[-1] == str(tmp_path / "report.html")
    assert any("without the teacher" in line for line in said)
    page = (tmp_path / "report.html").read_text()
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    assert sections == [
        "What ran",
        "Loss curves",
        "Reconstructions",
        "Linear probe",
        "Singular value spectra",
        "Collapse sentinel",
        "Alignment of patches",
    ]
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    for kind in ("pretrained", "random"):
        for modality in ("optical", "sar"):
            card = json.loads((tmp_path / f"probe_{kind}_{modality}" / "results.json").read_text())
            assert card["shots"] == 10 and len(card["values"]) == 2
            assert f"{card['mean']:.1f} ± {card['std']:.1f}" in page
    last = json.loads((tmp_path / "pretrain" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 2 and {"reconstruction", "ccl", "cdr"} <= set(last) and "okd" not in last


def test_a_failing_step_stops_the_demo(demo: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"pretrain/main.py failed"):
        demo._finish([demo._start(["-c", "raise SystemExit(3)"])], demo.PRETRAIN)
