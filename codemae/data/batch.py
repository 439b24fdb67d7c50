"""What a method receives at each step."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from codemae.data.views import Views


@dataclass(kw_only=True)
class Batch:
    """One step's images and everything that says where they came from.

    Attributes:
        images: View name to (B, C, H, W), uint8 (divided by 255 it is in [0, 1]) or float32 in [0, 1].
        mean: Modality to (B, C): each sample's own source's mean on [0, 1].
        std: Modality to (B, C), likewise.
        paired: Whether row i of all views shows the same ground; a batch is wholly paired or wholly not.
        rows: Modality to (B,) int64 index rows.
        epoch: The epoch the batch belongs to.
        mask_noise: (B, N) float32 in [0, 1), a function of (seed, epoch, repeat, optical row).
        crops: View name to (B, 5) float32: top, left, height, width in source pixels, and flips: bit 0
            horizontal, bit 1 vertical.
        source_sizes: View name to (B, 2) float32: height and width of the image (or window) cropped from.
        bad: Sentences about samples that could not be read and were replaced.
        nonfinite: How many NaN or infinite values the images hold.
        modalities: View name to modality.
    """

    images: dict[str, Tensor]
    mean: dict[str, Tensor]
    std: dict[str, Tensor]
    paired: bool
    rows: dict[str, Tensor]
    epoch: int
    mask_noise: Tensor
    crops: dict[str, Tensor]
    source_sizes: dict[str, Tensor]
    bad: list[str] = field(default_factory=list)
    nonfinite: int = 0
    modalities: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.modalities:
            self.modalities = {name: name for name in self.images}

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))

    @classmethod
    def modalities_of(cls, views: Views) -> dict[str, str]:
        """View name to modality, as ``modalities`` wants it."""
        return {name: view.modality for name, view in views.items()}

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch with its tensors on a device."""

        def moved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()}

        return replace(
            self,
            images=moved(self.images),
            mean=moved(self.mean),
            std=moved(self.std),
            rows=moved(self.rows),
            mask_noise=self.mask_noise.to(device, non_blocking=non_blocking),
            crops=moved(self.crops),
            source_sizes=moved(self.source_sizes),
        )

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, as the loader's pinning thread asks."""

        def pinned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}

        return replace(
            self,
            images=pinned(self.images),
            mean=pinned(self.mean),
            std=pinned(self.std),
            rows=pinned(self.rows),
            mask_noise=self.mask_noise.pin_memory(),
            crops=pinned(self.crops),
            source_sizes=pinned(self.source_sizes),
        )

    def unit(self, view: str) -> Tensor:
        """One view as float32 (B, C, H, W) in [0, 1]; NaN and infinities become 0."""
        images = self.images[view]
        if images.dtype == torch.uint8:
            return images.float() / 255
        return images.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def normalised(self, view: str) -> Tensor:
        """One view standardised by each sample's own statistics; NaN and infinities become 0."""
        images = self.images[view]
        unit = images.float() / 255 if images.dtype == torch.uint8 else images
        modality = self.modalities[view]
        mean = self.mean[modality][:, :, None, None]
        std = self.std[modality][:, :, None, None]
        return ((unit - mean) / std).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
