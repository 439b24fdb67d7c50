"""Segmentation: fine-tune an encoder in mmsegmentation, measure it, and map scenes of any size."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from segment_card import TABLE, card_of, write_table
from segment_pictures import PICTURE, draw_examples
from segment_scene import map_scene, reader_facts
from segment_submission import SubmissionError, write_submission

from codemae.data.images import ImageError, PathError
from codemae.data.index import IndexFileError
from codemae.data.masks import MaskError
from codemae.evaluation.card import CARD_NAME, CardError
from codemae.mm.backbone import find_backbone
from codemae.mm.checkpoints import read_mm_checkpoint
from codemae.mm.launch import (
    USER_ERRORS,
    Command,
    LaunchError,
    build_runner,
    find_checkpoint,
    load_trained,
    parse,
    parser_of,
    read_config,
    set_architecture,
)
from codemae.mm.runner import StrictRunner
from codemae.mm.segmentation import IndexSegmentation, SegmentationDataError
from codemae.scenes.geotiff import SceneError
from codemae.scenes.tiling import TilingConfig, TilingError

BAD_SAMPLES = "bad_samples.txt"
SUBMISSION = "submission.zip"
MISTAKES = (
    *USER_ERRORS,
    CardError,
    ImageError,
    IndexFileError,
    MaskError,
    PathError,
    SceneError,
    SegmentationDataError,
    SubmissionError,
    TilingError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``train``, ``test`` or ``infer``; the last line printed is the figure in words.

    Returns:
        0; 2 after a mistake of the user; 130 after Ctrl-C, when ``--resume`` goes on.
    """
    parser, actions = parser_of("segmentation", __doc__ or "")
    actions["test"].add_argument(
        "--submission", type=Path, metavar="DIR", help="predict the PNG images below DIR for a server instead"
    )
    infer = actions["infer"]
    infer.add_argument("--sar", type=Path, metavar="SCENE", help="SAR scene, where the model takes both")
    infer.add_argument("--out", type=Path, metavar="FILE", help="GeoTIFF; WORK_DIR/SCENE_classes.tif")
    infer.add_argument("--probabilities", action="store_true", help="write them, too, beside the classes")
    infer.add_argument("--strict", action="store_true", help="end at the first window that cannot be read")
    command = parse("segmentation", parser, argv)
    try:
        config = prepared(command, read_config(command))
        sentence = {"train": train, "test": test, "infer": infer_scene}[command.action](command, config)
    except MISTAKES as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    if is_main_process():
        print(sentence)
    return 0


def prepared(command: Command, config: Config) -> Config:
    """The config with what depends on the machine and the work dir."""
    if not torch.cuda.is_available() and config.optim_wrapper.type == "AmpOptimWrapper":
        print_log("no GPU: training in float32 instead of mixed precision", "current", 30)
        config.optim_wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fp16"):
            config.optim_wrapper.pop(key, None)
    config.train_dataloader.dataset.bad_samples = str(command.work_dir / BAD_SAMPLES)
    return config


def train(command: Command, config: Config) -> str:
    """Fine-tunes, then measures the last step on the test rows, where the config has any."""
    runner = build_runner(config, command.resume)
    runner.train()
    if config.get("test_dataloader") is None:
        return (
            f"{find_checkpoint(command)} is trained; no labelled image is left to measure it on: "
            "test --submission DIR predicts the server's"
        )
    return report(command, config, runner, "last")


def test(command: Command, config: Config) -> str:
    """Measures a checkpoint on the config's test rows, or writes a submission."""
    path = find_checkpoint(command)
    if command.more.submission is not None:
        if "submission" not in config:
            raise LaunchError(f"{config.filename} has no key submission; LoveDA's configs have")
        archive = command.work_dir / SUBMISSION
        count = write_submission(
            load_trained(config, path), command.more.submission, archive, config.submission
        )
        return f"{archive}: {count} predictions"
    if config.get("test_dataloader") is None:
        raise LaunchError(f"{config.filename} has no labelled test images; add --submission DIR")
    set_architecture(config, read_mm_checkpoint(path))
    config.load_from = str(path)
    runner = StrictRunner.from_cfg(config)
    best = path.name.startswith("best_")
    return report(
        command, config, runner, ("test" if _tests_on_validation(config) else "val") if best else "last"
    )


def report(command: Command, config: Config, runner: StrictRunner, selected_by: str) -> str:
    """Measures the runner's model on all test rows; writes card, table and pictures."""
    figures: dict[str, float] = runner.test()
    if not is_main_process():
        return ""
    dataset: IndexSegmentation = runner.test_dataloader.dataset
    model: Any = runner.model
    model = getattr(model, "module", model)
    train_rows = {key: value for key, value in config.train_dataloader.dataset.items() if key != "type"}
    trained_on = IndexSegmentation(**{**train_rows, "pipeline": [], "bad_samples": None})
    source = find_backbone(model)[1].source
    card = card_of(config, figures, trained_on, dataset, source, runner.images_a_step, selected_by)
    card.save(command.work_dir / CARD_NAME)
    write_table(command.work_dir / TABLE, dataset.metainfo["classes"], figures)
    metric = runner.test_evaluator.metrics[0]
    draw_examples(command.work_dir / PICTURE, model, dataset, metric.by_row)
    return str(card.sentence())


def infer_scene(command: Command, config: Config) -> str:
    """Maps one scene, or an optical and a SAR scene of the same ground."""
    words = command.more
    model: Any = load_trained(config, find_checkpoint(command))
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    facts = reader_facts(model)
    both = len(facts) == 2
    if both != (words.sar is not None):
        raise LaunchError(
            "the model takes an optical and a SAR scene: add --sar SCENE"
            if both
            else f"the model takes one scene ({', '.join(facts)}): leave --sar out"
        )
    given = [words.scene, words.sar] if both else [words.scene]
    scenes = dict(zip(facts, given, strict=True))
    out = words.out or command.work_dir / f"{words.scene.stem}_classes.tif"
    result = map_scene(
        model,
        scenes,
        facts,
        out,
        TilingConfig(**config.tiling),
        probabilities=out.with_name(f"{out.stem}_probabilities.tif") if words.probabilities else None,
        strict=words.strict,
    )
    for line in result.unread:
        print(f"warning: {line}", file=sys.stderr)
    if not result.placed:
        print(f"warning: {words.scene} has no coordinate system, so neither has the map", file=sys.stderr)
    missing = f", {len(result.unread)} of them unreadable and left without data" if result.unread else ""
    return f"{out}: {result.height} x {result.width} px from {result.windows} windows{missing}"


def sentence_of(error: BaseException) -> str:
    """What an error says, without the traceback that a data-loading process wraps around it."""
    text = str(error.args[0] if error.args else error).strip()
    return text.splitlines()[-1].split("Error: ", 1)[-1] if "Traceback" in text else text


def _tests_on_validation(config: Config) -> bool:
    """Whether the rows that choose a checkpoint are those it is measured on."""
    val, test_rows = config.get("val_dataloader"), config.test_dataloader
    return val is not None and val.dataset.split == test_rows.dataset.split


if __name__ == "__main__":
    sys.exit(main())
