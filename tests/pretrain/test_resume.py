import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from command_lines import CODEMAE_RUN, TOY_RUN
from ddp_helpers import Launched, launch, launch_ranks
from foreign_files import itpn_file

from codemae.checkpoint import load_run_state
from codemae.data.index import open_index
from codemae.models.teacher import TeacherConfig, build_teacher
from codemae.models.vault import build_vault

LONG = ("--optim.epochs=10", "--checkpoint.every_steps=7", "--method.seconds_per_step=0.01", "--log.every=3")
STEPS = 90


def wait_for_step(run: Launched, folder: Path, step: int) -> None:
    """Until the log holds a step, or the run ends."""
    for _ in range(24_000):
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_text().count("\n") * 3 >= step:
            return
        assert run.process.is_alive(), run.output
        time.sleep(0.005)
    pytest.fail(f"never reached step {step}:\n{run.output}")


@pytest.fixture(scope="module")
def whole(toy_index, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    arguments = [*TOY_RUN, f"--data.index={toy_index}", f"--output_dir={folder / 'run'}", *LONG]
    run = launch(arguments, folder / "log")
    assert run.wait() == 0, run.output
    return folder / "run"


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_run_state(folder)["method"] for folder in (a, b))
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_killed_at_five_random_moments_the_losses_equal_to_the_last_bit(run_toy, tmp_path, metrics, whole):
    rng = random.Random(1)
    folder = tmp_path / "killed"
    reached = []
    for _ in range(5):
        run = run_toy("killed", *LONG)
        resumed_at = load_run_state(folder)["step"] if (folder / "last.pt").exists() else 0
        wait_for_step(run, folder, min(STEPS - 6, resumed_at + 3 + rng.randrange(15)))
        time.sleep(rng.random() * 0.08)
        os.kill(run.pid, signal.SIGKILL)
        run.process.join()
        reached.append(run.process.exitcode)
    assert reached.count(-signal.SIGKILL) == 5, f"some runs ended before they were killed: {reached}"
    assert run_toy("killed", *LONG).wait() == 0
    assert metrics(folder) == metrics(whole)
    assert metrics(whole)[-1]["step"] == STEPS
    assert same_weights(folder, whole)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_at_once_and_the_same_command_resumes(run_toy, tmp_path, metrics, whole, signum, code):
    never = ("--checkpoint.every_steps=null", "--checkpoint.every_epochs=null")
    arguments = [*LONG, *never, "--data.num_workers=1"]
    folder = tmp_path / "stopped"
    run = run_toy("stopped", *arguments)
    wait_for_step(run, folder, 20)
    # a terminal and a batch system signal the loader's workers too
    os.killpg(run.pid, signum)
    assert run.wait() == code, run.output
    step = load_run_state(folder)["step"]
    assert 20 <= step < STEPS
    assert f"saved at step {step}. The same command resumes." in run.output
    assert run_toy("stopped", *arguments).wait() == 0
    assert metrics(folder) == metrics(whole)


def test_the_sentinel_changes_no_bit_and_neither_do_workers_or_log_lines(run_toy, tmp_path, metrics, whole):
    extra = (
        "--log.sentinel_every=9",
        "--log.pictures_every=10",
        "--log.tensorboard=true",
        "--data.num_workers=1",
    )
    run = run_toy("watched", *LONG, *extra)
    assert run.wait() == 0, run.output
    watched = metrics(tmp_path / "watched")
    assert sum("modality_gap" in line for line in watched) == 10
    shared = set(metrics(whole)[0]) | {"ccl"}
    assert [{k: v for k, v in line.items() if k in shared} for line in watched] == metrics(whole)
    assert same_weights(tmp_path / "watched", whole)


