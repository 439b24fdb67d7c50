from collections.abc import Callable

import pytest
import torch

from codemae.data.batch import Batch


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """A batch of random uint8 images, 64 px, with statistics that differ by sample."""

    def build(count: int = 2, *, paired: bool = True, seed: int = 0, size: int = 64) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        channels = {"optical": 3, "sar": 1}
        return Batch(
            images={
                name: (uniform(count, c, size, size) * 256).to(torch.uint8) for name, c in channels.items()
            },
            mean={name: 0.3 + 0.2 * uniform(count, c) for name, c in channels.items()},
            std={name: 0.2 + 0.2 * uniform(count, c) for name, c in channels.items()},
            paired=paired,
            rows={name: torch.arange(count) for name in channels},
            epoch=0,
            mask_noise=uniform(count, (size // 16) ** 2),
            crops={name: torch.tensor([[0.0, 0.0, size, size, 0.0]]).repeat(count, 1) for name in channels},
            source_sizes={name: torch.full((count, 2), float(size)) for name in channels},
        )

    return build
