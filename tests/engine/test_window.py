import pytest

from codemae.engine.step import StepReport
from codemae.engine.window import Window


def report(loss: float, samples: int, *, finite: bool = True, **terms: float) -> StepReport:
    return StepReport(
        finite=finite,
        loss=loss,
        terms=terms,
        grad_norm=2 * loss,
        pairs=4,
        bad_samples=1,
        nonfinite_pixels=3,
        samples=samples,
        signum=0,
        waited=0.0,
        bad=[],
    )


def test_terms_are_means_over_the_steps_that_had_them():
    window = Window()
    window.add(report(3.0, 1, okd=1.0, ccl=2.0))
    window.add(report(1.0, 2, okd=1.0))
    window.add(report(float("nan"), 3, finite=False, okd=float("nan")))
    line = window.line(step=3, epoch=0, lr=0.1)
    assert (line["loss"], line["okd"], line["ccl"], line["grad_norm"]) == (2.0, 1.0, 2.0, 4.0)
    assert (line["skipped"], line["bad_samples"], line["nonfinite_pixels"]) == (1, 3, 9)
    assert line["data_wait"] == 0.0 and line["samples_per_second"] > 0


def test_a_window_of_skipped_steps_has_no_loss_and_stays_json():
    window = Window()
    window.add(report(float("nan"), 1, finite=False))
    line = window.line(step=1, epoch=0, lr=0.1)
    assert line["loss"] is None and line["grad_norm"] is None and line["skipped"] == 1


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_window_that_was_saved_and_loaded_midway_writes_the_same_line(cut):
    reports = [report(0.1 * i, 1000 + i, okd=0.1 * i) for i in range(3)]
    whole, first, second = Window(), Window(), Window()
    for r in reports:
        whole.add(r)
    for r in reports[:cut]:
        first.add(r)
    second.load_state_dict(first.state_dict())
    for r in reports[cut:]:
        second.add(r)
    shared = ("loss", "okd", "grad_norm", "skipped", "samples", "bad_samples")
    lines = [w.line(step=3, epoch=0, lr=0.1) for w in (whole, second)]
    assert [lines[0][k] for k in shared] == [lines[1][k] for k in shared]


def test_the_checksum_tells_the_order_of_steps():
    def checksum(*samples: int) -> str:
        window = Window()
        for s in samples:
            window.add(report(1.0, s))
        return window.line(step=2, epoch=0, lr=0.1)["samples"]

    assert checksum(1, 2) != checksum(2, 1)
