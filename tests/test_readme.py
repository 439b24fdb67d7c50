"""What the READMEs promise: their links lead somewhere, their commands and code run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
import torch

from codemae import checkpoint
from codemae.models.factory import create_encoder

ROOT = Path(__file__).parents[1]
READMES = sorted(
    path for path in ROOT.glob("**/README.md") if ".venv" not in path.parts and "runs" not in path.parts
)
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def commands(readme: Path) -> list[list[str]]:
    """Words of each line of the bash blocks, with ``$NAME`` as ``NAME=VALUE`` of the block has set it."""
    found = []
    for body in (body for language, body in BLOCK.findall(readme.read_text()) if language == "bash"):
        values: dict[str, str] = {}
        for line in body.replace("\\\n", " ").splitlines():
            words = [Template(word).safe_substitute(values) for word in shlex.split(line, comments=True)]
            for place, word in enumerate(words):
                if assigned := re.fullmatch(r"(\w+)=(.*)", word):
                    values[assigned[1]] = words[place] = assigned[2]
            found.append(words)
    return [words for words in found if words]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_links_lead_to_files(readme: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", readme.read_text()):
        if not target.startswith("http"):
            assert (readme.parent / target).exists(), f"{readme} links to {target}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_commands_name_files_that_exist(readme: Path) -> None:
    for words in commands(readme):
        for word in words:
            # What lies under runs/ the commands write themselves.
            if word.endswith((".py", ".sh", ".yaml")) and not word.startswith(("$", "runs/")):
                assert (ROOT / word).exists(), f"{readme}: {shlex.join(words)}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(ROOT / "README.md"):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE)


def test_the_encoder_in_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = create_encoder("hivit_tiny", img_size=64)
    inputs = {
        name: checkpoint.InputSpec(channels=3, mean=[0.5] * 3, std=[0.2] * 3, scaling="uint8", size=64)
        for name in ("optical", "sar")
    }
    metadata = checkpoint.EncoderMetadata(
        arch="hivit_tiny",
        arch_kwargs=encoder.arch_kwargs,
        inputs=inputs,
        method="codemae",
        steps=1,
        source_commit="",
        licence_notes=[],
    )
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    checkpoint.save_encoder(tmp_path / "runs" / "mine" / "encoder.safetensors", encoder, metadata)
    monkeypatch.chdir(tmp_path)
    code = next(
        body for language, body in BLOCK.findall((ROOT / "README.md").read_text()) if language == "python"
    )
    names = {"images": torch.rand(2, 3, 64, 96), "chips": torch.rand(2, 1, 128, 64)}
    exec(code, names)  # noqa: S102
    assert names["tokens"].shape == (2, 24, 192)
    assert [tuple(m.shape[2:]) for m in names["maps"]] == [(32, 16), (16, 8), (8, 4), (4, 2)]
    assert names["vector"].shape == (2, 192)
    assert names["encoder"].inputs["optical"].mean == [0.5] * 3


@pytest.mark.parametrize("subcommand", ["models", "doctor"])
def test_command_line_answers(subcommand: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codemae.cli", subcommand], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "hivit_base" in done.stdout if subcommand == "models" else "torch" in done.stdout
