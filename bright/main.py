"""Building damage from an optical image before and a SAR image after: train, evaluate, infer, submit."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import damage_maps
import damage_pictures
import damage_robustness
import damage_submission
import damage_training
import torch
from damage_config import BrightConfig, DamageError
from damage_file import DESCRIPTION, Description, load_model
from damage_splits import Splits

from codemae.checkpoint import CheckpointError, WeightsError
from codemae.config import load_config, save_config
from codemae.data.images import ImageError, PathError
from codemae.data.index import IndexFileError
from codemae.data.masks import MaskError
from codemae.data.statistics import StatisticsError
from codemae.distributed import broadcast_object, is_main, process_group, select_device
from codemae.engine.interruption import Interrupted
from codemae.engine.supervised import SupervisedError
from codemae.evaluation.card import Card, CardError
from codemae.models.damage import DamageModel
from codemae.models.layer_decay import LayerDecayError
from codemae.scenes.geotiff import SceneError
from codemae.scenes.tiling import TilingError

USER_ERRORS = (
    CardError,
    CheckpointError,
    DamageError,
    ImageError,
    IndexFileError,
    LayerDecayError,
    MaskError,
    PathError,
    SceneError,
    StatisticsError,
    SupervisedError,
    TilingError,
    WeightsError,
)


def train(config: BrightConfig, device: torch.device) -> str:
    """Trains, saves the chosen step and evaluates it on every reported split."""
    return _sentences(damage_training.train(config, device))


def evaluate(config: BrightConfig, device: torch.device) -> str:
    """Evaluates a trained model, on all splits that are reported or on one."""
    model, description, splits = _trained(config, device)
    return _sentences(damage_training.report(config, description, model, splits, device))


def infer(config: BrightConfig, device: torch.device) -> str:
    """Maps two scenes, or one."""
    model, description = load_model(config.trained or config.output_dir)
    files = damage_maps.infer(config, model.to(device), description, device)
    return f"{files.count} buildings in {files.buildings}; the map is {files.map}"


def submit(config: BrightConfig, device: torch.device) -> str:
    """Writes the archive for the leaderboard."""
    model, _, splits = _trained(config, device)
    archive = damage_submission.submit(config, model, splits, device)
    return f"{archive} holds what the leaderboard takes"


def robustness(config: BrightConfig, device: torch.device) -> str:
    """Measures and draws how the figures fall."""
    model, _, splits = _trained(config, device)
    curves = damage_robustness.measure(config, model, splits, device)
    folder = Path(config.output_dir)
    damage_robustness.write(folder, curves, config.metric)
    clean = curves["clean"][config.metric]
    worst = min(figures[config.metric] for kind in ("shifts", "looks") for figures in curves[kind].values())
    return (
        f"{curves['split']}: {config.metric.replace('_', ' ')} {clean:.2f} % undisturbed, "
        f"{worst:.2f} % at worst; "
        f"{folder / damage_robustness.PICTURE}"
    )


def pictures(config: BrightConfig, device: torch.device) -> str:
    """Draws three tiles, done well and badly, and the curves of training."""
    model, _, splits = _trained(config, device)
    run = Path(config.trained or config.output_dir)
    return "\n".join(map(str, damage_pictures.draw(config, model, splits, device, run)))


COMMANDS: dict[str, Callable[[BrightConfig, torch.device], str]] = {
    "train": train,
    "evaluate": evaluate,
    "infer": infer,
    "submit": submit,
    "robustness": robustness,
    "pictures": pictures,
}


USAGE = f"usage: python bright/main.py {'|'.join(COMMANDS)} [--config YAML] [--key value ...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in COMMANDS:
        wants_help = bool(words) and words[0] in ("-h", "--help")
        print(USAGE, file=sys.stdout if wants_help else sys.stderr)
        return 0 if wants_help else 2
    command = words.pop(0)
    config = load_config(BrightConfig, words, description=COMMANDS[command].__doc__ or "")
    try:
        device = _device(config)
        with process_group(device):
            if command == "train":
                _save_config(config)
            sentence = COMMANDS[command](config, device)
            if is_main():
                print(sentence)
    except Interrupted as stop:
        return stop.exit_code
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _device(config: BrightConfig) -> torch.device:
    try:
        return select_device(config.device)
    except ValueError as error:
        raise DamageError(str(error)) from None


def _save_config(config: BrightConfig) -> None:
    """Writes ``config.yaml`` on the main process before work begins."""
    problem = None
    if is_main():
        folder = Path(config.output_dir)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_config(config, folder / "config.yaml")
        except OSError as error:
            problem = f"--output_dir {folder}: {error.strerror}"
    if problem := broadcast_object(problem):
        raise DamageError(problem)


def _trained(config: BrightConfig, device: torch.device) -> tuple[DamageModel, Description, Splits]:
    """Model, description and rows; the classes asked for must be the model's."""
    folder = Path(config.trained or config.output_dir)
    model, description = load_model(folder)
    asked = config.data
    if list(asked.classes) != description.classes or asked.post_modality != description.post_modality:
        raise DamageError(
            f"{folder / DESCRIPTION} is for the classes {description.classes} and a second date of "
            f"{description.post_modality}; give the --config it was trained with"
        )
    return model.to(device), description, Splits(asked, config.seed)


def _sentences(cards: list[Card]) -> str:
    return "\n".join(card.sentence() for card in cards)


if __name__ == "__main__":
    sys.exit(main())
