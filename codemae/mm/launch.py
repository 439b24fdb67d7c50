"""What the command lines of detection and segmentation share: config, encoder, runner, checkpoints."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import find_latest_checkpoint
from torch import nn

from codemae.checkpoint import WeightsError, load_strictly
from codemae.data.images import ImageError
from codemae.data.statistics import StatisticsError, read_statistics
from codemae.mm.backbone import BackboneError, CoDeMAEBackbone
from codemae.mm.checkpoints import SOURCE_KEY, encoder_of, read_mm_checkpoint
from codemae.mm.runner import StrictRunner
from codemae.models.layer_decay import LayerDecayError

BACKBONE = CoDeMAEBackbone.__name__
LOADER = "LoadReadableImage"
BAD_SAMPLES = "bad_samples.txt"
FROM_CHECKPOINT = ("encoder", "img_size", "channels", "center", "seed")
"""Arguments of the backbone that a checkpoint's description of its encoder replaces."""


class LaunchError(ValueError):
    """The command line, the config or the data do not fit each other; the message says what to do."""


USER_ERRORS = (LaunchError, BackboneError, WeightsError, LayerDecayError, ImageError, StatisticsError)
"""What a command line answers in one sentence, with exit code 2."""


@dataclass(kw_only=True)
class Command:
    """A parsed command line.

    Attributes:
        action: ``train``, ``test`` or ``infer``.
        config: File of the config.
        encoder: What ``--encoder`` names; None leaves the config's.
        work_dir: Folder of all output.
        options: Overrides of the config, ``a.b`` to value.
        resume: None for a fresh run, ``auto`` for the newest checkpoint of the work dir, else a file.
        checkpoint: Of a trained model, for ``test`` and ``infer``.
        more: Arguments that the task added to its parser.
    """

    action: str
    config: Path
    encoder: str | None
    work_dir: Path
    options: dict[str, Any]
    resume: str | None = None
    checkpoint: Path | None = None
    more: argparse.Namespace = field(default_factory=argparse.Namespace)


