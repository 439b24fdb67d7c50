import os

import pytest
import torch
import toy

from codemae.checkpoint import load_run_state


def steps(*which: int) -> str:
    return "[" + ", ".join(map(str, which)) + "]"


@pytest.mark.parametrize("where", ["nan_at", "nan_gradient_at"])
def test_one_step_that_is_not_finite_is_skipped_and_logged(run_toy, tmp_path, metrics, where):
    run = run_toy("run", "--optim.epochs=1", f"--method.{where}={steps(4)}")
    assert run.wait() == 0, run.output
    lines = metrics(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert lines[4]["loss"] is None
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines if line["step"] != 5)
    assert "step 5 skipped: loss terms" in run.output
    state = load_run_state(tmp_path / "run")
    assert state["method"]["steps_seen"] == 8, "after_step ran for the skipped step"
    assert all(torch.isfinite(value).all() for value in state["method"].values())


@pytest.mark.ddp
def test_a_step_is_skipped_on_every_rank_alike(toy_index, tmp_path, metrics):
    from command_lines import TOY_RUN
    from ddp_helpers import launch_ranks

    where = [f"--data.index={toy_index}", f"--output_dir={tmp_path / 'run'}", "--optim.epochs=1"]
    ranks = launch_ranks(
        [*TOY_RUN, *where, "--optim.batch_per_gpu=2", f"--method.nan_at={steps(4)}"], tmp_path
    )
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].output + ranks[1].output
    assert [line["skipped"] for line in metrics(tmp_path / "run")] == [0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_ten_in_a_row_stop_the_run_with_the_state_from_before_them(run_toy, tmp_path, metrics):
    early = run_toy("early", "--optim.epochs=3", "--method.nan_at=[]", "--optim.max_steps=27")
    run = run_toy("run", "--optim.epochs=3", f"--method.nan_at={steps(*range(6, 27))}")
    assert run.wait() == 3
    assert "10 steps in a row" in run.output and "at step 6" in run.output
    state = load_run_state(tmp_path / "run")
    assert state["step"] == 6 and state["skipped_in_row"] == 0
    assert state["method"]["steps_seen"] == 6
    assert early.wait() == 0
    assert metrics(tmp_path / "run")[:6] == metrics(tmp_path / "early")[:6]

    again = run_toy("run", "--optim.epochs=3", f"--method.nan_at={steps(*range(6, 27))}")
    assert again.wait() == 3 and "at step 6" in again.output
    # the tenth stops the run before its line is written
    assert [line["step"] for line in metrics(tmp_path / "run")] == list(range(1, 16))


def test_nine_in_a_row_do_not_stop_it(run_toy, tmp_path, metrics):
    run = run_toy("run", "--optim.epochs=3", f"--method.nan_at={steps(*range(6, 15), *range(16, 25))}")
    assert run.wait() == 0, run.output
    assert sum(line["skipped"] for line in metrics(tmp_path / "run")) == 18


def test_images_that_cannot_be_read_are_listed_counted_and_above_one_percent_stop_the_run(
    run_toy, tmp_path, metrics
):
    index = toy.make_index(tmp_path / "index", paired=24, optical=0, sar=0, broken=1)
    run = run_toy("run", "--optim.epochs=2", index=index)
    assert run.wait() == 1
    listed = (tmp_path / "run" / "bad_samples.txt").read_text().splitlines()
    assert len(listed) == 1 and "optical/paired0.png" in listed[0]
    assert "1 images could not be read, more than 1% of the 24 samples" in run.output
    assert "bad_samples.txt" in run.output and "--exclude" in run.output
    assert metrics(tmp_path / "run")[-1]["bad_samples"] == 1


def test_below_one_percent_the_run_goes_on(run_toy, tmp_path, metrics):
    index = toy.make_index(tmp_path / "index", paired=120, optical=0, sar=0, broken=1, size=33)
    run = run_toy("run", "--optim.epochs=2", "--optim.batch_per_gpu=8", "--data.num_workers=1", index=index)
    assert run.wait() == 0, run.output
    lines = metrics(tmp_path / "run")
    assert sum(line["bad_samples"] for line in lines) == 2, "once an epoch"
    listed = (tmp_path / "run" / "bad_samples.txt").read_text().splitlines()
    assert [int(text.split("\t")[0]) for text in listed] == [
        line["step"] for line in lines if line["bad_samples"]
    ]


def test_pixels_that_are_no_numbers_are_counted_and_harm_nothing(run_toy, tmp_path, metrics):
    index = toy.make_index(tmp_path / "index", paired=8, optical=0, sar=0, holes=40)
    run = run_toy("run", "--optim.epochs=2", index=index)
    assert run.wait() == 0, run.output
    lines = metrics(tmp_path / "run")
    assert len(lines) == 4
    assert sum(line["nonfinite_pixels"] for line in lines) > 0
    assert all(line["skipped"] == 0 and line["loss"] < 100 for line in lines)


def test_a_checkpoint_with_code_in_it_is_refused_and_nothing_runs(run_toy, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"step": 1, "method": Bomb()}, folder / "last.pt")
    run = run_toy("run")
    assert run.wait() == 2
    assert "could run code" in run.output
    assert not (tmp_path / "made").exists()


def test_the_state_of_another_method_is_refused(run_toy, tmp_path):
    assert run_toy("run", "--optim.epochs=1").wait() == 0
    state = load_run_state(tmp_path / "run")
    state["method"]["encoder.extra"] = state["method"].pop("encoder.blocks.0.0.weight")
    torch.save(state, tmp_path / "run" / "last.pt")
    run = run_toy("run", "--optim.epochs=1")
    assert run.wait() == 2
    assert "missing: encoder.blocks.0.0.weight" in run.output and "unexpected: encoder.extra" in run.output
