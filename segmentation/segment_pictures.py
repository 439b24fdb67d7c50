"""Test images the model does badly, middling and well on, beside their labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_predict import inputs_of, predict_logits
from torch import nn

from codemae.data.masks import NO_LABEL
from codemae.mm.segmentation import IndexSegmentation

PICTURE = "examples.png"
SHARES = {"poor": 0.1, "median": 0.5, "good": 0.9}
UNLABELLED = (128, 128, 128)


def draw_examples(
    path: Path, model: nn.Module, dataset: IndexSegmentation, by_row: Sequence[tuple[int, float]]
) -> None:
    """Draws three test images by rank of their own mean IoU: a tenth, half and nine tenths of the way up.

    Args:
        path: PNG to write.
        model: The segmentor.
        dataset: Test rows.
        by_row: Index row and mean IoU in percent of each test image; without any, nothing is drawn.
    """
    ranked = sorted((figure, row) for row, figure in by_row if figure == figure)
    if not ranked:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = {word: ranked[round(share * (len(ranked) - 1))] for word, share in SHARES.items()}
    columns = (*dataset.modalities, "label", "predicted")
    figure, panels = plt.subplots(
        len(chosen), len(columns), figsize=(2.6 * len(columns), 2.6 * len(chosen)), squeeze=False
    )
    colours = np.array(dataset.metainfo["palette"], dtype=np.uint8)
    for line, (word, (value, row)) in zip(panels, chosen.items(), strict=True):
        sample = dataset.read(row)
        with torch.no_grad():
            logits = predict_logits(model, inputs_of([sample]))
        predicted = logits[0].argmax(dim=0).cpu().numpy().astype(np.uint8)
        parts = np.split(sample["img"], np.cumsum(sample["parts"])[:-1], axis=-1)
        pictures = [stretched(part) for part in parts]
        pictures += [coloured(sample["gt_seg_map"], colours), coloured(predicted, colours)]
        for panel, picture, title in zip(line, pictures, columns, strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            panel.set_title(title, fontsize=8)
        line[0].set_ylabel(f"{word}: {value:.0f} % mIoU", fontsize=8)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour / 255) for colour in colours]
    figure.legend(handles, dataset.metainfo["classes"], loc="lower center", ncol=5, fontsize=7)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def coloured(classes: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Class numbers (H, W) as colours (H, W, 3), grey without label."""
    table = np.full((NO_LABEL + 1, 3), UNLABELLED, dtype=np.uint8)
    table[: len(colours)] = colours
    return table[classes]


def stretched(values: np.ndarray) -> np.ndarray:
    """(H, W, C) as a picture between its 2nd and 98th percentiles: (H, W, 3) uint8, the first channels."""
    planes: Any = values[..., :3] if values.shape[-1] >= 3 else np.repeat(values[..., :1], 3, axis=-1)
    low, high = np.percentile(planes, (2, 98))
    return (np.clip((planes - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
