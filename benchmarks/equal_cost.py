"""Every pretraining method on the same images for the same cost, then the same linear probe.

    python benchmarks/equal_cost.py --index DIR[,DIR] --optical DIR --sar DIR --tflop 300 --seeds 3 --out DIR

Each method gets as many steps as the budget pays for. Operations are counted on one paired and one unpaired
batch of its own, teachers included (``--tflop``), or its steps are timed (``--minutes``). A killed queue goes
on where it stopped when the same command is given again; another budget needs another ``--out``.
``DIR/table.md`` and ``DIR/equal_cost.json`` hold what is there so far; the last line is one JSON object.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from flops import gflop

from codemae.analysis.run_encoders import encoder_files
from codemae.checkpoint import read_encoder
from codemae.config import load_config
from codemae.data.batch import Batch
from codemae.distributed import select_device
from codemae.engine.pretraining import PretrainConfig
from codemae.engine.run import Run
from codemae.evaluation.card import CARD_NAME, Card, sample_std
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
WARMUP_SHARE = 0.05
COST_NAME = "cost.json"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one optimizer step of a method takes, the mean over the paired and unpaired steps of an epoch.

    Attributes:
        gflop: 10^9 operations.
        seconds: Of computing, without the loader; 0 where it was not timed.
        steps_per_epoch: Steps that pass over the index once.
        images: Images of one modality or the other that a step sees, crops of one image counted once.
        pairs: Samples of a step that show the same ground.
    """

    gflop: float
    seconds: float
    steps_per_epoch: int
    images: float
    pairs: float


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", required=True, help="indexes to pretrain on, with commas between")
    parser.add_argument("--optical", help="labelled index whose optical images are probed")
    parser.add_argument("--sar", help="labelled index whose SAR images are probed")
    parser.add_argument("--shots", type=int, default=10, help="labelled images a class of the probe (10)")
    parser.add_argument("--probe-size", type=int, default=96, help="side of the probed images (96)")
    return parse_queue(parser, argv, METHOD_CONFIGS, Path("runs/equal_cost"))


def parse_queue(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, configs: Sequence[str], out: Path
) -> argparse.Namespace:
    """Reads a command line to which the words that every queue takes are added."""
    budget = parser.add_mutually_exclusive_group(required=True)
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
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error("--seeds: at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Works off the queue and writes the table; returns what the last line holds."""
    args = parse(argv)
    if not (args.optical or args.sar):
        raise SystemExit("nothing to probe: give --optical INDEX_DIR, --sar INDEX_DIR or both")
    args.out.mkdir(parents=True, exist_ok=True)
    costs = {name: known_cost(args, name) for name in args.configs}
    for seed in range(args.seeds):
        for name in args.configs:
            folder = args.out / Path(name).stem / f"seed_{seed}"
            pretrain(args, name, costs[name], seed, folder)
            probe(args, folder, seed)
            result = summarise(args.out, args.configs, costs)
            table = write_table(args.out, result)
    print(table)
    print(json.dumps(result))
    return result


def yaml_of(name: str) -> Path:
    """The file of a config given by name or by path."""
    return Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"


def common_words(args: argparse.Namespace, name: str) -> list[str]:
    """The command line every run of a method shares."""
    return ["--config", str(yaml_of(name)), f"--data.index={args.index}", *(f"--{pair}" for pair in args.set)]


def known_cost(args: argparse.Namespace, name: str) -> Cost:
    """The cost of a method's step, measured once a queue."""
    file = args.out / Path(name).stem / "step_cost.json"
    if not file.exists():
        cost = step_cost(common_words(args, name), timed=args.minutes is not None)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(cost)))
    return Cost(**json.loads(file.read_text()))