@pytest.mark.ddp
def test_two_processes_go_on_where_one_stopped_with_the_same_samples(run_toy, toy_index, tmp_path, metrics):
    steady = ("--optim.epochs=4", "--optim.global_batch=4", "--method.dropout=0", "--optim.base_lr=0.001")
    alone = run_toy("one", *steady)
    stopped = run_toy("moved", *steady, "--method.seconds_per_step=0.02", "--checkpoint.every_steps=5")
    folder = tmp_path / "moved"
    assert alone.wait() == 0, alone.output
    wait_for_step(stopped, folder, 40)
    os.kill(stopped.pid, signal.SIGKILL)
    stopped.process.join()
    resumed_from = load_run_state(folder)["step"]
    assert 0 < resumed_from < 36

    where = [f"--data.index={toy_index}", f"--output_dir={folder}", "--method.seconds_per_step=0.02"]
    ranks = launch_ranks([*TOY_RUN, *steady, *where, "--optim.batch_per_gpu=2"], tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output

    one, moved = metrics(tmp_path / "one"), metrics(folder)
    assert [line["samples"] for line in moved] == [line["samples"] for line in one]
    assert [line["step"] for line in moved] == list(range(1, 37))
    for mine, theirs in zip(moved, one, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.ddp
def test_two_processes_finish_a_mixed_epoch_with_equal_steps_and_stop_together(toy_index, tmp_path, metrics):
    where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / 'two'}", "--log.sentinel_every=4"]
    arguments = [*TOY_RUN, *where, "--optim.batch_per_gpu=2", "--optim.epochs=1"]
    ranks = launch_ranks(arguments, tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output
    lines = metrics(tmp_path / "two")
    # 24 pairs and 12 unpaired samples in batches of 4
    assert len(lines) == 9 and sum("ccl" in line for line in lines) == 6
    assert sum("gradient_cosine_reconstruction_ccl" in line for line in lines) == 2

    slow = [
        *arguments,
        "--method.seconds_per_step=0.05",
        "--optim.epochs=20",
        f"--output_dir={tmp_path / 'slow'}",
    ]
    ranks = launch_ranks(slow, tmp_path)
    wait_for_step(ranks[0], tmp_path / "slow", 12)
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [143, 143], ranks[0].output + ranks[1].output
    assert load_run_state(tmp_path / "slow")["step"] == len(metrics(tmp_path / "slow"))


@pytest.mark.ddp
def test_codemae_resumes_exactly_on_one_process_and_on_two(toy_index, tmp_path, metrics):
    def words(name: str, *more: str) -> list[str]:
        where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / name}"]
        steady = [
            "--optim.epochs=1",
            "--optim.global_batch=4",
            "--checkpoint.every_steps=3",
            "--optim.warmup_epochs=0",
        ]
        return [*CODEMAE_RUN, *where, *steady, *more]

    drops = "--method.encoder.drop_path=0.3"
    once = launch(words("whole", drops, "--optim.batch_per_gpu=4"), tmp_path / "whole.log")
    assert once.wait() == 0, once.output
    midway = f"--resume={tmp_path / 'whole' / 'previous.pt'}"
    assert load_run_state(tmp_path / "whole" / "previous.pt")["step"] == 6

    again = launch(words("again", drops, "--optim.batch_per_gpu=4", midway), tmp_path / "again.log")
    assert again.wait() == 0, again.output
    expected = metrics(tmp_path / "whole")[6:]
    assert metrics(tmp_path / "again") == expected
    assert same_weights(tmp_path / "again", tmp_path / "whole")

    # two halves of a step draw the same drop path whether one process runs both or two run one each,
    # so that only the contrastive term, which sees half a batch, could tell accumulation from processes
    calm = "--method.ccl.enabled=false"
    alone = launch(words("alone", drops, calm, "--optim.batch_per_gpu=2"), tmp_path / "alone.log")
    assert alone.wait() == 0, alone.output
    midway = f"--resume={tmp_path / 'alone' / 'previous.pt'}"
    ranks = launch_ranks(words("two", drops, calm, midway, "--optim.batch_per_gpu=2"), tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output
    for mine, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "alone")[6:], strict=True):
        assert mine["samples"] == theirs["samples"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_another_config_in_the_same_folder_is_refused_by_key(run_toy, tmp_path):
    assert run_toy("run", "--optim.epochs=1").wait() == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    changed = run_toy("run", "--optim.epochs=1", "--optim.weight_decay=0.5", "--method.dropout=0.2")
    assert changed.wait() == 2
    assert "optim.weight_decay was 0.05, is 0.5" in changed.output
    assert "method.dropout was 0.1, is 0.2" in changed.output
    larger = run_toy("run", "--optim.epochs=1", "--optim.batch_per_gpu=8")
    assert larger.wait() == 2
    assert "optim.global_batch was 4, is 8" in larger.output
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_harmless_keys_may_change_and_a_finished_run_stays_finished(run_toy, tmp_path, metrics):
    assert run_toy("run", "--optim.epochs=1").wait() == 0
    lines = metrics(tmp_path / "run")
    again = run_toy("run", "--optim.epochs=1", "--log.every=5", "--checkpoint.every_steps=2")
    assert again.wait() == 0, again.output
    assert "steps: 9 of 9 done" in again.output
    assert metrics(tmp_path / "run") == lines


def test_initial_weights_may_move_or_go_once_the_run_has_a_state(toy_index, tmp_path, metrics):
    def start(name: str, init: object, *more: str) -> Launched:
        where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / name}"]
        steady = ["--optim.batch_per_gpu=4", "--optim.max_steps=4", "--checkpoint.every_steps=2"]
        words = [*CODEMAE_RUN, *where, *steady, f"--method.encoder.init={init}", *more]
        return launch(words, tmp_path / f"{name}.log")

    first_place, other = tmp_path / "itpn.pth", tmp_path / "other.pth"
    torch.save({"model": itpn_file()}, first_place)
    torch.save({"model": {key: value + 1 for key, value in itpn_file().items()}}, other)
    first = start("first", first_place)
    assert first.wait() == 0, first.output
    assert f"start: {first_place}" in first.output

    first_place.unlink()
    midway = tmp_path / "first" / "previous.pt"
    assert load_run_state(midway)["step"] == 2
    second = start("second", tmp_path / "moved.pth", f"--resume={midway}")
    assert second.wait() == 0, second.output
    assert f"start: the state in {midway}" in second.output
    assert metrics(tmp_path / "second") == metrics(tmp_path / "first")[2:]
    assert same_weights(tmp_path / "second", tmp_path / "first")

    for init, said in ((other, "method.encoder.init does not hold what it held"), ("", "init was")):
        refused = start("first", init)
        assert refused.wait() == 2
        assert said in refused.output
    missing = start("third", first_place)
    assert missing.wait() == 2
    assert "--method.encoder.init '' starts from random weights" in missing.output
    assert not (tmp_path / "third").exists()


