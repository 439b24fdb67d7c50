"""Sliding-window evaluation: figures of a split, by disaster, and the result card."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from damage_config import BrightConfig, DamageError, Dates
from damage_file import Description
from damage_splits import Events, Splits
from torch import Tensor

from codemae.data.bitemporal import BitemporalTiles
from codemae.distributed import gather_objects, is_main, rank, world_size
from codemae.evaluation.card import CARD_NAME, Card, joint_hash, write_atomically
from codemae.evaluation.features import rows_hash
from codemae.evaluation.segmentation_metrics import DamageScore
from codemae.evaluation.tables import as_table
from codemae.models.damage import DamageModel, DamageOutput
from codemae.scenes.tiling import Area, TilingConfig, pad_to_multiple, predict_blocks

Disturb = Callable[[int, np.ndarray], np.ndarray]
"""Changes the second date (C, H, W) on [0, 1] of an index row."""


def check_dates(model: DamageModel, dates: Dates) -> None:
    """Refuses dates that a model does not answer with.

    Raises:
        DamageError: It does not.
    """
    if dates not in model.answers:
        hint = "; train it with --loss.post_localisation 0.5" if dates == "post" else ""
        raise DamageError(f"--dates {dates}: this model answers with {', '.join(model.answers)}{hint}")


def stacked_logits(output: DamageOutput) -> Tensor:
    """Localisation logits and, where defined, damage logits, side by side: (B, 2 or 2 + K, H, W)."""
    localisation = output.post_localisation if output.localisation is None else output.localisation
    assert localisation is not None
    return localisation if output.damage is None else torch.cat([localisation, output.damage], dim=1)


def predict_windows(
    model: DamageModel, pre: list[Tensor] | None, post: list[Tensor] | None, device: torch.device, amp: str
) -> Tensor:
    """Stacked logits of windows (C, h, w) of the dates there are: (n, 2 or 2 + K, h, w)."""
    size = (pre or post or [])[0].shape[-2:]
    dtype = getattr(torch, amp)

    def batch(windows: list[Tensor] | None) -> Tensor | None:
        if windows is None:
            return None
        return pad_to_multiple(torch.stack(windows), 16).to(device, non_blocking=True)

    with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = stacked_logits(model(batch(pre), batch(post)))
    return logits[..., : size[0], : size[1]]


def tile_logits(
    model: DamageModel,
    pre: Tensor | None,
    post: Tensor | None,
    tiling: TilingConfig,
    device: torch.device,
    amp: str,
) -> Tensor:
    """Blended stacked logits (2 or 2 + K, H, W) of a tile (C, H, W) of the dates there are."""
    given = pre if pre is not None else post
    assert given is not None
    height, width = given.shape[-2:]

    def part(image: Tensor | None, area: Area) -> Tensor | None:
        if image is None:
            return None
        rows = slice(area.row, area.row + area.height)
        return image[:, rows, area.column : area.column + area.width]

    def predict(windows: list[tuple[Tensor | None, Tensor | None]]) -> Tensor:
        before = [window[0] for window in windows if window[0] is not None] or None
        after = [window[1] for window in windows if window[1] is not None] or None
        return predict_windows(model, before, after, device, amp)

    whole: Tensor | None = None
    for block in predict_blocks(
        height, width, lambda area: (part(pre, area), part(post, area)), predict, tiling
    ):
        area, values = block
        if whole is None:
            whole = torch.empty(values.shape[0], height, width)
        whole[:, area.row : area.row + area.height, area.column : area.column + area.width] = values
    assert whole is not None
    return whole


def predicted_tiles(
    model: DamageModel,
    tiles: BitemporalTiles,
    config: BrightConfig,
    device: torch.device,
    *,
    dates: Dates = "both",
    disturb: Disturb | None = None,
) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor]]:
    """Answers for this process's share of the tiles.

    Yields:
        Index row, building (H, W) of 0 and 1, damage (H, W) class numbers or None, mask (H, W).
    """
    check_dates(model, dates)
    model.eval()
    for place in range(rank(), len(tiles), world_size()):
        row = int(tiles.rows[place])
        before, after, mask = tiles.read(row)
        if disturb is not None:
            after = disturb(row, after)
        pre, post = tiles.standardised(row, before, after)
        logits = tile_logits(
            model,
            None if dates == "post" else pre,
            None if dates == "pre" else post,
            config.tiling,
            device,
            config.optim.amp,
        )
        damage = logits[2:].argmax(0) if len(logits) > 2 else None
        yield row, logits[:2].argmax(0), damage, torch.from_numpy(mask.astype(np.int64))


def evaluate_tiles(
    model: DamageModel,
    tiles: BitemporalTiles,
    events: Events,
    config: BrightConfig,
    device: torch.device,
    *,
    dates: Dates = "both",
    disturb: Disturb | None = None,
) -> DamageScore:
    """Counts of all tiles, the same on every process."""
    own = DamageScore(tuple(config.data.classes))
    for row, building, damage, mask in predicted_tiles(
        model, tiles, config, device, dates=dates, disturb=disturb
    ):
        own.add(building, damage, mask, events.of(row))
    whole = DamageScore(tuple(config.data.classes))
    for part in gather_objects(own.state()):
        whole.merge(part)
    return whole


def tiles_of(
    config: BrightConfig, splits: Splits, rows: np.ndarray, *, labelled: bool = True
) -> BitemporalTiles:
    """Rows as whole tiles."""
    data = config.data
    return BitemporalTiles(
        splits.index,
        rows,
        post_modality=data.post_modality,
        mask_values=data.mask_values,
        ignore_values=data.ignore_values,
        labelled=labelled,
    )


def figure_of(score: DamageScore, metric: str, dates: Dates = "both") -> float:
    """The figure that selects and ranks; with one date the F1 of localisation."""
    return score.figures()[metric if dates == "both" else "localisation_f1"]


def write_results(
    folder: Path,
    config: BrightConfig,
    description: Description,
    splits: Splits,
    name: str,
    rows: np.ndarray,
    score: DamageScore,
    dates: Dates = "both",
) -> Card:
    """Writes the card and the table of disasters of one reported split."""
    figures = {key: value for key, value in score.figures().items() if np.isfinite(value)}
    metric = config.metric if dates == "both" else "localisation_f1"
    if metric not in figures:
        raise DamageError(f"split {name!r} has no labelled pixel that {metric} could be computed from")
    rules = sorted({splits.index.source(row) for row in rows.tolist()})
    seen = {"pre": description.pre_modality, "post": description.post_modality}
    kinds = set(seen.values()) if dates == "both" else {seen[dates]}
    modality = "both" if len(kinds) > 1 else kinds.pop()
    card = Card(
        task="damage",
        dataset=f"{'+'.join(rules)} {name}",
        split_hash=joint_hash([description.train_hash, rows_hash(splits.index, rows)]),
        statistics_hash=splits.index.statistics_hash(),
        encoder=description.encoder,
        checkpoint_hash=description.checkpoint_hash,
        modality=modality,
        protocol=description.protocol,
        selected_by=description.selected_by,
        metric=metric,
        seeds=[description.seed],
        values=[figures[metric]],
        size=config.tiling.window,
        settings=description.training
        | {
            "tiling": asdict(config.tiling),
            "splits": description.split_rule,
            "post_modality": description.post_modality,
            "dates": dates,
        },
        metrics={key: [value] for key, value in figures.items() if key != metric},
        also={
            "step": description.step,
            "tiles": sum(score.tiles.values()),
            "removed": description.removed,
            "events": {
                event: {
                    key: round(value, 4) for key, value in score.figures(event).items() if np.isfinite(value)
                }
                | {"tiles": score.tiles[event]}
                for event in sorted(score.tiles)
            },
        },
    )
    if is_main():
        card.save(folder / CARD_NAME)
        write_atomically(folder / "events.md", (event_table(score) + "\n").encode())
    return card


def event_table(score: DamageScore) -> str:
    """The figures of every disaster and of all, as a Markdown table."""
    columns = list(score.figures())
    lines = [["event", "tiles", *(name.replace("_", " ") for name in columns)]]
    for event in [*sorted(score.tiles), None]:
        figures = score.figures(event)
        count = sum(score.tiles.values()) if event is None else score.tiles[event]
        shown = [figures.get(name, float("nan")) for name in columns]
        cells = ["-" if np.isnan(value) else f"{value:.2f}" for value in shown]
        lines.append([event or "all", str(count), *cells])
    return as_table(lines, True)


def removed_words(removed: dict[str, str]) -> str:
    """Which tiles stood in two lists, for the log."""
    if not removed:
        return "no tile stood in two lists"
    return "removed from the second list: " + ", ".join(f"{name} ({kept})" for name, kept in removed.items())
