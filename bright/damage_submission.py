"""The archive that the DFC25 track 2 leaderboard takes: flat, one PNG of raw class numbers a tile."""

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from damage_config import BrightConfig, DamageError
from damage_evaluation import predicted_tiles, tiles_of
from damage_splits import Splits
from PIL import Image

from codemae.distributed import world_size
from codemae.models.damage import DamageModel

SUFFIX = "_building_damage.png"
ARCHIVE = "submission.zip"


def submit(config: BrightConfig, model: DamageModel, splits: Splits, device: torch.device) -> Path:
    """Predicts a split and writes the archive, checked.

    Raises:
        DamageError: Several processes run it, or the archive is not as the leaderboard wants it.
    """
    if world_size() > 1:
        raise DamageError("submit writes one archive; run it as one process")
    name = config.split or splits.report_names()[-1]
    tiles = tiles_of(config, splits, splits.report(name), labelled=False)
    target = Path(config.output_dir) / ARCHIVE
    target.parent.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, tuple[int, int]] = {}
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for row, _, damage, _ in predicted_tiles(model, tiles, config, device):
            assert damage is not None
            file = splits.key(row).rsplit("/", 1)[-1] + SUFFIX
            content = io.BytesIO()
            Image.fromarray(damage.numpy().astype(np.uint8)).save(content, format="PNG")
            archive.writestr(file, content.getvalue())
            sizes[file] = (damage.shape[0], damage.shape[1])
    problems = check_submission(partial, sizes, len(config.data.classes))
    if problems:
        raise DamageError(f"{partial} is no valid submission: " + "; ".join(problems[:5]))
    partial.replace(target)
    return target


def check_submission(path: Path, sizes: Mapping[str, tuple[int, int]], num_classes: int = 4) -> list[str]:
    """What is wrong with an archive: nothing, or a sentence for each problem.

    Args:
        path: The archive.
        sizes: Expected file name to height and width.
        num_classes: Class numbers lie below it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            problems = [f"{name} lies in a folder" for name in names if "/" in name]
            problems += [f"{name} stands there twice" for name in sorted(names) if names.count(name) > 1]
            problems += _listed("is missing", set(sizes) - set(names))
            problems += _listed("is not a tile of the split", set(names) - set(sizes))
            for name in sorted(set(names) & set(sizes)):
                problems += _check_tile(archive.read(name), name, sizes[name], num_classes)
    except (OSError, zipfile.BadZipFile) as error:
        return [f"{path} is no zip archive ({error})"]
    return problems


def _listed(what: str, names: Iterable[str]) -> list[str]:
    return [f"{name} {what}" for name in sorted(names)]


def _check_tile(content: bytes, name: str, size: tuple[int, int], num_classes: int) -> list[str]:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            form, mode, values = opened.format, opened.mode, np.asarray(opened)
    except OSError as error:
        return [f"{name} cannot be read ({error})"]
    if form != "PNG" or mode != "L":
        return [f"{name} is {form} of mode {mode}, wanted is PNG with one channel of 8 bits"]
    problems = []
    if values.shape != size:
        problems.append(f"{name} is {values.shape[0]} x {values.shape[1]}, the tile {size[0]} x {size[1]}")
    if values.max() >= num_classes:
        problems.append(f"{name} holds {values.max()}, the classes are 0 to {num_classes - 1}")
    return problems
