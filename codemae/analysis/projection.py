"""The embedding in which a run's method compares modalities, where that is not its encoder's own features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from codemae.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What follows the encoder in training, and how its dimensions were trained.

    Attributes:
        projectors: By modality, in eval mode and frozen.
        common_share: Share of the dimensions, the first ones, that training aligned between the modalities
            while it kept the rest apart; None where it did not tell dimensions apart.
    """

    projectors: Mapping[str, nn.Module]
    common_share: float | None = None

    def __call__(self, features: Tensor, modality: str) -> Tensor:
        """Embeddings (B, K) of an encoder's features (B, D)."""
        embedded: Tensor = self.projectors[modality](features)
        return embedded


def projection_of(method: Method) -> Projection | None:
    """The projection of a method with ``projectors`` by modality; None where it has none.

    The split is ``common`` of its config, where its ``objective`` tells common and unique dimensions apart.
    """
    projectors = getattr(method, "projectors", None)
    if not isinstance(projectors, nn.ModuleDict):
        return None
    config: Any = getattr(method, "config", None)
    common = config.common if getattr(config, "objective", None) == "redundancy" else None
    projectors.eval().requires_grad_(False)
    return Projection(
        projectors=dict(projectors.items()), common_share=common if common and common < 1 else None
    )
