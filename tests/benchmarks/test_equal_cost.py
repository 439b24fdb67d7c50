import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import equal_cost
import numpy as np
import pytest
import step_cost
import torch
import twin_factors
from data_makers import make_labelled
from PIL import Image
from torch import Tensor

from codemae.config import read_yaml
from codemae.data.synthetic.factors import FACTOR_SIDES
from codemae.data.synthetic.writer import read_factors, write_dataset
from codemae.engine.step import Learner
from codemae.evaluation.card import Card

SMALL = [
    "method.encoder.img_size=32",
    "method.decoder.dim=48",
    "method.decoder.depth=1",
    "method.decoder.num_heads=3",
    "method.okd.enabled=false",
    "optim.batch_per_gpu=4",
    "optim.amp=float32",
    "data.num_workers=0",
    "log.every=1",
    "log.sentinel_samples=4",
    "device=cpu",
]
CONFIG = "codemae_hivit_tiny_cpu"


@pytest.fixture
def words(toy_index: Path, tmp_path: Path) -> list[str]:
    labelled = make_labelled(tmp_path / "labelled")
    return [
        *(
            f"--index={toy_index}",
            f"--optical={labelled}",
            f"--sar={labelled}",
            f"--out={tmp_path / 'queue'}",
        ),
        *("--seeds=1", "--probe-size=32", "--shots=3", "--configs", CONFIG, "--set", *SMALL),
    ]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, equal_cost.__file__, *words], capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_a_budget_becomes_steps_and_the_queue_is_not_run_twice(words: list[str], tmp_path: Path) -> None:
    first = run([*words, "--tflop=0.01"])
    result = json.loads(first.stdout.splitlines()[-1])[CONFIG]
    queue = tmp_path / "queue" / CONFIG
    cost = json.loads((queue / "step_cost.json").read_text())
    assert result["steps"] == round(0.01 / (cost["gflop"] / 1e3)) >= 2
    assert result["tflop"] == pytest.approx(0.01, rel=1 / result["steps"])
    metrics = [json.loads(line) for line in (queue / "seed_0" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == result["steps"]
    assert result["effective_rank_optical"] == metrics[-1]["effective_rank_optical"]
    assert result["seconds"] == pytest.approx(sum(line["seconds_per_step"] for line in metrics))
    assert {"probe_optical", "probe_sar", "random_optical", "random_sar"} <= set(result)
    table = (tmp_path / "queue" / "table.md").read_text()
    assert table in first.stdout and "own random optical" in table
    assert (
        result["process_peak_mb"]
        == json.loads((queue / "seed_0" / "cost.json").read_text())["process_peak_mb"]
    )
    assert not any(file.name.endswith(".pt") for file in queue.iterdir())
    fresh = sorted(path.name for path in (tmp_path / "queue" / "random_weights").glob("hivit_tiny_*/*"))
    assert fresh == ["seed_0_optical", "seed_0_sar"]
    stamp = (queue / "seed_0" / "encoder.safetensors").stat().st_mtime_ns
    again = run([*words, "--tflop=0.01"])
    assert (queue / "seed_0" / "encoder.safetensors").stat().st_mtime_ns == stamp
    assert again.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    for changed, said in (
        ([*words, "--tflop=0.02"], "another --out"),
        (["--tflop=0.01", *words, "optim.clip_grad=1.0"], r"was made with config\.optim\.clip_grad "),
        (
            ["--tflop=0.01", "--shots=4", *(word for word in words if "--shots" not in word)],
            "made with shots ",
        ),
    ):
        with pytest.raises(SystemExit, match=said):
            equal_cost.main(changed)
    assert (queue / "seed_0" / "encoder.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_rate_is_chosen_without_a_test_image_and_then_used(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal_cost, "rate_beyond", lambda *_: [])
    pictures = list((tmp_path / "labelled" / "images" / "test").rglob("*.png"))
    assert pictures
    hidden = {picture: picture.read_bytes() for picture in pictures}
    for picture in pictures:
        picture.write_bytes(b"no picture")
    command = [word for word in words if not word.startswith("--sar")]
    command = ["--tflop=0.005", "--rates", "0.02", "0.001", *command]
    with pytest.raises(SystemExit, match="linearprobing failed"):
        equal_cost.main(command)  # the rates are compared, the first probe of the table is not possible
    queue = tmp_path / "queue" / CONFIG
    rates = json.loads((queue / "rates.json").read_text())
    figures = {rate: scores["optical"] for rate, scores in rates["held_out"].items()}
    assert set(figures) == {"0.001", "0.02"} and figures[str(rates["chosen"])] == max(figures.values())
    for rate in figures:
        settings = read_yaml(queue / "rates" / rate / "config.yaml")
        assert settings["optim"]["lr"] == float(rate) and settings["seed"] == equal_cost.RATE_SEED
        card = Card.load(queue / "rates" / rate / "probe_optical")
        assert card.settings["hold_out"] == 0.5 and card.mean == figures[rate]
    for picture, content in hidden.items():
        picture.write_bytes(content)
    row = equal_cost.main(command)[CONFIG]
    assert row["rate"] == rates["chosen"] and row["rates"] == rates
    assert read_yaml(queue / "seed_0" / "config.yaml")["optim"]["lr"] == rates["chosen"]
    assert "hold_out" not in Card.load(queue / "seed_0" / "probe_optical").settings
    with pytest.raises(SystemExit, match=r"config.optim.lr "):
        equal_cost.main([word for word in command if word not in ("--rates", "0.02", "0.001")])


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ({0.001: (50, 20), 0.003: (45, 30), 0.01: (60, 10)}, 0.003),
        ({0.001: (50, 40), 0.003: (45, 30), 0.01: (60, 10), 0.00033: (50, 39)}, 0.001),
        ({0.001: (50, 40), 0.003: (45, 30), 0.01: (60, 10), 0.00033: (50, 41), 0.00011: (9, 9)}, 0.00033),
        (
            {0.001: (50, None), 0.003: (45, None), 0.01: (60, None), 0.033: (61, None), 0.11: (60, None)},
            0.033,
        ),
        ({0.001: (1, 1), 0.003: (2, 2), 0.01: (3, 3), 0.033: (4, 4), 0.11: (5, 5), 0.37: (6, 6)}, 0.37),
    ],
)
def test_the_rate_with_the_best_mean_of_modalities_is_taken(
    figures: dict[float, tuple[float, float | None]],
    chosen: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def probed(_: Any, run: Path, *__: Any) -> None:
        for side, value in zip(("optical", "sar"), figures[float(run.name)], strict=True):
            if value is not None:
                card_of(value).save(run / f"probe_{side}" / "results.json")

    monkeypatch.setattr(equal_cost, "pretrain", lambda *_: None)
    monkeypatch.setattr(equal_cost, "probe", probed)
    monkeypatch.setattr(equal_cost, "encoder_files", lambda _: dict.fromkeys(("optical", "sar"), Path()))
    args = argparse.Namespace(out=tmp_path, rates=[0.01, 0.003, 0.001])
    assert equal_cost.chosen_rate(args, CONFIG, Any) == chosen
    assert set(json.loads((tmp_path / CONFIG / "rates.json").read_text())["held_out"]) == set(
        map(str, figures)
    )
    args.rates = None
    assert equal_cost.chosen_rate(args, CONFIG, Any) == 0


def test_a_rate_at_which_losses_end_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretrained(_: Any, name: str, __: Any, seed: int, folder: Path, rate: float) -> None:
        if rate > limit:
            raise equal_cost.Diverged("not finite")
        card_of(rate).save(folder / "probe_optical" / "results.json")

    limit = 0.005
    monkeypatch.setattr(equal_cost, "pretrain", pretrained)
    monkeypatch.setattr(equal_cost, "probe", lambda *_: None)
    monkeypatch.setattr(equal_cost, "encoder_files", lambda _: {"optical": Path()})
    args = argparse.Namespace(out=tmp_path, rates=[0.01, 0.003, 0.001])
    assert equal_cost.chosen_rate(args, CONFIG, Any) == 0.003
    written = json.loads((tmp_path / CONFIG / "rates.json").read_text())
    assert written["held_out"] == {"0.001": {"optical": 0.001}, "0.003": {"optical": 0.003}, "0.01": {}}
    limit = 0.0
    with pytest.raises(SystemExit, match=r"no figure at any of the rates \[0.001, 0.003, 0.01\]"):
        equal_cost.chosen_rate(args, CONFIG, Any)


@pytest.mark.parametrize(("code", "error"), [(3, equal_cost.Diverged), (1, SystemExit), (-9, SystemExit)])
def test_only_losses_that_end_are_a_divergence(
    code: int, error: type[BaseException], toy_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equal_cost, "in_own_process", lambda *_: code)
    args = cost_arguments(tmp_path, toy_index, tflop=1.0)
    cost = step_cost.Cost(gflop=500, seconds=0, images=8, pairs=4, steps_per_epoch=3)
    with pytest.raises(SystemExit, match="its message is above") as raised:
        equal_cost.pretrain(args, CONFIG, cost, 0, tmp_path / "run")
    assert raised.type is error


def test_a_table_has_the_rows_of_earlier_commands(tmp_path: Path) -> None:
    for name in ("late", "early", CONFIG, "no_result"):
        (tmp_path / name / "seed_0").mkdir(parents=True)
        if name != "no_result":
            (tmp_path / name / "seed_0" / "cost.json").touch()
    args = argparse.Namespace(out=tmp_path, configs=["some/late.yaml", "absent"])
    assert equal_cost.rows_in(args, "cost.json") == ["late", CONFIG, "early"]


def card_of(value: float) -> Card:
    return Card(
        task="linear_probing",
        dataset="toy",
        split_hash="",
        statistics_hash="",
        encoder="",
        checkpoint_hash="",
        modality="optical",
        protocol="clean",
        selected_by="last",
        metric="overall_accuracy",
        seeds=[0],
        values=[value],
    )


def test_runs_at_two_rates_make_no_row(tmp_path: Path) -> None:
    for seed, rate in enumerate((0.001, 0.003)):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "config.yaml").write_text(f"optim: {{lr: {rate}}}")
    assert equal_cost.common_rate([tmp_path / "0"]) == 0.001
    with pytest.raises(SystemExit, match="learning rates differ"):
        equal_cost.common_rate([tmp_path / "0", tmp_path / "1"])


def test_the_mean_step_weighs_paired_and_unpaired_steps_as_an_epoch_has_them(toy_index: Path) -> None:
    def cost(*more: str) -> Any:
        return step_cost.step_cost(
            ["--config", str(equal_cost.yaml_of(CONFIG)), f"--data.index={toy_index}"]
            + [f"--{word}" for word in (*SMALL, *more)]
        )

    paired, unpaired, both = (cost(f"data.samples={kind}") for kind in ("paired", "unpaired", "both"))
    assert unpaired.gflop < paired.gflop
    steps = paired.steps_per_epoch + unpaired.steps_per_epoch
    assert both.steps_per_epoch == steps
    weighted = (paired.gflop * paired.steps_per_epoch + unpaired.gflop * unpaired.steps_per_epoch) / steps
    assert both.gflop == pytest.approx(weighted)
    assert (both.images, paired.pairs, unpaired.pairs) == (8, 4, 0)


def cost_arguments(out: Path, index: Path, **budget: float | None) -> argparse.Namespace:
    budget = {"tflop": None, "minutes": None, **budget}
    return argparse.Namespace(out=out, index=str(index), set=SMALL, **budget)


def test_a_step_cost_of_other_data_or_settings_is_refused(toy_index: Path, tmp_path: Path) -> None:
    counted = cost_arguments(tmp_path, toy_index, tflop=1.0)
    cost = equal_cost.known_cost(counted, CONFIG)
    assert cost.gflop > 0 and cost.seconds == 0
    assert equal_cost.known_cost(counted, CONFIG) == cost
    with pytest.raises(SystemExit, match="timed False, and this command has True: .*another --out"):
        equal_cost.known_cost(cost_arguments(tmp_path, toy_index, minutes=1.0), CONFIG)
    other = cost_arguments(tmp_path, toy_index, tflop=1.0)
    other.set = [*SMALL, "method.mask_ratio=0.5"]
    with pytest.raises(SystemExit, match="config.method.mask_ratio 0.75, and this command has 0.5"):
        equal_cost.known_cost(other, CONFIG)
    made_of = {
        **equal_cost.pretraining_made_of(tuple(equal_cost.common_words(counted, CONFIG))),
        "timed": False,
    }
    file = tmp_path / CONFIG / "step_cost.json"
    with pytest.raises(SystemExit, match="step_cost.json was made with index "):
        equal_cost.is_done(file, {**made_of, "index": "another"})


def test_a_record_of_an_earlier_version_is_taken_with_a_warning(
    toy_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / CONFIG / "step_cost.json"
    file.parent.mkdir()
    file.write_text('{"gflop": 2.0, "seconds": 0.0, "steps_per_epoch": 3, "images": 8, "pairs": 4}')
    equal_cost.warn_of_unknown(tmp_path)
    assert "1 of 1 results" in capsys.readouterr().err
    assert equal_cost.known_cost(cost_arguments(tmp_path, toy_index, tflop=1.0), CONFIG).gflop == 2
    with pytest.raises(SystemExit, match="counted, not timed"):
        equal_cost.known_cost(cost_arguments(tmp_path, toy_index, minutes=1.0), CONFIG)


def test_timed_steps_are_whole_ones_and_leave_the_count_alone(
    toy_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", str(equal_cost.yaml_of("cmid_hivit_tiny_cpu")), f"--data.index={toy_index}"]
    words += [
        "--method.encoder.img_size=64",
        "--optim.batch_per_gpu=4",
        "--device=cpu",
        "--log.sentinel_every=0",
    ]
    plain = step_cost.step_cost(words)
    calls = []
    step, after_step = Learner.step, step_cost.METHODS.get("cmid").after_step
    monkeypatch.setattr(Learner, "step", lambda *a, **k: (calls.append("step"), step(*a, **k))[1])
    monkeypatch.setattr(
        step_cost.METHODS.get("cmid"), "after_step", lambda *a: (calls.append("after"), after_step(*a))[1]
    )
    timed = step_cost.step_cost(words, timed=True, repeats=1)
    assert timed.gflop == plain.gflop and timed.seconds > 0 == plain.seconds
    assert calls[:4] == ["step", "after", "step", "after"] and len(calls) % 4 == 0


def test_peak_memory_of_a_run_is_not_that_of_the_process_that_starts_it(tmp_path: Path) -> None:
    ballast = b"\x01" * 2**30
    file = tmp_path / "memory.json"
    assert equal_cost.in_own_process(equal_cost.pretrain_and_measure, ["--help"], file) == 0
    peak = json.loads(file.read_text())["process_peak_mb"]
    assert 50 < peak < len(ballast) / 2**20 < equal_cost.peak_memory()["process_peak_mb"]


def test_a_killed_queue_leaves_no_run_behind() -> None:
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    queue = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True, env=paths)
    assert queue.stdout is not None
    child = int(queue.stdout.readline())
    os.kill(child, 0)
    queue.kill()
    queue.wait()
    until = time.monotonic() + 30
    while time.monotonic() < until and is_alive(child):
        time.sleep(0.1)
    assert not is_alive(child)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def say_and_sleep() -> None:
    print(os.getpid(), flush=True)
    time.sleep(120)


def test_each_method_stands_beside_fresh_weights_of_its_own_encoder(tmp_path: Path) -> None:
    def row(random: float) -> dict[str, Any]:
        probe, fresh = ({"values": [m - 1, m + 1], "mean": m, "std": 2**0.5} for m in (52.8, random))
        counts = {
            "encoder": "hivit_tiny",
            "rate": 1e-3,
            "seeds": 2,
            "tflop": 12.0,
            "seconds": 9.0,
            "images": 8,
            "pairs": 4,
        }
        return {**counts, "probe_optical": probe, "random_optical": fresh, "effective_rank_optical": 3.0}

    rows = {"one": row(48.0), "two": {**row(47.0), "process_peak_mb": 2048.0}}
    head, _, one, two = equal_cost.write_table(tmp_path, rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, one, two)]
    named = [dict(zip(cells[0], line, strict=True)) for line in cells[1:]]
    assert [line["optical"] for line in named] == ["52.8 ± 1.4"] * 2
    assert [line["own random optical"] for line in named] == ["48.0 ± 1.4", "47.0 ± 1.4"]
    assert [line["process GB"] for line in named] == ["", "2.0"]
    assert [line["ranks"] for line in named] == ["3.0 / -"] * 2


def test_cards_of_different_probes_make_no_table() -> None:
    group = [(Path(name), {"shots": shots}) for name, shots in (("a", 10), ("b", 10), ("c", 5))]
    equal_cost.refuse_differences(group[:2])
    with pytest.raises(SystemExit, match="shots is 10 in a and 5 in c"):
        equal_cost.refuse_differences(group)


def test_words_that_a_queue_cannot_do_without(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--index=x"], ["--index=x", "--tflop=0"], ["--tflop=1"]):
        with pytest.raises(SystemExit):
            equal_cost.parse(words)
    assert equal_cost.parse(["--table"]).table
    assert capsys.readouterr().err.count("--tflop or --minutes, above 0") == 2
    whole = ["--index=x", "--tflop=1"]
    assert equal_cost.parse([*whole, "--rates", "1e-3", "3e-3"]).rates == [1e-3, 3e-3]
    for rates in (["1e-3"], ["1e-3", "1e-3"], ["0", "1e-3"], ["1e-3", "3e-3", "--set", "optim.lr=1"]):
        with pytest.raises(SystemExit):
            equal_cost.parse([*whole, "--rates", *rates])
    assert capsys.readouterr().err.count("--rates") >= 4


def test_nothing_to_probe_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="give --optical INDEX_DIR"):
        equal_cost.main(["--index=x", "--tflop=1"])


class KnownFactor:
    """Recognises the place of an image by its pixels; its feature is that place's value of one factor."""

    def __init__(self, folder: Path, values: dict[str, float]) -> None:
        self.values = torch.tensor(list(values.values()))[:, None]
        self.pictures = {
            side: torch.stack(
                [self.flat(np.array(Image.open(folder / side / f"{name}.png"))) for name in values]
            )
            for side in ("optical", "sar")
        }

    @staticmethod
    def flat(picture: Any) -> Tensor:
        pixels = torch.as_tensor(picture, dtype=torch.float32)
        pixels = pixels if pixels.ndim == 2 else pixels.mean(-1)
        return (pixels.flatten() - pixels.mean()) / pixels.std()

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        found = torch.stack([self.flat(image.permute(1, 2, 0)) for image in images])
        return self.values[(found @ self.pictures[modality].T).argmax(1)]


def test_a_factor_in_the_features_is_found_and_only_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two batches of the 64 that are read at a time.
    write_dataset(tmp_path, train=4, test=100, size=32)
    places = read_factors(tmp_path, "test")
    known = {name: factors["incidence"] for name, factors in places.items()}
    shuffled = dict(
        zip(known, np.random.default_rng(0).permutation(list(known.values())).tolist(), strict=True)
    )
    args = argparse.Namespace(index=str(tmp_path), size=32)
    some = {name: FACTOR_SIDES[name] for name in ("incidence", "roughness", "orientation", "look_right")}
    monkeypatch.setattr(twin_factors, "FACTOR_SIDES", some)

    def score(values: dict[str, float], modality: str) -> dict[str, float]:
        monkeypatch.setattr(twin_factors, "load_encoder", lambda *_, **__: KnownFactor(tmp_path, values))
        return twin_factors.scores_of(args, "stub", modality, 0)

    for modality in ("optical", "sar"):
        scores = score(known, modality)
        assert scores.pop("incidence") > 0.99
        assert max(scores.values()) < 0.2
        assert score(shuffled, modality)["incidence"] < 0.1


def test_cells_are_mean_and_deviation_over_seeds() -> None:
    runs = [{"sar": dict.fromkeys(FACTOR_SIDES, value)} for value in (0.61, 0.65)]
    scores = twin_factors.means(runs)["sar"]["looks"]
    assert scores["mean"] == pytest.approx(0.63) and scores["std"] == pytest.approx(0.04 / 2**0.5)
    assert "| 63 ± 3 |" in twin_factors.table({"a": twin_factors.means(runs)})
    assert "±" not in twin_factors.table({"a": twin_factors.means(runs[:1])})


@pytest.mark.slow
def test_a_queue_over_the_twin_can_be_tabled_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tflop=0.01", "--seeds=1", "--train=16", "--test=60", "--size=32", f"--out={tmp_path}"]
    result = twin_factors.main([*words, "--configs", CONFIG, "--set", *SMALL])
    assert set(result) == {CONFIG, equal_cost.RANDOM, twin_factors.CEILING}
    for kind, label in (("factors", CONFIG), ("random", equal_cost.RANDOM)):
        written = json.loads((tmp_path / CONFIG / "seed_0" / f"{kind}.json").read_text())
        assert set(written) == {"optical", "sar"} and set(written["optical"]) == set(FACTOR_SIDES)
        assert result[label]["sar"]["scene"]["values"] == [written["sar"]["scene"]]
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == result and "warning" not in printed.err
    assert (tmp_path / "table.md").read_text() in printed.out
    assert set(result[twin_factors.CEILING]["sar"]) == {"road_density", "building_density"}
    assert twin_factors.main(["--table", *words[2:], "--configs", CONFIG]) == result
    without = twin_factors.main(["--table", f"--out={tmp_path}", "--configs", CONFIG])
    assert without == {name: result[name] for name in result if name != twin_factors.CEILING}


if __name__ == "__main__":
    equal_cost.in_own_process(say_and_sleep)