def test_a_vault_may_move_but_not_change_or_go(toy_index, tmp_path):
    teacher = build_teacher(TeacherConfig(name="resnet18", pretrained=False))
    build_vault(open_index(toy_index, ["train"]), teacher, tmp_path / "vault", size=64)

    def start(name: str, *more: str) -> Launched:
        where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / 'run'}", "--method.okd.enabled=true"]
        named = ["--method.okd.teacher.name=resnet18", "--method.okd.teacher.pretrained=false"]
        steady = ["--optim.batch_per_gpu=4", "--optim.max_steps=2"]
        return launch([*CODEMAE_RUN, *where, *named, *steady, *more], tmp_path / f"{name}.log")

    first = start("first", f"--method.okd.teacher.vault={tmp_path / 'vault'}")
    assert first.wait() == 0, first.output
    moved = tmp_path / "elsewhere"
    (tmp_path / "vault").rename(moved)
    again = start("again", f"--method.okd.teacher.vault={moved}")
    assert again.wait() == 0, again.output
    assert "steps: 2 of 2 done" in again.output

    live = start("live")
    assert live.wait() == 2
    assert "method.okd.teacher.vault was" in live.output
    described = json.loads((moved / "vault.json").read_text())
    (moved / "vault.json").write_text(json.dumps({**described, "key": "another"}))
    changed = start("changed", f"--method.okd.teacher.vault={moved}")
    assert changed.wait() == 2
    assert "method.okd.teacher.vault does not hold what it held" in changed.output


