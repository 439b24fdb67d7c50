import json
from pathlib import Path

import torch

from codemae.engine.runlog import RunLog


def line(step: int) -> dict[str, object]:
    return {
        "step": step,
        "epoch": 0,
        "loss": 1.0 / step,
        "okd": 0.5,
        "lr": 0.1,
        "samples_per_second": 8.0,
        "seconds_per_step": 2.0,
    }


def write(folder: Path, first: int, last: int, *, tensorboard: bool = False) -> None:
    log = RunLog(folder, step=first - 1, total_steps=10, tensorboard=tensorboard)
    with log.open():
        for step in range(first, last + 1):
            log.line(line(step))
            log.bad_samples(step, [f"row {step}\nis bad"])
        if tensorboard:
            log.pictures(last, {"optical": torch.full((3, 4, 4), 0.5)})


def test_lines_after_the_step_that_is_resumed_from_are_cut_off(tmp_path):
    write(tmp_path, 1, 6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    write(tmp_path, 4, 5)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [line(step) for step in (1, 2, 3, 4, 5)]
    bad = (tmp_path / "bad_samples.txt").read_text().splitlines()
    assert bad == [f"{step}\trow {step} is bad" for step in (1, 2, 3, 4, 5)]
    assert not list(tmp_path.glob("*.partial"))


def test_a_cut_line_of_the_kept_part_ends_what_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line(1)) + '\n{"st')
    write(tmp_path, 3, 3)
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in lines] == [1, 3]


def test_no_terminal_gets_plain_lines_with_the_time_left(tmp_path, capsys):
    write(tmp_path, 2, 2)
    shown = capsys.readouterr().out
    assert "step 2/10" in shown and "loss 0.5000" in shown and "okd 0.5000" in shown
    assert "8.0 pairs/s" in shown and "eta 0:00:16" in shown


def test_a_terminal_gets_a_bar(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    log = RunLog(tmp_path, step=0, total_steps=10, tensorboard=False)
    with log.open():
        log.advance()
        log.line(line(1))
        log.say("a word [in brackets]")
    shown = capsys.readouterr().out
    assert "1/10" in shown and "8.0 pairs/s" in shown and "a word [in brackets]" in shown


def test_curves_and_pictures_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, 1, 3, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("okd")] == [0.5] * 3
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert events.Images("optical")[0].step == 3
