"""The only file that reads or writes weights: run states, encoder files, strict loading.

output_dir/
  last.pt               newest complete run state; written as last.pt.partial, fsynced, then renamed
  previous.pt           the one before it
  encoder.safetensors   weights and, in the header, all that is needed to use them
"""

import argparse
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

LAST = "last.pt"
PREVIOUS = "previous.pt"
HEADER_KEY = "codemae"
_WRAPPERS = ("model", "state_dict", "module")
# What public checkpoints carry beside tensors: parsed arguments and numpy numbers. None of it runs code.
_HARMLESS_TYPES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.float32,
    np.float64,
    np.int64,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


class WeightsError(ValueError):
    """A weights file cannot be used; the message says which, why, and what to do."""


class CheckpointError(RuntimeError):
    """A run state could not be written or found; the message says what to do."""


@dataclass(kw_only=True)
class InputSpec:
    """What one modality's images must look like to an encoder.

    Attributes:
        channels: Channels its patch embedding takes.
        mean: Per channel, on [0, 1] values.
        std: Per channel, on [0, 1] values.
        scaling: How stored values become [0, 1] values, as ``stats.yaml`` says it.
        size: Side in pixels it was trained at.
    """

    channels: int
    mean: list[float]
    std: list[float]
    scaling: str
    size: int


@dataclass(kw_only=True)
class EncoderMetadata:
    """All that is needed to rebuild an encoder and feed it.

    Attributes:
        arch: Name for ``create_encoder``.
        arch_kwargs: Its keyword arguments.
        inputs: By modality.
        method: Name of the pretraining method.
        steps: Optimizer steps it was trained for.
        source_commit: Of the code that trained it, or "unknown".
        licence_notes: Terms that reach these weights.
    """

    arch: str
    arch_kwargs: dict[str, Any]
    inputs: dict[str, InputSpec]
    method: str
    steps: int
    source_commit: str = "unknown"
    licence_notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What strict loading did: keys loaded, and those excused."""

    loaded: list[str]
    missing: list[str]
    unexpected: list[str]


def save_encoder(
    path: str | Path, weights: nn.Module | Mapping[str, Tensor], metadata: EncoderMetadata
) -> None:
    """Writes an encoder file; a file of that name is replaced only once the new one is complete."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}
    header = {HEADER_KEY: json.dumps(asdict(metadata)), "format": "pt"}
    _replace_atomically(
        Path(path), lambda partial: partial.write_bytes(safetensors.torch.save(tensors, header))
    )


def read_encoder(path: str | Path) -> tuple[dict[str, Tensor], EncoderMetadata]:
    """Reads an encoder file.

    Raises:
        WeightsError: It is missing, damaged, or has no description of the encoder in its header.
    """
    state = read_weights(path)
    if Path(path).suffix != ".safetensors":
        raise WeightsError(
            f"{path} is a plain weights file; an encoder file ends in .safetensors. "
            "Make one with `codemae convert`."
        )
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata() or {}
    if HEADER_KEY not in header:
        raise WeightsError(
            f"{path} has no {HEADER_KEY!r} entry in its header, so its architecture and input statistics "
            "are unknown. Make an encoder file of it with `codemae convert`."
        )
    try:
        fields = json.loads(header[HEADER_KEY])
        inputs = {name: InputSpec(**spec) for name, spec in fields.pop("inputs").items()}
        return state, EncoderMetadata(inputs=inputs, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path}: the {HEADER_KEY!r} entry of its header is not readable: {error}"
        ) from error


def is_encoder_file(path: str | Path) -> bool:
    """Whether a readable file is a safetensors file that describes an encoder in its header."""
    if Path(path).suffix != ".safetensors":
        return False
    with safe_open(str(path), framework="pt") as file:
        return HEADER_KEY in (file.metadata() or {})


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors or torch file, without running anything the file contains.

    A torch file may wrap them in ``model``, ``state_dict`` or ``module``, or hold one such mapping for each
    part of a model, whose name becomes a prefix; a ``module.`` prefix on every key is cut.

    Raises:
        WeightsError: Missing, damaged, holding code, or holding something else than weights.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"no weights file at {path}; check the path, or run `codemae models` for known names"
        )
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (SafetensorError, ValueError) as error:
            raise WeightsError(
                f"{path} is damaged or cut off ({error}); copy or download it again"
            ) from error
    content = _load_safely(path)
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if isinstance(content, Mapping) and all(isinstance(part, Mapping) for part in content.values()):
        content = {f"{name}.{key}": value for name, part in content.items() for key, value in part.items()}
    if isinstance(content, Mapping) and {"method", "optimizer", "step"} <= set(content):
        raise WeightsError(f"{path} is the state of a run; use the encoder.safetensors beside it")
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        found = (
            ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        )
        raise WeightsError(
            f"{path} holds no state dict, plain or under {', '.join(_WRAPPERS)}; found: {found or 'nothing'}"
        )
    prefix = "module."
    cut = len(prefix) if content and all(key.startswith(prefix) for key in content) else 0
    return {key[cut:]: value for key, value in content.items()}