def test_another_index_in_the_same_folder_is_refused(run_toy, tmp_path):
    import toy

    assert run_toy("run", "--optim.epochs=1").wait() == 0
    other = toy.make_index(tmp_path / "other", paired=16)
    run = run_toy("run", "--optim.epochs=1", index=other)
    assert run.wait() == 2
    assert "not the samples or statistics" in run.output


def test_resume_never_destroys_nothing_and_a_named_file_must_be_there(run_toy, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    run = run_toy("run", "--resume=never")
    assert run.wait() == 2
    assert "is not empty and --resume never starts anew" in run.output
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    missing = run_toy("run", "--resume=nowhere.pt")
    assert missing.wait() == 2 and "no such file" in missing.output


def test_a_run_goes_on_from_a_named_file_in_another_folder(run_toy, tmp_path, metrics):
    assert run_toy("first", "--optim.epochs=2").wait() == 0
    early = tmp_path / "first" / "previous.pt"
    assert load_run_state(early)["step"] == 9
    second = run_toy("second", "--optim.epochs=2", f"--resume={early}")
    assert second.wait() == 0, second.output
    assert metrics(tmp_path / "second") == metrics(tmp_path / "first")[9:]
    mixed = run_toy("second", "--optim.epochs=2", f"--resume={early}")
    assert mixed.wait() == 2 and "names a file of another" in mixed.output


def test_a_damaged_last_state_falls_back_to_the_previous_one_and_ends_the_same(run_toy, tmp_path, metrics):
    assert run_toy("run", "--optim.epochs=2").wait() == 0
    expected = metrics(tmp_path / "run")
    os.truncate(tmp_path / "run" / "last.pt", 1000)
    again = run_toy("run", "--optim.epochs=2")
    assert again.wait() == 0, again.output
    assert "falling back to previous.pt" in again.output
    assert metrics(tmp_path / "run") == expected


def test_both_states_damaged_is_an_error_and_not_a_fresh_start(run_toy, tmp_path):
    assert run_toy("run", "--optim.epochs=2").wait() == 0
    for name in ("last.pt", "previous.pt"):
        os.truncate(tmp_path / "run" / name, 1000)
    again = run_toy("run", "--optim.epochs=2")
    assert again.wait() == 2
    assert "damaged or cut off" in again.output


def test_a_disk_that_fills_up_stops_the_run_and_leaves_a_state_that_resumes(run_toy, tmp_path, metrics):
    expected = run_toy("roomy", "--optim.epochs=3")
    first = run_toy(
        "full", "--optim.epochs=3", "--checkpoint.every_steps=4", "--method.seconds_per_step=0.02"
    )
    folder = tmp_path / "full"
    wait_for_step(first, folder, 30)
    os.kill(first.pid, signal.SIGKILL)
    first.process.join()
    step = load_run_state(folder)["step"]

    cramped = run_toy(
        "full",
        "--optim.epochs=3",
        "--checkpoint.every_steps=4",
        "--method.seconds_per_step=0.02",
        file_size_limit=30_000,
    )
    assert cramped.wait() == 1
    assert "could not write" in cramped.output and "same command again to resume" in cramped.output
    assert load_run_state(folder)["step"] == step
    assert not list(folder.glob("*.partial"))

    assert (
        run_toy(
            "full", "--optim.epochs=3", "--checkpoint.every_steps=4", "--method.seconds_per_step=0.02"
        ).wait()
        == 0
    )
    assert expected.wait() == 0
    assert metrics(folder) == metrics(tmp_path / "roomy")
