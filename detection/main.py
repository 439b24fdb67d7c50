"""Detection: fine-tune an encoder in mmdetection, score it, and search scenes of any size."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from box_pictures import draw_predictions
from box_scores import TABLE, card_of, print_table, score, write_table
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from rich.console import Console
from scene_boxes import SceneSettings, detector_of, search_scene

from codemae.evaluation.card import CARD_NAME, Card
from codemae.mm.backbone import find_backbone
from codemae.mm.checkpoints import read_mm_checkpoint
from codemae.mm.coco import AnnotationError
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
from codemae.scenes.geotiff import SceneError
from codemae.scenes.tiling import TilingError

PREDICTIONS = "predictions"
PICTURES = "pictures"
BEST = "best_"
"""How mmengine's name of the best epoch's checkpoint begins."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``train``, ``test`` or ``infer``; the last line printed is the figure in words.

    Returns:
        0; 2 after a mistake of the user; 130 after Ctrl-C, when ``--resume`` goes on.
    """
    parser, actions = parser_of("detection", __doc__ or "")
    for action in ("train", "test"):
        actions[action].add_argument("--pictures", type=int, default=16, help="test images to draw (16)")
    actions[
        "test"
    ].epilog = "Without --checkpoint an official preset scores the best epoch, as training does."
    infer = actions["infer"]
    infer.add_argument(
        "--out", type=Path, metavar="FILE", help="GeoJSON; WORK_DIR/SCENE.geojson when not given"
    )
    infer.add_argument("--window", type=int, help="side of a window in pixels; the config's when not given")
    infer.add_argument("--overlap", type=int, help="pixels that windows share; the config's when not given")
    infer.add_argument("--batch-size", type=int, default=1, help="windows a call (1)")
    infer.add_argument("--score", type=float, default=0.3, help="least score of a box (0.3)")
    infer.add_argument("--bands", type=int, nargs="+", metavar="N", help="bands to show, from 1, red first")
    infer.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="stored values that become 0 and 255",
    )
    infer.add_argument("--strict", action="store_true", help="end at the first window that cannot be read")
    infer.add_argument("--device", help="cpu or cuda; cuda where there is one")
    command = parse("detection", parser, argv)
    try:
        config = read_config(command)
        words = {"train": train, "test": test, "infer": search}[command.action](command, config)
        if is_main_process():
            print(words)
        return 0
    except (*USER_ERRORS, AnnotationError, SceneError, TilingError) as error:
        print(f"error: {_last_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        return 130


def train(command: Command, config: Config) -> str:
    """Fine-tunes, then scores the epoch that the config's protocol reports."""
    config.test_evaluator.outfile_prefix = str(command.work_dir / PREDICTIONS)
    runner = build_runner(config, command.resume)
    runner.train()
    barrier()
    return report_selected(command, config, runner)


def test(command: Command, config: Config) -> str:
    """Scores on the config's test images what training reported, or the checkpoint that is named."""
    path = find_checkpoint(command)
    set_architecture(config, read_mm_checkpoint(path))
    config.test_evaluator.outfile_prefix = str(command.work_dir / PREDICTIONS)
    runner = StrictRunner.from_cfg(config)
    if command.checkpoint is None:
        return report_selected(command, config, runner)
    return report(command, config, runner, path, "test" if path.name.startswith(BEST) else "last", {})


def report_selected(command: Command, config: Config, runner: StrictRunner) -> str:
    """Reports the last epoch or, under the official protocol, the best on the test images and both figures.

    Raises:
        LaunchError: The protocol selects, and no epoch was evaluated.
    """
    last = find_checkpoint(command)
    if config.protocol != "official":
        return report(command, config, runner, last, "last", {})
    best = sorted(command.work_dir.glob(f"{BEST}*.pth"), key=lambda path: path.stat().st_mtime)
    if not best:
        raise LaunchError(
            f"no {BEST}*.pth in {command.work_dir}, which the official protocol reports; train until an "
            "epoch is evaluated, or score another with test --checkpoint FILE"
        )
    score_checkpoint(runner, last)
    also = {"last": _scores(command, config).figures} if is_main_process() else {}
    return report(command, config, runner, best[-1], "test", also)


def report(
    command: Command, config: Config, runner: StrictRunner, path: Path, selected_by: str, also: dict[str, Any]
) -> str:
    """Predicts all test images with a checkpoint; writes table, pictures and card."""
    score_checkpoint(runner, path)
    if not is_main_process():
        return ""
    scores = _scores(command, config)
    write_table(scores, command.work_dir / TABLE)
    print_table(scores, Console())
    dataset = config.test_dataloader.dataset
    draw_predictions(
        Path(dataset.ann_file),
        _predictions(command),
        Path(dataset.data_prefix.img),
        dataset.metainfo.classes,
        command.work_dir / PICTURES,
        count=command.more.pictures,
    )
    model: Any = runner.model
    source = find_backbone(getattr(model, "module", model))[1].source
    card: Card = card_of(config, scores, source, runner.images_a_step, selected_by, also)
    card.save(command.work_dir / CARD_NAME)
    return card.sentence()


def score_checkpoint(runner: StrictRunner, path: Path) -> None:
    """Writes the predictions of a checkpoint for all test images."""
    runner.load_checkpoint(str(path))
    runner.test()


def search(command: Command, config: Config) -> str:
    """Searches one scene and writes its objects as GeoJSON."""
    words = command.more
    scene = config.get("scene", {})
    preprocessor = config.model.data_preprocessor
    settings = SceneSettings(
        window=words.window or scene.get("window", 800),
        overlap=words.overlap if words.overlap is not None else scene.get("overlap", 200),
        batch_size=words.batch_size,
        least_score=words.score,
        value_range=tuple(words.value_range) if words.value_range else None,
        bands=tuple(words.bands) if words.bands else None,
        strict=words.strict,
        fill=tuple(preprocessor.mean),
    )
    model: Any = load_trained(config, find_checkpoint(command))
    device = torch.device(words.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    classes = config.test_dataloader.dataset.metainfo.classes
    out = words.out or command.work_dir / f"{words.scene.stem}.geojson"
    result = search_scene(words.scene, out, detector_of(model, device), classes, settings)
    for area in result.unread:
        print(f"window at row {area.row}, column {area.column} could not be read", file=sys.stderr)
    where = (
        "map coordinates" if result.placed else "columns and rows, since the scene has no coordinate system"
    )
    missing = f", {len(result.unread)} of them unreadable" if result.unread else ""
    return f"{out}: {result.boxes} boxes in {where}; {result.windows} windows{missing}"


def _scores(command: Command, config: Config) -> Any:
    dataset = config.test_dataloader.dataset
    return score(Path(dataset.ann_file), _predictions(command), dataset.metainfo.classes)


def _predictions(command: Command) -> Path:
    return command.work_dir / f"{PREDICTIONS}.bbox.json"


def _last_line(error: Exception) -> str:
    """The sentence of an error that a data-loading process may have wrapped in its traceback."""
    lines = [line for line in str(error.args[0] if error.args else error).splitlines() if line.strip()]
    text = lines[-1] if "Traceback" in str(error) else "\n".join(lines)
    return text.split("Error: ", 1)[-1]


if __name__ == "__main__":
    sys.exit(main())
