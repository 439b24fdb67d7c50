"""The encoder of a run folder, also where a method leaves one file for each modality."""

from pathlib import Path

from torch import Tensor, nn

from codemae.checkpoint import read_encoder
from codemae.models.factory import load_encoder

ENCODER_FILE = "encoder.safetensors"


class NotInThisEncoder(ValueError):
    """An analysis needs what an encoder lacks: an attention layer, a modality."""


class EncoderPair(nn.Module):
    """One encoder a modality behind the interface of a single one.

    Args:
        encoders: By modality.
    """

    def __init__(self, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        first = next(iter(encoders.values()))
        self.img_size, self.embed_dim = first.img_size, first.embed_dim
        self.inputs = {name: encoder.inputs[name] for name, encoder in encoders.items()}  # type: ignore[index]

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities there is an encoder for."""
        return tuple(self.encoders)

    def of(self, modality: str) -> nn.Module:
        """The encoder of a modality."""
        return self.encoders[modality]

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """Tokens (B, N, D) by the modality's own encoder."""
        tokens: Tensor = self.encoders[modality](images, modality)
        return tokens

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        """Features (B, D) by the modality's own encoder."""
        return self.encoders[modality].pooled(images, modality)  # type: ignore[operator]


def encoder_files(folder: Path) -> dict[str, Path]:
    """The encoder file of each modality in a run folder: one for all, or one for each.

    Raises:
        FileNotFoundError: The folder holds no encoder file.
    """
    whole = folder / ENCODER_FILE
    files = [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no {ENCODER_FILE}; pretrain first, or name an encoder file")
    return {modality: file for file in files for modality in read_encoder(file)[1].inputs}


def load_run_encoder(target: str | Path) -> nn.Module:
    """The encoder of a run folder, or of anything ``load_encoder`` takes.

    Raises:
        FileNotFoundError: The folder holds no encoder file.
    """
    if not Path(target).is_dir():
        return load_encoder(target)
    files = encoder_files(Path(target))
    if len(set(files.values())) == 1:
        return load_encoder(next(iter(files.values())))
    return EncoderPair({modality: load_encoder(file) for modality, file in sorted(files.items())})
