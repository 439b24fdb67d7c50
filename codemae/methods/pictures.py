"""Standardised images as pictures for people."""

from torch import Tensor

from codemae.data.batch import Batch


def to_picture(images: Tensor, batch: Batch, modality: str) -> Tensor:
    """Images (b, C, H, W) of the first b samples, standardised by theirs, as (b, 3, H, W) in [0, 1].

    Of more than three channels the first three are shown, of fewer the first.
    """
    mean, std = (values[modality][: len(images), :, None, None] for values in (batch.mean, batch.std))
    unit = images * std.to(images) + mean.to(images)
    shown = unit[:, :3] if unit.shape[1] >= 3 else unit[:, :1].expand(-1, 3, -1, -1)
    return shown.clamp(0, 1)