def save_weights(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Writes bare tensors for other programs: .safetensors, else a torch file with them under ``model``."""
    path = Path(path)
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.items()}

    def write(partial: Path) -> None:
        if path.suffix == ".safetensors":
            partial.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
        else:
            torch.save({"model": tensors}, partial)

    _replace_atomically(path, write)


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Loads a state dict; every difference that is not excused is an error.

    Args:
        module: Where to.
        state: Its weights.
        allow_missing: Regular expressions, each matching whole keys of the module that may keep their values.
        allow_unexpected: Regular expressions, each matching whole keys of the state that may be left out.

    Raises:
        WeightsError: Keys are missing, unexpected or of another shape; the message lists each.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    shared = [key for key in own if key in state]
    problems = [f"missing: {key}" for key in missing if not _matches(key, allow_missing)]
    problems += [f"unexpected: {key}" for key in unexpected if not _matches(key, allow_unexpected)]
    problems += [
        f"shape: {key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in shared
        if state[key].shape != own[key].shape
    ]
    if problems:
        raise WeightsError(
            f"these weights do not fit {type(module).__name__} ({len(problems)} differences):\n  "
            + "\n  ".join(problems)
        )
    module.load_state_dict({**own, **{key: state[key] for key in shared}})
    return LoadReport(loaded=shared, missing=missing, unexpected=unexpected)


def save_run_state(folder: str | Path, state: dict[str, Any]) -> None:
    """Writes ``last.pt``; the one before becomes ``previous.pt``. At any moment one of them is complete.

    Raises:
        CheckpointError: It could not be written (disk full, no permission); what was there is intact.
    """
    folder = Path(folder)
    last = folder / LAST

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            torch.save(state, file)

    def keep_previous() -> None:
        if last.exists():
            os.replace(last, folder / PREVIOUS)

    _replace_atomically(last, write, keep_previous)


def load_run_state(path: str | Path) -> dict[str, Any]:
    """Reads a run state: a file, or the newest whole one of a run folder.

    Raises:
        CheckpointError: There is none.
        WeightsError: The named file, or every one in the folder, is damaged.
    """
    path = Path(path)
    if path.is_file():
        return _load_safely(path)
    found = [path / name for name in (LAST, PREVIOUS) if (path / name).is_file()]
    if not found:
        raise CheckpointError(f"no {LAST} or {PREVIOUS} in {path}; nothing to resume from")
    for candidate in found[:-1]:
        try:
            return _load_safely(candidate)
        except WeightsError as error:
            warnings.warn(f"{error}; falling back to {PREVIOUS}")
    return _load_safely(found[-1])


def has_run_state(folder: str | Path) -> bool:
    """Whether a run folder holds a state to resume from."""
    return any((Path(folder) / name).is_file() for name in (LAST, PREVIOUS))


def read_torch_file(path: str | Path, harmless: Iterable[Any] = ()) -> Any:
    """Whatever a torch file holds, read without running any of it.

    Args:
        path: Of the file.
        harmless: Types it may hold beside tensors and plain values, as ``torch.serialization`` takes them.

    Raises:
        WeightsError: It is damaged or holds something else.
    """
    return _load_safely(Path(path), harmless)


def _load_safely(path: Path, harmless: Iterable[Any] = ()) -> Any:
    try:
        with torch.serialization.safe_globals([*_HARMLESS_TYPES, *harmless]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise WeightsError(f"{path} is damaged or not a torch file; copy or download it again") from error
        raise WeightsError(
            f"{path} holds more than tensors ({named.group(1)}), which could run code when read, so it was "
            "not read. If you trust its author, resave its state dict alone with torch.save or safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, OSError, zipfile.BadZipFile) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise WeightsError(
            f"{path} is damaged or cut off ({first_line}); copy or download it again"
        ) from error


def _replace_atomically(
    path: Path, write: Callable[[Path], object], before_rename: Callable[[], None] = lambda: None
) -> None:
    """Writes a file so that after a crash at any moment the name leads to the old or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        _sync(partial)
        before_rename()
        os.replace(partial, path)
        _sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        with suppress(OSError):
            partial.unlink()
        first_line = str(error).splitlines()[0]
        raise CheckpointError(
            f"could not write {path} ({first_line}). What was saved before is intact: free some space or "
            "mend the folder, then run the same command again to resume."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)
