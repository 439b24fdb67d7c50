"""What a pretraining method is to the engine: a module that turns a batch into named loss terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.index import Index
from codemae.data.views import Views
from codemae.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands; the only clock a method sees.

    Attributes:
        step: Optimizer steps done so far.
        total_steps: Optimizer steps of the whole run.
        epoch: Passes over the data done so far, whole ones.
    """

    step: int
    total_steps: int
    epoch: int

    @property
    def fraction(self) -> float:
        """Part of the run that is done, from 0 to 1."""
        return self.step / max(self.total_steps, 1)


class Method(nn.Module):
    """Base of all pretraining methods.

    A subclass sets ``Config`` (a dataclass whose fields are its YAML keys) and, when constructed,
    ``views`` (which crops of which modality it wants). The engine calls ``training_losses`` under
    autocast inside DDP, sums the terms, steps the optimizer and then calls ``after_step``.
    """

    Config: ClassVar[type]
    views: Views

    def check_index(self, index: Index) -> None:
        """Refuses an index the method cannot be trained on, before any work.

        Raises:
            ValueError: It does not fit; the message says what to do.
        """

    def training_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Named scalar loss terms, already weighted; their sum is the loss."""
        raise TypeError(f"{type(self).__name__} does not define training_losses")

    def forward(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The entry DDP wraps; the same as ``training_losses``."""
        return self.training_losses(batch, progress)

    def after_step(self, progress: Progress) -> None:
        """Runs after each optimizer step: EMA teachers, queues, centres."""

    def encoders(self) -> Mapping[str, nn.Module]:
        """The encoders to export, by file stem ("encoder" when there is one)."""
        raise TypeError(f"{type(self).__name__} does not define encoders")

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Named (3, H, W) pictures in [0, 1] for TensorBoard; none by default."""
        return {}

    def probe_features(self, batch: Batch) -> dict[str, Tensor]:
        """Pooled features (B, D) by modality, for the collapse sentinel; none by default."""
        return {}


def check_channels(index: Index, channels: Mapping[str, int]) -> None:
    """Refuses an index with images of other channels than an encoder takes; gray ones always fit.

    Args:
        index: What is to be trained on.
        channels: Input channels of each modality.

    Raises:
        ValueError: A source does not fit; the message says what to set.
    """
    for name, taken in channels.items():
        for source in index.source_counts(name):
            given = index.stats(source, name).channels
            if given not in (1, taken):
                raise ValueError(
                    f"{name} images of {source!r} have {given} channels, the encoder takes {taken}; "
                    f"set --method.encoder.channels.{name} {given}"
                )


class MethodRegistry(Registry[Any]):
    """The methods, with the config dataclass of each."""

    def config(self, name: str) -> type:
        """The ``Config`` dataclass of the method of this name."""
        return self.get(name).Config


METHODS = MethodRegistry("method")
