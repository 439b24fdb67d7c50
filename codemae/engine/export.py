"""Encoder files out of a method in training."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import codemae
from codemae.checkpoint import EncoderMetadata, InputSpec, save_encoder
from codemae.data.index import Index
from codemae.methods.base import Method


def export_encoders(folder: Path, method: Method, index: Index, *, method_name: str, steps: int) -> None:
    """Writes one ``<name>.safetensors`` for each of the method's encoders.

    Args:
        folder: The run folder.
        method: Whose encoders; each has ``arch``, ``arch_kwargs``, ``channels`` and ``img_size``.
        index: What it was trained on; its statistics, each source weighted by its images, go into the files.
        method_name: As in the registry.
        steps: Optimizer steps done.
    """
    commit = source_commit()
    licence_notes = list(getattr(method, "licence_notes", []))
    encoders: Mapping[str, Any] = method.encoders()
    for name, encoder in encoders.items():
        metadata = EncoderMetadata(
            arch=encoder.arch,
            arch_kwargs=encoder.arch_kwargs,
            inputs=input_specs(index, encoder.channels, encoder.img_size),
            method=method_name,
            steps=steps,
            source_commit=commit,
            licence_notes=licence_notes,
        )
        save_encoder(folder / f"{name}.safetensors", encoder, metadata)


def input_specs(index: Index, channels: dict[str, int], size: int) -> dict[str, InputSpec]:
    """The input contract by modality, for the modalities the index has images of."""
    specs = {}
    for modality, count in channels.items():
        if not len(index.rows_with(modality)):
            continue
        pooled = index.pooled_stats(modality).expanded(count)
        specs[modality] = InputSpec(
            channels=count,
            mean=list(pooled.mean),
            std=list(pooled.std),
            scaling=str(pooled.scaling),
            size=size,
        )
    return specs


def source_commit() -> str:
    """Commit of this code, ``-dirty`` after it where files were changed; "unknown" outside its repository."""
    root = Path(codemae.__file__).parents[1]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"
