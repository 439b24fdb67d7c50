"""One step of the optimiser, whatever the processes and calls that make it up: its images, its schedules."""

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import ParamSchedulerHook
from mmengine.registry import HOOKS

BATCH_KEY = "images_a_step"
"""Entry of a checkpoint's ``meta``: what ``images_a_step`` was in the run that wrote it."""


def images_a_step(config: Any) -> int:
    """How many images a step learns from: those of a process, times processes, times accumulated calls."""
    calls = config.optim_wrapper.get("accumulative_counts", 1)
    return int(config.train_dataloader.batch_size * get_world_size() * calls)


@HOOKS.register_module()
class OptimizerStepHook(ParamSchedulerHook):
    """Moves schedules that count iterations, a warm-up say, once a step of the optimiser.

    Differs from mmengine's hook: that one moves them at every call, so a warm-up of 500 is over after 125
    steps where four calls accumulate to one.
    """

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves them if this call ended in a step."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
