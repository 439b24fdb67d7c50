"""Checkpoints of mmengine: read without running anything they contain, and the encoder taken out of them."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging.history_buffer import HistoryBuffer
from torch import Tensor

from codemae.checkpoint import EncoderMetadata, InputSpec, WeightsError, read_torch_file, save_encoder

ENCODER_KEY = "encoder"
"""Entry of a checkpoint's ``meta`` that describes the encoder."""
PAIR = "pair"
"""What stands there for the name of the architecture where each modality has an encoder of its own."""
SOURCE_KEY = "encoder_source"
"""Entry that names the weights training started from, and their hash."""

_HISTORY_METHODS = ("min", "max", "current", "mean")


def _history_method(owner: type, name: str) -> Any:
    """What ``getattr`` means in a checkpoint: one of the four statistics of a log curve, nothing else."""
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f"GLOBAL getattr of {owner} and {name!r} is no part of a log")
    return getattr(owner, name)


# What mmengine's checkpoints hold beside tensors: the curves of the log, as arrays of NumPy.
_LOG_TYPES: list[Any] = [
    HistoryBuffer,
    (_history_method, "builtins.getattr"),
    np.ndarray,
    np.zeros(0).__reduce__()[0],
    type(np.dtype(np.float32)),
    type(np.dtype(np.int32)),
    type(np.dtype(np.bool_)),
    (np.zeros(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),
    (np.zeros(0).__reduce__()[0], "numpy._core.multiarray._reconstruct"),
]


def read_mm_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint that a training run wrote.

    Differs from mmengine's own reading, which unpickles whatever it finds when safe reading fails.

    Raises:
        WeightsError: Missing, damaged, holding code, or no checkpoint of mmengine.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"no checkpoint at {path}; training writes epoch_N.pth or iter_N.pth in its work dir"
        )
    content = read_torch_file(path, _LOG_TYPES)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise WeightsError(f"{path} is no checkpoint of mmengine: it has no state_dict")
    content.setdefault("meta", {})
    # A legacy entry that mmengine would run as Python when it resumes.
    content["meta"].pop("config", None)
    return content


def encoder_of(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], EncoderMetadata]:
    """Weights and description of the encoder in a checkpoint.

    Raises:
        WeightsError: It was not written by ``StrictRunner``, or has no encoder.
    """
    fields = checkpoint["meta"].get(ENCODER_KEY)
    prefix = "backbone.encoder."
    state = {
        key.removeprefix(prefix): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(prefix)
    }
    if fields is None or not state:
        raise WeightsError("this checkpoint has no encoder of codemae in it")
    inputs = {name: InputSpec(**spec) for name, spec in fields["inputs"].items()}
    return state, EncoderMetadata(**{**fields, "inputs": inputs})


def export_encoder(path: str | Path, target: str | Path, modality: str | None = None) -> None:
    """Writes the encoder of a detector's or segmentor's checkpoint as an encoder file.

    Args:
        path: The checkpoint.
        target: The file to write.
        modality: Whose encoder, where each modality has its own.

    Raises:
        WeightsError: It cannot be read or has none, or it has two and none is named.
    """
    state, metadata = encoder_of(read_mm_checkpoint(path))
    if metadata.arch == PAIR:
        if modality not in metadata.arch_kwargs:
            names = " or ".join(metadata.arch_kwargs)
            raise WeightsError(f"{path} has an encoder a modality; say which to export: modality={names}")
        arch_kwargs = dict(metadata.arch_kwargs[modality])
        prefix = f"encoders.{modality}."
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        inputs = {name: spec for name, spec in metadata.inputs.items() if name == modality}
        metadata = replace(metadata, arch=arch_kwargs.pop("name"), arch_kwargs=arch_kwargs, inputs=inputs)
    save_encoder(target, state, metadata)
