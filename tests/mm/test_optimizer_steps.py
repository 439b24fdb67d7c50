import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.config import Config  # noqa: E402
from mmengine.optim import LinearLR, OptimWrapper  # noqa: E402

from codemae.mm import optimizer_steps  # noqa: E402
from codemae.mm.optimizer_steps import OptimizerStepHook, images_a_step  # noqa: E402

pytestmark = pytest.mark.mm


class Run:
    """What the hook sees of a runner."""

    def __init__(self, calls: int) -> None:
        weight = torch.nn.Parameter(torch.ones(1))
        self.optim_wrapper = OptimWrapper(torch.optim.SGD([weight], lr=1.0), accumulative_counts=calls)
        self.param_schedulers = [LinearLR(self.optim_wrapper, start_factor=0.25, by_epoch=False, end=4)]
        self._weight = weight

    def rates(self, iterations: int) -> list[float]:
        """The rate at each step of the optimiser."""
        found = []
        for place in range(iterations):
            rate = self.optim_wrapper.param_groups[0]["lr"]
            self.optim_wrapper.update_params(self._weight.sum())
            if self.optim_wrapper.should_update():
                found.append(rate)
            OptimizerStepHook().after_train_iter(self, place)
        return found


def test_a_warm_up_counts_steps_whatever_number_of_calls_makes_one() -> None:
    # Three steps lead from 1/4 to 1.
    assert Run(1).rates(5) == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert Run(4).rates(20) == pytest.approx([0.25, 0.5, 0.75, 1, 1])


def test_images_of_a_step_over_processes_and_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config({"train_dataloader": {"batch_size": 2}, "optim_wrapper": {"type": "OptimWrapper"}})
    assert images_a_step(config) == 2
    monkeypatch.setattr(optimizer_steps, "get_world_size", lambda: 4)
    assert images_a_step(config) == 8
    config.optim_wrapper.accumulative_counts = 3
    assert images_a_step(config) == 24
