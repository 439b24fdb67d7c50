"""Which parameters a backward pass reaches."""

from functools import partial

from torch import Tensor, nn


def reached_parameters(model: nn.Module) -> set[str]:
    """A set that fills with the names of parameters that were given a gradient, a zero one or another.

    Data-parallel training hangs or fails where a trainable parameter is missing from it.
    """
    reached: set[str] = set()

    def note(name: str, _: Tensor) -> None:
        reached.add(name)

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(partial(note, name))
    return reached