def step_cost(words: Sequence[str], timed: bool = False, repeats: int = 5) -> Cost:
    """Counts, and times where asked, the steps of a run on batches of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [*words, f"--output_dir={scratch}", "--log.tensorboard=false", "--data.num_workers=0"]
        config = load_config(PretrainConfig, words, variants={"method": METHODS.config})
        run = Run(replace(config, output_dir=scratch), select_device(config.device))
        sampler = run.sampler
        gflops = seconds = images = pairs = 0.0
        for step, steps in example_steps(sampler):
            draws = sampler.batch(0, step)
            batch = run.dataset.collate([run.dataset[draw] for draw in draws])
            share = steps / sampler.steps_per_epoch
            gflops += share * gflop(lambda batch=batch: backward(run, batch))
            seconds += share * (median_seconds(run, batch, repeats) if timed else 0.0)
            distinct = len(draws) / sampler.repeats
            images += share * distinct * len(sampler.modalities)
            pairs += share * distinct * batch.paired
        return Cost(
            gflop=gflops, seconds=seconds, steps_per_epoch=sampler.steps_per_epoch, images=images, pairs=pairs
        )


def example_steps(sampler: Any) -> Iterator[tuple[int, int]]:
    """A step of each kind in the first epoch, and how many of its kind an epoch has."""
    kinds = [sampler.is_paired(0, step) for step in range(sampler.steps_per_epoch)]
    for kind in (True, False):
        if kind in kinds:
            yield kinds.index(kind), kinds.count(kind)


def backward(run: Run, batch: Batch) -> None:
    """Forward and backward pass of a batch, without moving a weight."""
    run.method.train()
    with run.learner.autocast():
        terms = run.method(batch.to(run.device), run.progress)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
    loss.backward()
    run.learner.optimizer.zero_grad(set_to_none=True)
    run.method.zero_grad(set_to_none=True)


def median_seconds(run: Run, batch: Batch, repeats: int) -> float:
    """Median time of forward and backward, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        backward(run, batch)
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def steps_for(args: argparse.Namespace, cost: Cost) -> int:
    """Steps the budget pays for."""
    spent = cost.gflop / 1e3 if args.tflop is not None else cost.seconds / 60
    return max(1, round((args.tflop if args.tflop is not None else args.minutes) / spent))


def pretrain(args: argparse.Namespace, name: str, cost: Cost, seed: int, folder: Path) -> None:
    """Runs or resumes one pretraining; what it took goes to ``cost.json`` beside its encoders."""
    steps = steps_for(args, cost)
    if (folder / COST_NAME).exists():
        done = json.loads((folder / COST_NAME).read_text())["steps"]
        if done != steps:
            raise SystemExit(
                f"{folder} holds a run of {done} steps, and this budget asks for {steps}: "
                "give the budget it was made with, or another --out"
            )
        return
    command = [
        *(sys.executable, str(PRETRAIN), *common_words(args, name)),
        *(f"--output_dir={folder}", f"--seed={seed}", f"--optim.max_steps={steps}"),
        f"--optim.epochs={math.ceil(steps / cost.steps_per_epoch) + 1}",
        f"--optim.warmup_epochs={WARMUP_SHARE * steps / cost.steps_per_epoch}",
        *(f"--log.sentinel_every={steps}", "--log.pictures_every=0", "--log.tensorboard=false"),
        *(f"--checkpoint.every_steps={max(1, steps // 5)}", "--resume=auto"),
    ]
    print(f"== {folder}: {steps} steps, {steps * cost.gflop / 1e3:.1f} TFLOP", flush=True)
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{PRETRAIN.name} failed for {name}, seed {seed}; its message is above")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    spans = [after - before for before, after in pairwise([0, *(line["step"] for line in lines)])]
    record = {
        "steps": steps,
        "tflop": steps * cost.gflop / 1e3,
        "seconds": sum(
            line["seconds_per_step"] * span for line, span in zip(lines, spans, strict=True) if span > 0
        ),
        "peak_memory_mb": usage.ru_maxrss / 1024,
        "images": steps * cost.images,
        "pairs": steps * cost.pairs,
        **{key: value for key, value in lines[-1].items() if key.startswith("effective_rank")},
    }
    (folder / COST_NAME).write_text(json.dumps(record, indent=1))


