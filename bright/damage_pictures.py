"""Scenes the model does well and badly on, and the curves of its training, as pictures."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage_config import COLOURS, BrightConfig, DamageError
from damage_evaluation import predicted_tiles, tiles_of
from damage_splits import Splits

from codemae.data.bitemporal import BitemporalTiles
from codemae.distributed import world_size
from codemae.evaluation.segmentation_metrics import DamageScore
from codemae.models.damage import DamageModel

SCENES = "scenes.png"
CURVES = "curves.png"
SHARES = {"worst": 0.1, "median": 0.5, "good": 0.9}
UNLABELLED = (128, 128, 128)
VERDICTS = {"right": (47, 126, 216), "missed": (200, 30, 60), "false alarm": (240, 160, 30)}
GROUND = (245, 245, 242)


def draw(
    config: BrightConfig, model: DamageModel, splits: Splits, device: torch.device, run: Path
) -> list[Path]:
    """Draws three tiles of a split by rank of the figure (a tenth, half, nine tenths), and the run's curves.

    Tiles whose figure is not defined are left out.

    Raises:
        DamageError: Several processes run it, or no tile has the figure.
    """
    if world_size() > 1:
        raise DamageError("pictures are drawn by one process")
    name = config.split or splits.report_names()[0]
    tiles = tiles_of(config, splits, splits.report(name))
    ranked: list[tuple[float, int, np.ndarray]] = []
    for place, (_, building, damage, mask) in enumerate(predicted_tiles(model, tiles, config, device)):
        score = DamageScore(tuple(config.data.classes))
        score.add(building, damage, mask, "tile")
        figure = score.figures().get(config.metric, math.nan)
        if damage is not None and math.isfinite(figure):
            ranked.append((figure, place, damage.numpy().astype(np.uint8)))
    if not ranked:
        raise DamageError(f"no tile of {name!r} has a {config.metric}")
    ranked.sort(key=lambda entry: entry[:2])
    chosen = {word: ranked[round(share * (len(ranked) - 1))] for word, share in SHARES.items()}
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _draw_scenes(folder / SCENES, config, splits, tiles, chosen)
    written = [folder / SCENES]
    if (run / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        _draw_curves(folder / CURVES, lines, config.metric)
        written.append(folder / CURVES)
    return written


def coloured(classes: np.ndarray) -> np.ndarray:
    """Class numbers as colours, what has no label grey: (H, W) -> (H, W, 3) uint8."""
    table = np.full((256, 3), UNLABELLED, dtype=np.uint8)
    table[: len(COLOURS)] = COLOURS
    return table[classes]


def verdicts(mask: np.ndarray, damage: np.ndarray, unlabelled: np.ndarray) -> np.ndarray:
    """Where a map is right and wrong: (H, W) labels and predictions -> (H, W, 3) uint8.

    A pixel of class 1 and above predicted as its class is right, as another or as background missed;
    background predicted as a class is a false alarm, the rest of the background is left pale.
    """
    picture = np.full((*mask.shape, 3), GROUND, dtype=np.uint8)
    picture[(mask > 0) & (damage == mask)] = VERDICTS["right"]
    picture[(mask > 0) & (damage != mask)] = VERDICTS["missed"]
    picture[(mask == 0) & (damage > 0)] = VERDICTS["false alarm"]
    picture[unlabelled] = UNLABELLED
    return picture


def shown(values: np.ndarray) -> np.ndarray:
    """(C, H, W) on [0, 1] as a picture, stretched between its 2nd and 98th percentiles: (H, W, 3) uint8."""
    planes = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    low, high = np.nanpercentile(planes, (2, 98))
    stretched = np.clip((planes - low) / max(high - low, 1e-6), 0, 1)
    return np.moveaxis(np.nan_to_num(stretched * 255), 0, -1).astype(np.uint8)


def _draw_scenes(
    path: Path,
    config: BrightConfig,
    splits: Splits,
    tiles: BitemporalTiles,
    chosen: dict[str, tuple[float, int, np.ndarray]],
) -> None:
    plt = _pyplot()
    columns: tuple[str, ...] = ("optical before", f"{config.data.post_modality} after", "label", "predicted")
    if config.hide_images:
        columns = ("",)
    # Without the images a tile is one picture, and the tiles stand side by side.
    shape = (1, len(chosen)) if config.hide_images else (len(chosen), len(columns))
    size = (9, 3.6) if config.hide_images else (9, 7)
    figure, panels = plt.subplots(*shape, figsize=size, squeeze=False)
    rows = panels.reshape(len(chosen), len(columns))
    for row, (word, (value, place, damage)) in zip(rows, chosen.items(), strict=True):
        before, after, mask = tiles.read(int(tiles.rows[place]))
        pictures: tuple[np.ndarray, ...] = (shown(before), shown(after), coloured(mask), coloured(damage))
        if config.hide_images:
            pictures = (verdicts(mask, damage, mask >= len(config.data.classes)),)
        for panel, picture, title in zip(row, pictures, columns, strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.set_title(title, fontsize=8)
        row[0].set_ylabel(f"{word}: {config.metric.replace('_', ' ')} {value:.0f} %", fontsize=8)
        row[0].set_xlabel(splits.key(int(tiles.rows[place])), fontsize=7)
    if config.hide_images:
        for word, colour in VERDICTS.items():
            rows[0][0].scatter([], [], marker="s", color=[tuple(part / 255 for part in colour)], label=word)
        figure.legend(loc="lower center", ncols=len(VERDICTS), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06 if config.hide_images else 0, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def running_mean(values: list[float]) -> np.ndarray:
    """Mean of each value and those before it, as many as a tenth of the list."""
    reach = max(1, len(values) // 10)
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - reach)
    mean: np.ndarray = (sums[ends] - sums[starts]) / (ends - starts)
    return mean


def _draw_curves(path: Path, lines: list[dict[str, Any]], metric: str) -> None:
    plt = _pyplot()
    judged = [line for line in lines if metric in line]
    figure, panels = plt.subplots(1, 2 if judged else 1, figsize=(9, 3), squeeze=False)
    losses, steps = [line["loss"] for line in lines], [line["step"] for line in lines]
    panels[0][0].plot(steps, losses, alpha=0.3)
    panels[0][0].plot(steps, running_mean(losses), color="C0")
    panels[0][0].set_ylabel("loss of a batch, and running mean")
    if judged:
        panels[0][1].plot([line["step"] for line in judged], [line[metric] for line in judged], "o-")
        panels[0][1].set_ylabel(f"{metric.replace('_', ' ')} (%) where the step is chosen")
    for panel in panels[0]:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt
