"""Logits of standardised images, whatever their size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from codemae.scenes.tiling import pad_to_multiple

MULTIPLE = 32


def inputs_of(samples: Sequence[Mapping[str, Any]]) -> Tensor:
    """Samples of ``IndexSegmentation.read`` of one size as (B, C, H, W), standardised."""
    images = [(sample["img"] - sample["mean"]) / sample["std"] for sample in samples]
    return torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), dtype=np.float32))


@torch.no_grad()
def predict_logits(model: Any, images: Tensor, whole: bool = False) -> Tensor:
    """Logits (B, K, H, W) of standardised images (B, C, H, W).

    Args:
        model: An ``EncoderDecoder`` of mmsegmentation.
        images: Of any size; they are padded to multiples of 32 as in a test.
        whole: Whether to see them at once, whatever the model's ``test_cfg`` says.
    """
    height, width = images.shape[-2:]
    padded = pad_to_multiple(images, MULTIPLE).to(_device(model))
    size = padded.shape[2:]
    metas = [{"ori_shape": size, "img_shape": size, "pad_shape": size} for _ in images]
    model.eval()
    logits = model.encode_decode(padded, metas) if whole else model.inference(padded, metas)
    return logits[..., :height, :width]


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
