"""How figures fall with misregistration, speckle and a missing date: measured and drawn."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage_config import BrightConfig, Dates
from damage_evaluation import evaluate_tiles, tiles_of
from damage_splits import Splits

from codemae.data.bitemporal import BitemporalTiles, shifted, speckled
from codemae.data.randomness import counter_rng
from codemae.distributed import is_main
from codemae.evaluation.card import write_atomically
from codemae.evaluation.tables import as_table
from codemae.models.damage import DamageModel

FIGURES = "robustness.json"
PICTURE = "robustness.png"
TABLE = "robustness.md"
Curves = dict[str, Any]


def measure(config: BrightConfig, model: DamageModel, splits: Splits, device: torch.device) -> Curves:
    """Figures of one split under each disturbance of the second date, and with each date missing.

    Returns:
        ``split``, ``clean`` figures, ``shifts`` and ``looks`` (value to figures), ``missing`` (dates to
        figures).
    """
    name = config.robustness.split or splits.report_names()[0]
    tiles = tiles_of(config, splits, splits.report(name))

    def figures(**how: Any) -> dict[str, float]:
        score = evaluate_tiles(model, tiles, splits.events, config, device, **how)
        return {key: round(value, 4) for key, value in score.figures().items() if math.isfinite(value)}

    found: Curves = {"split": name, "tiles": len(tiles), "clean": figures()}
    found["shifts"] = {
        distance: figures(disturb=lambda row, post, d=distance: moved(post, d, config.seed, row))
        for distance in config.robustness.shifts
    }
    found["looks"] = {
        looks: figures(disturb=lambda row, post, n=looks: noisy(tiles, post, n, config.seed, row))
        for looks in config.robustness.looks
    }
    alone: list[Dates] = ["pre", "post"]
    found["missing"] = {f"{dates} alone": figures(dates=dates) for dates in alone if dates in model.answers}
    return found


def moved(post: np.ndarray, distance: int, seed: int, row: int) -> np.ndarray:
    """The second date moved by whole pixels in a direction drawn for the tile, the same at every distance."""
    angle = counter_rng(seed, 0, 0, row, "robustness:shift").uniform(0, 2 * np.pi)
    return shifted(post, round(distance * np.sin(angle)), round(distance * np.cos(angle)))


def noisy(tiles: BitemporalTiles, post: np.ndarray, looks: int, seed: int, row: int) -> np.ndarray:
    """The second date under speckle of so many looks, on top of its own."""
    rng = counter_rng(seed, 0, 0, row, "robustness:speckle")
    return speckled(post, tiles.statistics(row)[1].scaling, looks, rng)


def write(folder: Path, curves: Curves, metric: str) -> None:
    """Writes the numbers and the picture."""
    if not is_main():
        return
    write_atomically(folder / FIGURES, (json.dumps(curves, indent=1) + "\n").encode())
    write_atomically(folder / TABLE, (as_text(curves) + "\n").encode())
    draw(folder / PICTURE, curves, metric)


def as_text(curves: Curves) -> str:
    """Every disturbance with its figures and, in brackets, their distance from the undisturbed ones."""
    clean = curves["clean"]
    lines = [[f"{curves['split']}, {curves['tiles']} tiles", *(name.replace("_", " ") for name in clean)]]
    lines.append(["undisturbed", *(f"{value:.2f}" for value in clean.values())])
    named = [(f"moved by {distance} px", found) for distance, found in curves["shifts"].items()]
    named += [(f"speckle, looks: {looks}", found) for looks, found in curves["looks"].items()]
    named += list(curves["missing"].items())
    for words, found in named:
        cells = [f"{found[k]:.2f} ({found[k] - clean[k]:+.2f})" if k in found else "-" for k in clean]
        lines.append([words, *cells])
    return as_table(lines, True)


def draw(path: Path, curves: Curves, metric: str) -> None:
    """Two panels: the figures against misregistration, and against looks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [
        name for name in dict.fromkeys((metric, "localisation_f1", "damage_f1")) if name in curves["clean"]
    ]
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for panel, kind, label in (
        (panels[0], "shifts", "misregistration of the second date (px)"),
        (panels[1], "looks", "looks of added speckle"),
    ):
        places = [float(value) for value in curves[kind]]
        for number, name in enumerate(shown):
            values = [figures.get(name, math.nan) for figures in curves[kind].values()]
            panel.plot(places, values, "o-", color=f"C{number}", label=name.replace("_", " "))
            panel.axhline(curves["clean"][name], color=f"C{number}", linewidth=0.7, linestyle=":")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
        if kind == "looks":
            panel.set_xscale("log", base=2)
            panel.set_xticks(places, [f"{value:g}" for value in places])
    panels[0].set_ylabel("percent")
    panels[0].legend()
    figure.suptitle(f"{curves['split']}, {curves['tiles']} tiles; dotted: undisturbed")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
