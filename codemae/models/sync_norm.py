"""Batch norm over the samples of all ranks, on any device."""

import torch
from torch import Tensor, nn

from codemae.distributed import all_reduce_mean, world_size


class GlobalBatchNorm(nn.Module):
    """Takes the place of a batch norm, whose parameters and buffers it keeps under the same keys.

    In training, mean and variance are those of the global batch; ranks hold equally many samples. With one
    process, and in evaluation, it is the batch norm it replaces. Unlike ``torch.nn.SyncBatchNorm`` it works
    on gloo and CPUs, so that two processes can be compared with one.
    """

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.momentum = 0.1 if norm.momentum is None else norm.momentum
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor | None
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) or (B, C, H, W), standardised by channel."""
        tracked = self.running_mean is not None
        if self.num_batches_tracked is not None and self.training:
            self.num_batches_tracked.add_(1)
        if world_size() == 1 or not (self.training or not tracked):
            return nn.functional.batch_norm(
                x,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or not tracked,
                self.momentum,
                self.eps,
            )
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            axes = [axis for axis in range(x.ndim) if axis != 1]
            shape = [1, -1, *[1] * (x.ndim - 2)]
            mean = all_reduce_mean(wide.mean(axes))
            centred = wide - mean.view(shape)
            var = all_reduce_mean(centred.square().mean(axes))
            if self.training and self.running_mean is not None and self.running_var is not None:
                count = x.numel() // x.shape[1] * world_size()
                self.running_mean.lerp_(mean.detach(), self.momentum)
                self.running_var.lerp_(var.detach() * count / (count - 1), self.momentum)
            out = centred * (var + self.eps).rsqrt().view(shape)
            if self.weight is not None:
                out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


def with_global_batch_norm(module: nn.Module) -> nn.Module:
    """The same module with every batch norm in it replaced, in place; keys of its state stay as they are."""
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return GlobalBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, with_global_batch_norm(child))
    return module
