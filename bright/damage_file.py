"""A trained model on disk: weights, and beside them all that is needed to build and feed it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from damage_config import DamageError
from torch import Tensor, nn

from codemae.checkpoint import load_strictly, read_weights, save_weights
from codemae.data.statistics import SourceStatistics, StatisticsError
from codemae.evaluation.card import Protocol, SelectedBy, write_atomically
from codemae.models.damage import DamageHead, DamageModel
from codemae.models.factory import create_encoder

WEIGHTS = "damage.safetensors"
DESCRIPTION = "damage.json"


@dataclass(kw_only=True)
class Description:
    """All of ``damage.json``.

    Attributes:
        arch: Of the encoder.
        arch_kwargs: Its keyword arguments.
        classes: Names, background first.
        pre_modality: Kind of the first date's images.
        post_modality: Kind of the second date's images.
        head: ``damageformer``, ``upernet`` or ``difference``.
        width: Channels inside the head.
        post_localisation: Whether it localises in the second date alone.
        norm_levels: Whether each level of the pyramid is normalised before the head.
        pre: Statistics of the first date's training images.
        post: Statistics of the second date's.
        encoder: What it started from, as the user named it.
        checkpoint_hash: Of that.
        protocol: Which chose the step.
        selected_by: Split that chose the step, in the words of a result card.
        step: Steps done.
        seed: Of head and draws.
        training: Settings a card has to show.
        train_hash: Of the rows trained on.
        split_rule: How rows were chosen, in words.
        removed: Tiles of two lists and the list they were left in.
    """

    arch: str
    arch_kwargs: dict[str, Any]
    classes: list[str]
    pre_modality: str
    post_modality: str
    head: DamageHead
    width: int
    post_localisation: bool
    pre: dict[str, Any]
    post: dict[str, Any]
    encoder: str
    checkpoint_hash: str
    protocol: Protocol
    selected_by: SelectedBy
    step: int
    seed: int
    norm_levels: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    train_hash: str = ""
    split_rule: str = ""
    removed: dict[str, str] = field(default_factory=dict)

    def statistics(self) -> tuple[SourceStatistics, SourceStatistics]:
        """Of both dates, to standardise scenes by."""
        return SourceStatistics.from_dict(self.pre), SourceStatistics.from_dict(self.post)

    def build(self, encoder: nn.Module | None = None) -> DamageModel:
        """The model, with fresh weights where no encoder is given."""
        encoder = create_encoder(self.arch, **self.arch_kwargs) if encoder is None else encoder
        return DamageModel(
            encoder,
            len(self.classes),
            pre_modality=self.pre_modality,
            post_modality=self.post_modality,
            head=self.head,
            width=self.width,
            post_localisation=self.post_localisation,
            norm_levels=self.norm_levels,
            seed=self.seed,
        )


def save_model(folder: Path, state: Mapping[str, Tensor], description: Description) -> None:
    """Writes the weights and then the description; each is replaced whole."""
    save_weights(folder / WEIGHTS, state)
    write_atomically(folder / DESCRIPTION, (json.dumps(asdict(description), indent=1) + "\n").encode())


def load_model(folder: str | Path) -> tuple[DamageModel, Description]:
    """Reads a trained model, in eval mode.

    Raises:
        DamageError: There is none, or its description is not readable.
        WeightsError: Its weights are damaged or do not fit.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise DamageError(
            f"no trained model in {folder} ({DESCRIPTION} is missing); train one with "
            "`python bright/main.py train`, or name its folder with --trained"
        )
    try:
        description = Description(**json.loads(path.read_text()))
        description.statistics()
    except (ValueError, TypeError, StatisticsError) as error:
        raise DamageError(f"{path} is not the description of a trained model: {error}") from None
    model = description.build()
    load_strictly(model, read_weights(Path(folder) / WEIGHTS))
    return model.eval(), description