def probe(args: argparse.Namespace, folder: Path, seed: int) -> None:
    """Probes a run's encoders, and fresh weights of the same shape, on each modality they take."""
    for modality in MODALITY_NAMES:
        index, file = getattr(args, modality), encoder_files(folder).get(modality)
        if index is None or file is None:
            continue
        for kind, encoder in (("probe", str(file)), ("random", f"random:{file}")):
            output = card_folder(folder, kind, modality)
            if (output / CARD_NAME).exists():
                continue
            command = [
                *(sys.executable, str(PROBE), "--config", str(PROBE_CONFIG), "--encoder", encoder),
                *("--data.index", index, "--modality", modality, "--output_dir", str(output)),
                *("--size", str(args.probe_size), "--init_seed", str(seed), "--shots", str(args.shots)),
            ]
            if subprocess.run(command).returncode:
                raise SystemExit(f"{PROBE.parent.name} failed for {encoder}; its message is above")


def card_folder(run: Path, kind: str, modality: str) -> Path:
    """Where the card of a run's probe is, or of fresh weights, which runs of the same architecture share."""
    if kind == "probe":
        return run / f"probe_{modality}"
    metadata = read_encoder(encoder_files(run)[modality])[1]
    shape = hashlib.sha256(json.dumps(metadata.arch_kwargs, sort_keys=True).encode()).hexdigest()[:8]
    return run.parents[1] / "random_weights" / f"{metadata.arch}_{shape}" / f"{run.name}_{modality}"


def summarise(out: Path, configs: Sequence[str], costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Means and deviations over the seeds that are done, by method, and of fresh weights by encoder."""
    rows: dict[str, Any] = {}
    for name in configs:
        folders = sorted((out / Path(name).stem).glob(f"seed_*/{COST_NAME}"))
        if not folders:
            continue
        records = [json.loads(file.read_text()) for file in folders]
        runs = [file.parent for file in folders]
        first = next(iter(encoder_files(runs[0]).values()))
        keys = sorted(set.intersection(*(set(record) for record in records)))
        row: dict[str, Any] = {key: statistics.fmean(record[key] for record in records) for key in keys}
        row |= {"encoder": read_encoder(first)[1].arch, "seeds": len(runs), "gflop_a_step": costs[name].gflop}
        for modality in MODALITY_NAMES:
            for kind in ("probe", "random"):
                probed = [run for run in runs if modality in encoder_files(run)]
                places = [card_folder(run, kind, modality) for run in probed]
                cards = [Card.load(place) for place in places if (place / CARD_NAME).exists()]
                if cards:
                    values = [card.mean for card in cards]
                    mean, std = statistics.fmean(values), sample_std(values)
                    row[f"{kind}_{modality}"] = {"values": values, "mean": mean, "std": std}
        rows[Path(name).stem] = row
    return rows


def write_table(out: Path, rows: Mapping[str, Any]) -> str:
    """Writes ``table.md`` and ``equal_cost.json``; returns the table."""
    head = ["method", "encoder", "seeds", "TFLOP", "seconds", "memory", "images", "pairs"]
    head += ["optical", "SAR", "rank optical", "rank SAR"]
    lines = [head]
    fresh: dict[str, list[str]] = {}
    for name, row in rows.items():
        lines.append(
            [
                *(name, row["encoder"], str(row["seeds"]), f"{row['tflop']:.0f}", f"{row['seconds']:.0f}"),
                *(f"{row['peak_memory_mb'] / 1024:.1f} GB", f"{row['images']:,.0f}", f"{row['pairs']:,.0f}"),
                *(figure(row.get(f"probe_{modality}")) for modality in MODALITY_NAMES),
                *(rank(row.get(f"effective_rank_{modality}")) for modality in MODALITY_NAMES),
            ]
        )
        blank = [RANDOM, row["encoder"], str(row["seeds"]), "0", "0", "", "0", "0"]
        figures = [figure(row.get(f"random_{modality}")) for modality in MODALITY_NAMES]
        fresh.setdefault(row["encoder"], [*blank, *figures, "", ""])
    table = as_table(lines + list(fresh.values()), markdown=True)
    (out / "table.md").write_text(table + "\n")
    (out / "equal_cost.json").write_text(json.dumps(rows, indent=1))
    return table


def figure(values: Mapping[str, Any] | None) -> str:
    """Mean and deviation over pretraining seeds, in percent."""
    if values is None:
        return ""
    spread = f" ± {values['std']:.1f}" if len(values["values"]) > 1 else ""
    return f"{values['mean']:.1f}{spread}"


def rank(value: float | None) -> str:
    """An effective rank."""
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