def parser_of(
    task: str, description: str
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """A parser with train, test and infer, and the parser of each, for a task to add arguments to."""
    parser = argparse.ArgumentParser(prog=f"{task}/main.py", description=description)
    actions = parser.add_subparsers(dest="action", required=True, metavar="train|test|infer")
    found = {}
    for action, line in (
        ("train", "fine-tune an encoder and evaluate it"),
        ("test", "evaluate a checkpoint on the config's test images"),
        ("infer", "apply a checkpoint to a scene of any size"),
    ):
        one = found[action] = actions.add_parser(action, help=line, description=line)
        one.add_argument("config", type=Path, metavar="CONFIG", help="a file of configs/")
        if action == "infer":
            one.add_argument("scene", type=Path, metavar="SCENE", help="GeoTIFF, PNG or JPEG")
        if action == "train":
            one.add_argument(
                "--encoder",
                help="FILE, released NAME or random:ARCH, or OPTICAL_FILE,SAR_FILE where a config takes both "
                "modalities; the config's when not given",
            )
            one.add_argument(
                "--resume",
                nargs="?",
                const="auto",
                metavar="FILE",
                help="go on from the newest checkpoint of the work dir, or from FILE",
            )
        else:
            one.add_argument(
                "--checkpoint", type=Path, metavar="FILE", help="the work dir's newest when not given"
            )
        one.add_argument("--work-dir", type=Path, metavar="DIR", help=f"runs/{task}/CONFIG when not given")
        one.add_argument(
            "--cfg-options",
            nargs="+",
            action=DictAction,
            default={},
            metavar="KEY=VALUE",
            help="override keys",
        )
        one.add_argument(
            "--launcher", choices=("none", "pytorch"), default="none", help="pytorch under torchrun"
        )
    return parser, found


def parse(task: str, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> Command:
    """Reads a command line; mistakes in it end the program with code 2."""
    words = parser.parse_args(argv)
    return Command(
        action=words.action,
        config=words.config,
        encoder=getattr(words, "encoder", None),
        work_dir=words.work_dir or Path("runs") / task / words.config.stem,
        options=words.cfg_options,
        resume=getattr(words, "resume", None),
        checkpoint=getattr(words, "checkpoint", None),
        more=words,
    )


def read_config(command: Command) -> Config:
    """The config with the command line's overrides, encoder, work dir and launcher in it.

    Raises:
        LaunchError: No such file, it cannot be read, or an override does not fit.
    """
    if not command.config.is_file():
        near = sorted(path.name for path in command.config.parent.glob("*.py"))
        raise LaunchError(
            f"no config at {command.config}" + (f"; there are {', '.join(near)}" if near else "")
        )
    try:
        config = Config.fromfile(command.config)
        config.merge_from_dict(command.options)
    except (KeyError, TypeError, ValueError, SyntaxError, OSError, AttributeError) as error:
        raise LaunchError(f"{command.config} cannot be read: {error}") from error
    if command.encoder is not None:
        set_encoder(config, command.encoder)
    config.work_dir = str(command.work_dir)
    config.launcher = command.more.launcher
    resolve_statistics(config)
    run_in_full_precision_on_cpu(config)
    for loader in described(config._cfg_dict, LOADER):
        loader["record"] = str(command.work_dir / BAD_SAMPLES)
    return config


def resolve_statistics(config: Config) -> None:
    """Puts mean and deviation of the index that ``statistics`` names into the data preprocessor.

    A config states either numbers or the ``stats.yaml`` of an index; nothing falls back to those of other
    images.

    Raises:
        StatisticsError: There is no such file, or its scaling is not that of bytes.
    """
    path = config.pop("statistics", None)
    if path is None:
        return
    (modality,) = [backbone.get("modality", "optical") for backbone in described(config.model, BACKBONE)]
    sources = read_statistics(Path(path).parent).sources
    found = [sides[modality] for sides in sources.values() if modality in sides]
    if len(found) != 1 or found[0].scaling.rule != "uint8":
        raise StatisticsError(
            f"{path} has {len(found)} sources of {modality} bytes; instead of statistics set "
            "model.data_preprocessor.mean and .std in levels of 0 to 255"
        )
    one = found[0].expanded(3)
    config.model.data_preprocessor.mean = [255 * value for value in one.mean]
    config.model.data_preprocessor.std = [255 * value for value in one.std]


def run_in_full_precision_on_cpu(config: Config) -> None:
    """Takes mixed precision out of a config where there is no accelerator; mmengine refuses it there."""
    if config.optim_wrapper.type == "AmpOptimWrapper" and not torch.cuda.is_available():
        print_log("no accelerator: mixed precision is off", "current")
        config.optim_wrapper["type"] = "OptimWrapper"
        for key in ("dtype", "loss_scale"):
            config.optim_wrapper.pop(key, None)


def described(node: Any, kind: str) -> Iterator[ConfigDict]:
    """Every description of a module of one type within a config, whatever its scope."""
    if isinstance(node, dict):
        if str(node.get("type", "")).rpartition(".")[2] == kind:
            yield node
        for value in node.values():
            yield from described(value, kind)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from described(value, kind)


def set_encoder(config: Config, encoder: str) -> None:
    """Makes the config's backbone load this encoder.

    Raises:
        LaunchError: The config has no backbone of ours.
    """
    found = list(described(config.model, BACKBONE))
    if not found:
        raise LaunchError(f"{config.filename} has no {BACKBONE}, so --encoder has nothing to set")
    for backbone in found:
        backbone.pop("arch", None)
        backbone["encoder"] = encoder


def build_runner(config: Config, resume: str | None = None) -> StrictRunner:
    """The runner of a training run, fresh or to be resumed.

    Raises:
        LaunchError: There is nothing to resume from.
    """
    if resume is not None:
        newest = newest_checkpoint(Path(config.work_dir)) if resume == "auto" else Path(resume)
        if newest is None or not newest.is_file():
            raise LaunchError(f"nothing to resume from at {newest or config.work_dir}; leave --resume out")
        set_architecture(config, read_mm_checkpoint(newest))
        config.resume, config.load_from = True, str(newest)
    return StrictRunner.from_cfg(config)


def set_architecture(config: Config, checkpoint: dict[str, Any]) -> None:
    """Makes the backbone build the checkpoint's encoder without asking for the file it once came from."""
    _, metadata = encoder_of(checkpoint)
    for backbone in described(config.model, BACKBONE):
        for key in FROM_CHECKPOINT:
            backbone.pop(key, None)
        backbone["arch"] = {"name": metadata.arch, **metadata.arch_kwargs}
        backbone["source"] = checkpoint["meta"][SOURCE_KEY]


def find_checkpoint(command: Command) -> Path:
    """The checkpoint that was named, or the newest of the work dir.

    Raises:
        LaunchError: There is none.
    """
    found = command.checkpoint or newest_checkpoint(command.work_dir)
    if found is None or not found.is_file():
        raise LaunchError(
            f"no checkpoint at {found or command.work_dir}; train first, or name one with --checkpoint"
        )
    return found


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that was written last, also where the folder has been moved since; None without one."""
    newest = find_latest_checkpoint(str(folder)) if folder.is_dir() else None
    if newest is None or Path(newest).is_file():
        return Path(newest) if newest else None
    return folder / Path(newest).name


def load_trained(config: Config, path: Path) -> nn.Module:
    """The trained model in eval mode, on the CPU, every key of the checkpoint in its place.

    Raises:
        WeightsError: The checkpoint does not fit the config.
    """
    checkpoint = read_mm_checkpoint(path)
    set_architecture(config, checkpoint)
    init_default_scope(config.get("default_scope", "mmengine"))
    model: nn.Module = MODELS.build(config.model)
    load_strictly(model, checkpoint["state_dict"])
    model.dataset_meta = checkpoint["meta"].get("dataset_meta", {})
    return model.eval()
