"""The one pretraining loop; it knows no method by name."""

import torch

from codemae.distributed import gather_objects, world_size
from codemae.engine.interruption import Interrupted, Interruption
from codemae.engine.run import Run
from codemae.engine.sentinel import COLLAPSED_BELOW
from codemae.engine.settings import PretrainConfig
from codemae.engine.step import StepReport

__all__ = ["Diverged", "Interrupted", "PretrainConfig", "TrainingStopped", "pretrain"]

MOST_SKIPPED_IN_ROW = 10
MOST_BAD_SAMPLES = 0.01


class TrainingStopped(RuntimeError):
    """Going on would be no use; the message says why and what to change."""


class Diverged(TrainingStopped):
    """Losses or gradients are no longer finite."""


def pretrain(run: Run) -> None:
    """Trains until the last step, and saves.

    Raises:
        Diverged: Ten steps in a row were not finite.
        TrainingStopped: More than 1% of an epoch could not be read.
        Interrupted: SIGTERM or Ctrl-C came; the run has been saved.
        codemae.checkpoint.CheckpointError: The disk is full; what was saved before is intact.
    """
    with Interruption() as interruption, run.log.open():
        run.log.say(describe(run))
        for micro_batches, waited in run.steps():
            rate = run.rate
            report = run.learner.step(
                micro_batches, run.progress, rate=rate, waited=waited, interruption=interruption
            )
            count_skipped(run, report)
            run.step += 1
            run.window.add(report)
            run.log.advance()
            if report.finite:
                run.method.after_step(run.progress)
            observe(run, rate)
            count_bad_samples(run, report)
            if report.signum or run.save_is_due() or run.step == run.total_steps:
                run.save()
            if report.signum:
                raise Interrupted(report.signum)
        run.save()
        run.log.say(f"done: {run.total_steps} steps; results in {run.folder}")


def count_skipped(run: Run, report: StepReport) -> None:
    """Counts steps without finite loss and gradient.

    Raises:
        Diverged: There were ten in a row; the run is saved as it was before them.
    """
    if report.finite:
        run.skipped_in_row = 0
        return
    if run.skipped_in_row == 0:
        run.remember_streak_start()
    run.skipped_in_row += 1
    shown = {name: round(value, 4) for name, value in report.terms.items()}
    run.log.say(f"step {run.step + 1} skipped: loss terms {shown}, gradient norm {report.grad_norm}")
    if run.skipped_in_row == MOST_SKIPPED_IN_ROW:
        run.save_streak_start()
        raise Diverged(
            f"{MOST_SKIPPED_IN_ROW} steps in a row had a loss or gradient that is not finite. Saved as it "
            f"was before them, at step {run.step}, in {run.folder}. Look at the terms above; a lower "
            "optim.base_lr, optim.clip_grad, or optim.amp bfloat16 or float32, in another --output_dir, help."
        )


def count_bad_samples(run: Run, report: StepReport) -> None:
    """Writes down the samples that had to be replaced.

    Raises:
        TrainingStopped: They are more than 1% of an epoch; the run is saved.
    """
    if (run.step - 1) % run.sampler.steps_per_epoch == 0:
        run.bad_in_epoch = 0
    if not report.bad_samples:
        return
    run.log.bad_samples(
        run.step, [sentence for part in gather_objects(list(report.bad)) for sentence in part]
    )
    run.bad_in_epoch += report.bad_samples
    if run.bad_in_epoch > MOST_BAD_SAMPLES * run.sampler.samples_per_epoch:
        run.save()
        raise TrainingStopped(
            f"{run.bad_in_epoch} images could not be read, more than {MOST_BAD_SAMPLES:.0%} of the "
            f"{run.sampler.samples_per_epoch} samples of an epoch. They are listed in "
            f"{run.folder / 'bad_samples.txt'}; mend them, or leave them out with "
            "`python datasets/prepare.py ... --exclude FILE`."
        )


def observe(run: Run, rate: float) -> None:
    """Logs, probes and draws what is due after this step."""
    log = run.config.log
    values: dict[str, float] = {}
    if run.sentinel is not None and run.is_due(log.sentinel_every):
        values = run.sentinel.measure(run.learner, run.progress)
        for name, value in values.items():
            if name.startswith("effective_rank") and value < COLLAPSED_BELOW:
                run.log.say(f"warning: {name} is {value:.2f}: the features have collapsed")
    if values or run.is_due(log.every) or run.step == run.total_steps:
        epoch = (run.step - 1) // run.sampler.steps_per_epoch
        run.log.line({**run.window.line(run.step, epoch, rate), **values})
        run.window.clear()
    if run.sentinel is not None and log.tensorboard and run.is_due(log.pictures_every):
        run.log.pictures(run.step, run.sentinel.pictures(run.learner))


def describe(run: Run) -> str:
    """What is about to happen, in a few lines."""
    count = sum(p.numel() for p in run.learner.parameters) / 1e6
    sampler, plan, optim = run.sampler, run.plan, run.config.optim
    at_a_time = plan.per_rank * world_size()
    lines = [
        f"{run.config.method.name}: {count:.1f} M trainable parameters on {run.device}, {optim.amp}",
        f"start: {run.start}",
        f"data: {sampler.paired_samples} paired and {sampler.unpaired_samples} unpaired samples; "
        f"{sampler.steps_per_epoch} steps an epoch",
        f"batch: {plan.global_batch} = {plan.per_rank} x {world_size()} processes x {plan.accumulation} "
        "accumulated",
        f"steps: {run.step} of {run.total_steps} done" + (", resuming" if run.step else ""),
        f"torch {torch.__version__}; run folder {run.folder}",
    ]
    if plan.accumulation > 1:
        lines.insert(
            4,
            f"accumulated: any term that compares samples (contrast, correlation) sees {at_a_time} of the "
            f"{plan.global_batch} pairs at a time",
        )
    return "\n".join(lines)
