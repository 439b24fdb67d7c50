"""Every pretraining method on the same images for the same cost, then the same linear probe.

    python benchmarks/equal_cost.py --index DIR[,DIR] --optical DIR --sar DIR --tflop 300 --seeds 3 --out DIR

Each method gets as many steps as the budget pays for. With ``--tflop`` the operations of forward and backward
pass are counted on one paired and one unpaired batch of its own, teachers included where they run; tokens of
a cache (``okd.teacher.vault``) cost nothing. With ``--minutes`` whole steps are timed, optimizer and moving
averages included, the loader not. With ``--rates`` each method is pretrained once at every rate first, from a
seed of its own, and takes the one whose encoders tell held-out training images best; no test image is read,
and where the best lies at an end of those given, the next beyond it is tried too; a rate at which losses are
no longer finite is out.
A killed queue goes on where it stopped when the same command is given again; another budget needs another
``--out``. Beside every result a ``*.made_of.json`` says from which data and settings it came; a command with
others is refused. ``--table`` runs nothing and takes ``--out`` alone.
``DIR/table.md`` and ``DIR/equal_cost.json`` hold all rows that are there so far, of earlier commands too; the
last line is one JSON object.
"""

import argparse
import copy
import functools
import hashlib
import json
import math
import multiprocessing
import os
import runpy
import statistics
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from step_cost import Cost, step_cost

from codemae.analysis.run_encoders import encoder_files
from codemae.checkpoint import PREVIOUS, read_encoder
from codemae.config import diff_configs, load_config, read_yaml, to_dict
from codemae.data.index import open_index
from codemae.distributed import select_device
from codemae.downloads import file_hash
from codemae.engine.pretraining import PretrainConfig
from codemae.evaluation.card import CARD_NAME, MUST_AGREE, Card, sample_std, write_atomically
from codemae.evaluation.tables import as_table
from codemae.methods.base import METHODS
from codemae.modality import MODALITY_NAMES

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "pretrain" / "configs"
PRETRAIN, PROBE = ROOT / "pretrain" / "main.py", ROOT / "linearprobing" / "main.py"
PROBE_CONFIG = ROOT / "linearprobing" / "configs" / "few_shot_10.yaml"
METHOD_CONFIGS = (
    "codemae_hivit_tiny_cpu",
    "mae_hivit_tiny_cpu",
    "rigid_alignment_hivit_tiny_cpu",
    "decur_hivit_tiny_cpu",
    "fusmae_hivit_tiny_cpu",
    "cmid_hivit_tiny_cpu",
)
RANDOM = "random weights"
KINDS = ("probe", "random")
WARMUP_SHARE = 0.05
RATE_SEED, HELD_OUT = 1000, 0.5
DIVERGED = 3
STEP_COST_NAME, COST_NAME, MEMORY_NAME = "step_cost.json", "cost.json", "peak_memory.json"
RATES_NAME = "rates.json"
RESULTS = (
    f"*/{STEP_COST_NAME}",
    f"*/seed_*/{COST_NAME}",
    f"*/seed_*/probe_*/{CARD_NAME}",
    f"*/rates/*/{COST_NAME}",
    f"*/rates/*/probe_*/{CARD_NAME}",
    f"random_weights/*/*/{CARD_NAME}",
    "*/seed_*/factors.json",
    "*/seed_*/random.json",
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", help="indexes to pretrain on, with commas between")
    parser.add_argument("--optical", help="labelled index whose optical images are probed")
    parser.add_argument("--sar", help="labelled index whose SAR images are probed")
    parser.add_argument("--shots", type=int, default=10, help="labelled images a class of the probe (10)")
    parser.add_argument("--probe-size", type=int, default=96, help="side of the probed images (96)")
    parser.add_argument(
        "--rates",
        type=float,
        nargs="+",
        help="learning rates each method chooses from; its config's if not given",
    )
    args = parse_queue(parser, argv, METHOD_CONFIGS, Path("runs/equal_cost"))
    if args.rates and (min(args.rates) <= 0 or len(set(args.rates)) < max(2, len(args.rates))):
        parser.error("--rates: at least two different ones, above 0")
    if args.rates and any(pair.startswith("optim.lr=") for pair in args.set):
        parser.error("--rates and --set optim.lr both say the learning rate; give one of them")
    if not args.table and args.index is None:
        parser.error("--index: what to pretrain on?")
    return args


def parse_queue(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, configs: Sequence[str], out: Path
) -> argparse.Namespace:
    """Reads a command line to which the words that every queue takes are added."""
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--tflop", type=float, help="10^12 operations each method may spend")
    budget.add_argument("--minutes", type=float, help="minutes of computing each method may spend")
    parser.add_argument("--seeds", type=int, default=3, help="pretraining runs of each method (3)")
    parser.add_argument(
        "--configs", nargs="+", default=list(configs), help="names in pretrain/configs, or YAML files"
    )
    parser.add_argument("--out", type=Path, default=out, help="folder of the queue")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys, the same for every method"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, write the table of what is there")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error("--seeds: at least 1")
    if not args.table and max(args.tflop or 0, args.minutes or 0) <= 0:
        parser.error("what may each method spend? give --tflop or --minutes, above 0")
    return args


