"""What each method keeps of a scene and what it loses, on synthetic pairs whose factors are known.

    python benchmarks/twin_factors.py --tflop 20 --seeds 3 --out runs/twin_factors

Writes a synthetic twin, pretrains every method on it for the same number of operations (``equal_cost.py``),
and reads the factors out of the frozen features of each modality: those both images show, and those only one
of them shows. A method that pulls the modalities together is expected to keep the first and to lose the
second. Figures are mean and deviation over seeds; the random weights are of the first method's encoder. The
last row says how much the true ground tells of the densities. The same command goes on with a killed queue;
``--table`` runs nothing. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import equal_cost
import torch

from codemae.analysis.factors import factor_scores, scene_ceiling
from codemae.analysis.pairs import whole_views
from codemae.analysis.run_encoders import encoder_files
from codemae.data.dataset import Draw, PairDataset
from codemae.data.index import open_index
from codemae.data.synthetic.factors import FACTOR_SIDES
from codemae.data.synthetic.writer import read_factors, write_dataset
from codemae.evaluation.card import sample_std
from codemae.evaluation.tables import as_table
from codemae.modality import MODALITY_NAMES
from codemae.models.factory import load_encoder

CEILING = "what the ground tells"
METHOD_CONFIGS = (
    *equal_cost.METHOD_CONFIGS,
    "ablations/tiny_without_okd",
    "ablations/tiny_without_ccl",
    "ablations/tiny_without_cdr",
    "ablations/tiny_ccl_raw",
    "ablations/tiny_ccl_strong",
    "ablations/tiny_ccl_raw_strong",
    "ablations/tiny_decur_plain",
)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", type=int, default=2000, help="synthetic pairs to pretrain on (2000)")
    parser.add_argument("--test", type=int, default=1000, help="pairs the factors are read from (1000)")
    parser.add_argument("--size", type=int, default=96, help="side of the pictures (96)")
    return equal_cost.parse_queue(parser, argv, METHOD_CONFIGS, Path("runs/twin_factors"))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Works off the queue and writes the table; returns what the last line holds."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    equal_cost.warn_of_unknown(args.out)
    args.index = str(args.out / f"twin_{args.train}_{args.test}_{args.size}")
    if not args.table:
        work_off(args)
    scores: dict[str, list[dict[str, dict[str, float]]]] = {}
    for kind in ("factors", "random"):
        for name in equal_cost.rows_in(args, f"{kind}.json"):
            files = sorted((args.out / name).glob(f"seed_*/{kind}.json"))
            label = name if kind == "factors" else equal_cost.RANDOM
            scores.setdefault(label, [json.loads(file.read_text()) for file in files])
    result = {name: means(runs) for name, runs in scores.items()}
    if (Path(args.index) / "index.parquet").exists():
        ceiling = scene_ceiling(args.index, "test", args.size)
        known = {name: {"values": [score], "mean": score, "std": 0.0} for name, score in ceiling.items()}
        result[CEILING] = dict.fromkeys(MODALITY_NAMES, known)
    print(table(result))
    (args.out / "table.md").write_text(table(result) + "\n")
    print(json.dumps(result))
    return result


def work_off(args: argparse.Namespace) -> None:
    """Writes the twin, pretrains on it and reads the factors out, all but what is done already."""
    if not (Path(args.index) / "index.parquet").exists():
        workers = os.cpu_count() or 1
        write_dataset(args.index, train=args.train, test=args.test, size=args.size, workers=workers)
    costs = {name: equal_cost.known_cost(args, name) for name in args.configs}
    for seed in range(args.seeds):
        for name in args.configs:
            folder = equal_cost.run_folder(args, name, seed)
            equal_cost.pretrain(args, name, costs[name], seed, folder)
            for kind in ("factors", "random") if name == args.configs[0] else ("factors",):
                read_out(args, folder, kind, seed)


def read_out(args: argparse.Namespace, folder: Path, kind: str, seed: int) -> None:
    """Writes the scores of each factor, by modality whose features it is read from, into the run's folder."""
    file, encoders = folder / f"{kind}.json", encoder_files(folder)
    made_of = {
        **{key: getattr(args, key) for key in ("train", "test", "size")},
        **equal_cost.labelled_made_of(args.index),
        "seed": seed,
        "encoders": {side: equal_cost.weights_made_of(path, kind) for side, path in encoders.items()},
    }
    if equal_cost.is_done(file, made_of):
        return
    names = {side: str(path) if kind == "factors" else f"random:{path}" for side, path in encoders.items()}
    scores = {side: scores_of(args, name, side, seed) for side, name in names.items()}
    equal_cost.remember(file, made_of)
    file.write_text(json.dumps(scores))


@torch.inference_mode()
def scores_of(args: argparse.Namespace, name: str, modality: str, seed: int) -> dict[str, float]:
    """Scores of each factor in the pooled features of one modality of the test pairs."""
    index = open_index(args.index, "test")
    encoder: Any = load_encoder(name, img_size=args.size, seed=seed)
    dataset = PairDataset(index, whole_views(args.size), seed=0)
    rows = [int(row) for row in index.paired_rows]
    pooled = []
    for start in range(0, len(rows), 64):
        draws = [
            Draw(epoch=0, repeat=0, optical_row=row, sar_row=row, paired=True)
            for row in rows[start : start + 64]
        ]
        batch = dataset.collate([dataset[draw] for draw in draws])
        pooled.append(encoder.pooled(batch.normalised(modality), modality).float())
    known = read_factors(args.index, "test")
    places = [known[str(index.cell(row, "group"))] for row in rows]
    factors = {name: [place[name] for place in places] for name in FACTOR_SIDES}
    return factor_scores(torch.cat(pooled).numpy(), factors)


def means(runs: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, Any]]:
    """Values, mean and deviation over seeds of each factor's score, by modality."""
    return {
        modality: {
            name: {"values": values, "mean": statistics.fmean(values), "std": sample_std(values)}
            for name in FACTOR_SIDES
            for values in [[run[modality][name] for run in runs]]
        }
        for modality in runs[0]
    }


def table(result: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> str:
    """Methods down, factors across, in percent: shared ones of both sides, then what one side alone shows."""
    columns = [
        (name, modality)
        for side in ("shared", *MODALITY_NAMES)
        for name, its_side in FACTOR_SIDES.items()
        if its_side == side
        for modality in (MODALITY_NAMES if side == "shared" else (side,))
    ]
    head = ["method", *(f"{name} ({modality})" for name, modality in columns)]
    lines = [head]
    for method, scores in result.items():
        known = [scores.get(modality, {}).get(name) for name, modality in columns]
        lines.append([method, *(equal_cost.figure(values, digits=0, scale=100) for values in known)])
    return as_table(lines, markdown=True)


if __name__ == "__main__":
    main()
