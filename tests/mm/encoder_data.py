"""Encoder files with the weights that a seed gives."""

from pathlib import Path
from typing import Any

import torch

from codemae.checkpoint import EncoderMetadata, InputSpec, save_encoder
from codemae.models.factory import create_encoder


def encoder_file(
    folder: Path, arch: str = "hivit_tiny", name: str = "encoder", seed: int = 3, **kwargs: Any
) -> Path:
    torch.manual_seed(seed)
    encoder = create_encoder(arch, img_size=64, **kwargs)
    spec = InputSpec(channels=3, mean=[0.4] * 3, std=[0.2] * 3, scaling="uint8 / 255", size=64)
    metadata = EncoderMetadata(
        arch=arch,
        arch_kwargs=encoder.arch_kwargs,
        inputs=dict.fromkeys(encoder.modalities, spec),
        method="codemae",
        steps=7,
        licence_notes=["research only"],
    )
    path = folder / f"{name}.safetensors"
    save_encoder(path, encoder, metadata)
    return path