class Diverged(SystemExit):
    """A pretraining whose losses or gradients are no longer finite."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Works off the queue and writes the table; returns what the last line holds."""
    args = parse(argv)
    if not (args.table or args.optical or args.sar):
        raise SystemExit("nothing to probe: give --optical INDEX_DIR, --sar INDEX_DIR or both")
    args.out.mkdir(parents=True, exist_ok=True)
    warn_of_unknown(args.out)
    if not args.table:
        costs = {name: known_cost(args, name) for name in args.configs}
        rates = {name: chosen_rate(args, name, costs[name]) for name in args.configs}
        for seed in range(args.seeds):
            for name in args.configs:
                folder = run_folder(args, name, seed)
                pretrain(args, name, costs[name], seed, folder, rates[name])
                probe(args, folder, seed)
                write_table(args.out, summarise(args.out, rows_in(args, COST_NAME)))
    result = summarise(args.out, rows_in(args, COST_NAME))
    print(write_table(args.out, result))
    print(json.dumps(result))
    return result


def run_folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a method's run of a seed is."""
    folder: Path = args.out / Path(name).stem / f"seed_{seed}"
    return folder


def rows_in(args: argparse.Namespace, result: str) -> list[str]:
    """Names of all methods that have a result of this name, those of the command line first."""
    found = {file.parents[1].name for file in args.out.glob(f"*/seed_*/{result}")}
    asked = [Path(name).stem for name in args.configs]
    return [name for name in asked if name in found] + sorted(found - set(asked))


