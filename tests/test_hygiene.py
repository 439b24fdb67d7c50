"""Rules of the house that a reader would otherwise have to check by eye."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TASK_FOLDERS = {"pretrain", "linearprobing", "classification", "detection", "segmentation", "bright"}
SOURCES = sorted(
    path
    for folder in ("codemae", "datasets", "benchmarks", *sorted(TASK_FOLDERS))
    for path in (ROOT / folder).rglob("*.py")
)
FLOORS = [
    {"modality", "registry", "config", "distributed", "checkpoint"},
    {"losses", "models", "data", "weights", "downloads"},
    {"methods", "evaluation", "scenes"},
    {"engine", "analysis"},
    {"mm", "cli", "doctor"},
]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def calls(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}


def floor_of(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "codemae" or len(parts) < 2:
        return None
    return next((level for level, names in enumerate(FLOORS) if parts[1] in names), None)


def test_imports_point_down_and_never_to_a_task_folder() -> None:
    wrong = []
    for path in SOURCES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        own = floor_of(module)
        for name in imports(path):
            if module.startswith("codemae") and name.split(".")[0] in TASK_FOLDERS | {"datasets"}:
                wrong.append(f"{module} imports {name}")
            other = floor_of(name)
            if own is not None and other is not None and other > own:
                wrong.append(f"{module} imports {name} from a floor above")
            if not module.startswith("codemae") and name.split(".")[0] in TASK_FOLDERS - {
                module.split(".")[0]
            }:
                wrong.append(f"{module} imports another task folder: {name}")
    assert wrong == []


@pytest.mark.parametrize(
    ("call", "home"),
    [("torch.load", "codemae/checkpoint.py"), ("dist.init_process_group", "codemae/distributed.py")],
)
def test_dangerous_calls_have_one_home(call: str, home: str) -> None:
    last = call.split(".")[-1]
    users = {
        str(p.relative_to(ROOT))
        for p in SOURCES
        for c in calls(p)
        if c == call or c.endswith("." + last) and last != "load"
    }
    assert users == {home}


def test_no_lenient_loading_and_no_path_of_one_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    paths = [ROOT / name for name in tracked if name] or SOURCES
    lenient, absolute = [], []
    place = re.compile(r"(^|[^A-Za-z0-9_./])/(root|home|work|mnt|farm)/")
    for path in paths:
        if (
            path.suffix not in {".py", ".yaml", ".sh", ".toml", ".md"}
            or path == Path(__file__)
            or not path.exists()
        ):
            continue
        text = path.read_text()
        if "tests" not in path.parts and re.search(r"load_state_dict\([^)]*strict\s*=\s*False", text):
            lenient.append(path.name)
        absolute += [f"{path.name}: {line}" for line in text.splitlines() if place.search(line)]
    assert lenient == [] and absolute == []


def test_files_are_named_for_what_is_inside() -> None:
    assert [p.name for p in SOURCES if p.stem in {"utils", "util", "misc", "helpers", "common"}] == []


def test_importing_the_library_pulls_in_no_detection_stack() -> None:
    program = (
        "import sys, codemae, codemae.methods, codemae.engine.run, codemae.evaluation.probe\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mmcv', 'mmengine', 'mmdet', 'mmseg')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.mm
def test_the_detection_stack_of_this_environment_builds_a_detector() -> None:
    mmdet = pytest.importorskip("mmdet.apis")
    ops = pytest.importorskip("mmcv.ops")
    import torch

    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1]
    assert kept.tolist() == [0, 2]
    assert hasattr(mmdet, "init_detector")
