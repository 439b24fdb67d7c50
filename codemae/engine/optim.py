"""Optimizers by name."""

from typing import Any

import torch
from timm.optim import Adan, Lars, param_groups_weight_decay
from torch import nn

from codemae.engine.settings import OptimConfig


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimizer over all trainable parameters; those of one dimension have no weight decay.

    LARS adapts the rate of weights layer by layer, to 0.001 |w| / (|g| + weight_decay |w|), as You et al.
    write it (DeCUR's code divides by |g + weight_decay w|), and leaves parameters of one dimension to plain
    SGD with momentum, as Barlow Twins, BYOL and DeCUR do.
    """
    # Sorted out by a decay of 1, since without any decay timm would put all in one group.
    groups = param_groups_weight_decay(module, 1.0)
    for group in groups:
        bare = group["weight_decay"] == 0
        group["weight_decay"] *= config.weight_decay
        if bare:
            group["lr_scale"] = config.bias_lr_scale
        if config.name == "lars":
            group["always_adapt"] = not bare
    if config.name == "lars":
        return Lars(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    betas: Any = tuple(config.betas)
    if config.name == "adan":
        return Adan(groups, lr=0.0, betas=betas, weight_decay=config.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, weight_decay=config.weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of all groups, times a group's own ``lr_scale`` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