def is_done(file: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether a result is there already; one that does not say what it was made of is taken on trust.

    Raises:
        SystemExit: It was made of something else.
    """
    if not file.exists():
        return False
    note = note_of(file)
    differences = diff_configs(json.loads(note.read_text()), as_json(made_of)) if note.exists() else []
    if differences:
        key, before, now = differences[0]
        raise SystemExit(
            f"{file} was made with {key} {before!r}, and this command has {now!r}: "
            "give the command it was made with, or another --out"
        )
    return True


def remember(file: Path, made_of: Mapping[str, Any]) -> None:
    """Notes what a result is made of; called before it is written, so that no new result lacks its note."""
    write_json(note_of(file), made_of)


def write_json(file: Path, content: Any) -> None:
    """Writes a file that a kill leaves whole or not at all."""
    write_atomically(file, json.dumps(content, indent=1).encode())


def note_of(file: Path) -> Path:
    """The file that says what a result was made of."""
    return file.with_suffix(".made_of.json")


def as_json(made_of: Mapping[str, Any]) -> dict[str, Any]:
    """As it reads once written; tuples come back as lists."""
    read: dict[str, Any] = json.loads(json.dumps(made_of))
    return read


def warn_of_unknown(out: Path) -> None:
    """Says how many results of a queue do not say what they were made of, as those of earlier versions."""
    found = [file for pattern in RESULTS for file in out.glob(pattern)]
    unknown = [file for file in found if not note_of(file).exists()]
    if unknown:
        print(
            f"warning: {len(unknown)} of {len(found)} results in {out} do not say what they were made of; "
            "that they are of the same data and settings is taken on trust",
            file=sys.stderr,
        )


def yaml_of(name: str) -> Path:
    """The file of a config given by name or by path."""
    return Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"


def common_words(args: argparse.Namespace, name: str, rate: float = 0) -> list[str]:
    """The command line every run of a method shares; a rate of 0 leaves it the config's."""
    words = [f"--{pair}" for pair in args.set] + [f"--optim.lr={rate}"] * (rate > 0)
    return ["--config", str(yaml_of(name)), f"--data.index={args.index}", *words]


@functools.cache
def pretraining_made_of(words: tuple[str, ...]) -> dict[str, Any]:
    """What decides a method's runs, seed and steps aside: samples, statistics and settings."""
    config = load_config(PretrainConfig, [*words, "--output_dir=."], variants={"method": METHODS.config})
    index = open_index(config.data.index, config.data.split)
    settings = to_dict(config)
    for key in ("output_dir", "resume", "seed", "log", "checkpoint"):
        del settings[key]
    for key in ("index", "num_workers"):
        del settings["data"][key]
    settings["device"] = select_device(config.device).type
    return {"index": index.hash(), "statistics": index.statistics_hash(), "config": settings}


def known_cost(args: argparse.Namespace, name: str) -> Cost:
    """The cost of a method's step, the same at every learning rate; measured once a queue.

    Raises:
        SystemExit: It was measured on other data or settings, or not timed where ``--minutes`` needs that.
    """
    file = args.out / Path(name).stem / STEP_COST_NAME
    words, timed = common_words(args, name), args.minutes is not None
    made_of = {**copy.deepcopy(pretraining_made_of(tuple(words))), "timed": timed}
    del made_of["config"]["optim"]["lr"]
    if not is_done(file, made_of):
        remember(file, made_of)
        if in_own_process(write_step_cost, words, timed, file):
            raise SystemExit(f"the steps of {name} could not be measured; the message is above")
    cost = Cost(**json.loads(file.read_text()))
    if timed and not cost.seconds:
        raise SystemExit(f"{file} was counted, not timed, as --minutes needs: give another --out")
    return cost


def in_own_process(function: Callable[..., None], *args: object) -> int:
    """Calls a function in a new process, whose memory holds nothing of this one's; returns its exit code."""
    process = multiprocessing.get_context("spawn").Process(target=call_with_parent, args=(function, *args))
    process.start()
    process.join()
    return process.exitcode or 0


def call_with_parent(function: Callable[..., None], *args: object) -> None:
    """Calls a function; ends at once when the parent is killed, whose next run will write the same files."""
    threading.Thread(target=end_after_parent, daemon=True).start()
    function(*args)


def end_after_parent() -> None:
    """Waits for the parent's end and ends this process."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def write_step_cost(words: Sequence[str], timed: bool, file: Path) -> None:
    """Measures a step and writes what it costs."""
    write_json(file, asdict(step_cost(words, timed)))


def steps_for(args: argparse.Namespace, cost: Cost) -> int:
    """Steps the budget pays for."""
    spent = cost.gflop / 1e3 if args.tflop is not None else cost.seconds / 60
    return max(1, round((args.tflop if args.tflop is not None else args.minutes) / spent))


def chosen_rate(args: argparse.Namespace, name: str, cost: Cost) -> float:
    """The rate with the highest accuracy on held-out images, the mean of modalities; 0 without ``--rates``.

    A pretraining at each rate, with a seed that no row of the table has, and its probes come first. While the
    best is the smallest or the largest, the next one beyond it is tried too, at most as many as were given.
    Beside the runs ``rates.json`` says what each came to, nothing where it diverged.

    Raises:
        SystemExit: None came to anything.
    """
    if not args.rates:
        return 0.0
    folder = run_folder(args, name, 0).parent
    scores: dict[float, dict[str, float]] = {}
    best, wanted = 0.0, sorted(args.rates)
    while wanted:
        scores |= {rate: held_out_accuracy(args, name, cost, rate) for rate in wanted}
        finite = {rate: statistics.fmean(found.values()) for rate, found in scores.items() if found}
        if not finite:
            raise SystemExit(
                f"{name} has no figure at any of the rates {sorted(scores)}: where it diverged give lower "
                "ones; otherwise probe a modality that its encoders take"
            )
        best = max(finite, key=lambda rate: finite[rate])
        wanted = rate_beyond(best, scores) if len(scores) < 2 * len(args.rates) else []
    write_json(folder / RATES_NAME, {"chosen": best, "held_out": scores})
    return best


def held_out_accuracy(args: argparse.Namespace, name: str, cost: Cost, rate: float) -> dict[str, float]:
    """Pretrains at a rate and probes on images that are no test images; accuracy in percent by modality.

    Nothing if the pretraining diverged.
    """
    run = run_folder(args, name, 0).parent / "rates" / str(rate)
    try:
        pretrain(args, name, cost, RATE_SEED, run, rate)
    except Diverged:
        print(f"== {run}: diverged, out", flush=True)
        return {}
    probe(args, run, RATE_SEED, ("probe",), HELD_OUT)
    cards = {side: card_folder(run, "probe", side) for side in encoder_files(run)}
    return {side: Card.load(place).mean for side, place in cards.items() if place.exists()}


def rate_beyond(best: float, tried: Iterable[float]) -> list[float]:
    """The next rate in the direction of the best, by the ratio of the last two; none if it lies between."""
    rates = sorted(tried)
    neighbour = {rates[0]: rates[1], rates[-1]: rates[-2]}.get(best)
    return [] if neighbour is None else [float(f"{best * best / neighbour:.2g}")]


def pretrain(
    args: argparse.Namespace, name: str, cost: Cost, seed: int, folder: Path, rate: float = 0
) -> None:
    """Runs or resumes one pretraining; what it took goes to ``cost.json`` beside its encoders.

    Of a finished run's two checkpoints the older one is removed.

    Raises:
        Diverged: Its losses or gradients are no longer finite.
        SystemExit: It failed in another way, or the folder holds a run of another budget.
    """
    steps, file = steps_for(args, cost), folder / COST_NAME
    made_of = pretraining_made_of(tuple(common_words(args, name, rate)))
    if is_done(file, made_of):
        done = json.loads(file.read_text())["steps"]
        if done != steps:
            raise SystemExit(
                f"{folder} holds a run of {done} steps, and this budget asks for {steps}: "
                "give the budget it was made with, or another --out"
            )
        return
    words = [
        *common_words(args, name, rate),
        *(f"--output_dir={folder}", f"--seed={seed}", f"--optim.max_steps={steps}"),
        f"--optim.epochs={math.ceil(steps / cost.steps_per_epoch) + 1}",
        f"--optim.warmup_epochs={WARMUP_SHARE * steps / cost.steps_per_epoch}",
        *(f"--log.sentinel_every={steps}", "--log.pictures_every=0", "--log.tensorboard=false"),
        *(f"--checkpoint.every_steps={max(1, steps // 5)}", "--resume=auto"),
    ]
    print(f"== {folder}: {steps} steps, {steps * cost.gflop / 1e3:.1f} TFLOP", flush=True)
    code = in_own_process(pretrain_and_measure, words, folder / MEMORY_NAME)
    if code:
        raise (Diverged if code == DIVERGED else SystemExit)(
            f"{PRETRAIN.name} failed for {name}, seed {seed}; its message is above"
        )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spans = [after - before for before, after in pairwise([0, *(line["step"] for line in lines)])]
    record = {
        "steps": steps,
        "tflop": steps * cost.gflop / 1e3,
        "seconds": sum(
            line["seconds_per_step"] * span for line, span in zip(lines, spans, strict=True) if span > 0
        ),
        **json.loads((folder / MEMORY_NAME).read_text()),
        "images": steps * cost.images,
        "pairs": steps * cost.pairs,
        **{key: value for key, value in lines[-1].items() if key.startswith("effective_rank")},
    }
    remember(file, made_of)
    write_json(file, record)
    (folder / PREVIOUS).unlink(missing_ok=True)


def pretrain_and_measure(words: Sequence[str], file: Path) -> None:
    """Runs a pretraining in this process and writes its peak memory, the highest of all attempts."""
    try:
        run_script(PRETRAIN, words)
    finally:
        peaks = peak_memory()
        before = json.loads(file.read_text()) if file.exists() else {}
        if file.parent.exists():
            write_json(file, {key: max(peak, before.get(key, 0)) for key, peak in peaks.items()})


def run_script(script: Path, words: Sequence[str]) -> None:
    """Runs a script of this repository in this process, as its command line would."""
    sys.argv = [str(script), *words]
    runpy.run_path(str(script), run_name="__main__")


def peak_memory() -> dict[str, float]:
    """Most memory that this process, without its loader's workers, and that tensors on the GPU ever took.

    The kernel's VmHWM begins anew with a program; ``getrusage`` goes on from the peak of what started it.
    """
    status = Path("/proc/self/status")
    peaks = {}
    if status.exists():
        peaks["process_peak_mb"] = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    if torch.cuda.is_initialized():
        peaks["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return peaks


def probe(
    args: argparse.Namespace, folder: Path, seed: int, kinds: Sequence[str] = KINDS, hold_out: float = 0
) -> None:
    """Probes a run's encoders, and fresh weights of the same shape, on each modality they take."""
    for modality in MODALITY_NAMES:
        index, file = getattr(args, modality), encoder_files(folder).get(modality)
        if index is None or file is None:
            continue
        for kind in kinds:
            encoder = str(file) if kind == "probe" else f"random:{file}"
            output = card_folder(folder, kind, modality)
            made_of = {**probe_made_of(args, index, file, kind, seed), "hold_out": hold_out}
            if is_done(output / CARD_NAME, made_of):
                continue
            remember(output / CARD_NAME, made_of)
            command = [
                *("--config", str(PROBE_CONFIG), "--encoder", encoder),
                *("--data.index", index, "--modality", modality, "--output_dir", str(output)),
                *("--size", str(args.probe_size), "--init_seed", str(seed), "--shots", str(args.shots)),
                *("--hold_out", str(hold_out)),
            ]
            if in_own_process(run_script, PROBE, command):
                raise SystemExit(f"{PROBE.parent.name} failed for {encoder}; its message is above")


def probe_made_of(args: argparse.Namespace, index: str, file: Path, kind: str, seed: int) -> dict[str, Any]:
    """What decides the outcome of a probe: labelled images, settings and weights."""
    return {
        **labelled_made_of(index),
        "config": read_yaml(PROBE_CONFIG),
        "shots": args.shots,
        "size": args.probe_size,
        "init_seed": seed,
        "encoder": weights_made_of(file, kind),
    }


@functools.cache
def labelled_made_of(index: str) -> dict[str, str]:
    """Samples and statistics of a labelled index."""
    opened = open_index(index.split(","))
    return {"index": opened.hash(), "statistics": opened.statistics_hash()}


def weights_made_of(file: Path, kind: str) -> Any:
    """Where an encoder's weights come from: a file's content, or, of fresh ones, the architecture alone."""
    if kind != "random":
        return file_hash(file)
    metadata = read_encoder(file)[1]
    return {"arch": metadata.arch, "arch_kwargs": metadata.arch_kwargs}


def card_folder(run: Path, kind: str, modality: str) -> Path:
    """Where the card of a run's probe is, or of fresh weights, which runs of the same architecture share."""
    if kind == "probe":
        return run / f"probe_{modality}"
    metadata = read_encoder(encoder_files(run)[modality])[1]
    shape = hashlib.sha256(json.dumps(metadata.arch_kwargs, sort_keys=True).encode()).hexdigest()[:8]
    return run.parents[1] / "random_weights" / f"{metadata.arch}_{shape}" / f"{run.name}_{modality}"


def summarise(out: Path, configs: Sequence[str]) -> dict[str, Any]:
    """Means and deviations over the seeds that are done, by method, and of fresh weights of its encoder.

    Raises:
        SystemExit: Runs were trained on different samples, or probes put different questions.
    """
    rows: dict[str, Any] = {}
    compared: dict[str, list[tuple[Path, dict[str, Any]]]] = {name: [] for name in ("data", *MODALITY_NAMES)}
    for name in configs:
        folders = sorted((out / Path(name).stem).glob(f"seed_*/{COST_NAME}"))
        if not folders:
            continue
        records = [json.loads(file.read_text()) for file in folders]
        compared["data"] += [(file, trained_on(file)) for file in folders if note_of(file).exists()]
        runs = [file.parent for file in folders]
        first = next(iter(encoder_files(runs[0]).values()))
        keys = sorted(set.intersection(*(set(record) for record in records)))
        row: dict[str, Any] = {key: statistics.fmean(record[key] for record in records) for key in keys}
        cost = json.loads((out / Path(name).stem / STEP_COST_NAME).read_text())
        row |= {"encoder": read_encoder(first)[1].arch, "seeds": len(runs), "gflop_a_step": cost["gflop"]}
        row["rate"] = common_rate(runs)
        chosen = out / Path(name).stem / RATES_NAME
        row |= {"rates": json.loads(chosen.read_text())} if chosen.exists() else {}
        for modality in MODALITY_NAMES:
            for kind in KINDS:
                probed = [run for run in runs if modality in encoder_files(run)]
                places = [card_folder(run, kind, modality) for run in probed]
                cards = {place: Card.load(place) for place in places if (place / CARD_NAME).exists()}
                compared[modality] += [(place, question(card)) for place, card in cards.items()]
                if cards:
                    values = [card.mean for card in cards.values()]
                    mean, std = statistics.fmean(values), sample_std(values)
                    row[f"{kind}_{modality}"] = {"values": values, "mean": mean, "std": std}
        rows[Path(name).stem] = row
    for group in compared.values():
        refuse_differences(group)
    return rows


def common_rate(runs: Sequence[Path]) -> float:
    """The learning rate that the runs of a row share.

    Raises:
        SystemExit: They do not.
    """
    rates = {str(run): read_yaml(run / "config.yaml")["optim"]["lr"] for run in runs}
    if len(set(rates.values())) > 1:
        raise SystemExit(f"no common row: the learning rates differ, {rates}")
    return float(next(iter(rates.values())))


def trained_on(file: Path) -> dict[str, Any]:
    """The samples and statistics that the run of a record has seen."""
    made_of = json.loads(note_of(file).read_text())
    return {key: made_of[key] for key in ("index", "statistics")}


def question(card: Card) -> dict[str, Any]:
    """What two cards must agree in to stand in one column."""
    return {key: getattr(card, key) for key in (*MUST_AGREE, "size", "normalisation")}


def refuse_differences(group: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Compares each of a group with the first.

    Raises:
        SystemExit: Two differ.
    """
    first_place, first = next(iter(group), (Path(), {}))
    for place, other in group:
        for key, a, b in diff_configs(first, other):
            raise SystemExit(f"no common table: {key} is {a!r} in {first_place} and {b!r} in {place}")


def write_table(out: Path, rows: Mapping[str, Any]) -> str:
    """Writes ``table.md`` and ``equal_cost.json``; returns the table."""
    heads = {"process_peak_mb": "process GB", "gpu_peak_mb": "GPU GB"}
    peaks = [key for key in heads if any(key in row for row in rows.values())]
    head = ["method", "encoder", "rate", "seeds", "TFLOP", "seconds", *(heads[key] for key in peaks)]
    head += ["images", "pairs", "optical", "own random optical", "SAR", "own random SAR", "ranks"]
    lines = [head]
    for name, row in rows.items():
        lines.append(
            [
                *(name, row["encoder"], f"{row['rate']:g}", str(row["seeds"])),
                *(f"{row['tflop']:.0f}", f"{row['seconds']:.0f}"),
                *(f"{row[key] / 1024:.1f}" if key in row else "" for key in peaks),
                *(f"{row['images']:,.0f}", f"{row['pairs']:,.0f}"),
                *(figure(row.get(f"{kind}_{side}")) for side in MODALITY_NAMES for kind in KINDS),
                " / ".join(rank(row.get(f"effective_rank_{modality}")) for modality in MODALITY_NAMES),
            ]
        )
    table = as_table(lines, markdown=True)
    write_atomically(out / "table.md", f"{table}\n".encode())
    write_json(out / "equal_cost.json", rows)
    return table


def figure(values: Mapping[str, Any] | None, digits: int = 1, scale: float = 1) -> str:
    """Mean and, of two or more, deviation over pretraining seeds."""
    if values is None:
        return ""
    spread = f" ± {scale * values['std']:.{digits}f}" if len(values["values"]) > 1 else ""
    return f"{scale * values['mean']:.{digits}f}{spread}"


def rank(value: float | None) -> str:
    """An effective rank."""
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
