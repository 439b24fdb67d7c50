"""What every encoder of this library is to the rest of it, and the registry of them all."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from codemae import checkpoint
from codemae.checkpoint import EncoderMetadata, InputSpec, WeightsError
from codemae.models.embeddings import ChannelRule
from codemae.registry import Registry


class Encoder(nn.Module):
    """Base of all registered encoders.

    A subclass sets the attributes in its constructor and defines ``forward``; what it cannot do (a pyramid,
    depths) it leaves undefined. ``create_encoder`` sets ``arch`` and ``arch_kwargs``.

    Attributes:
        arch: Registered name.
        arch_kwargs: What ``create_encoder`` needs beside the name to build the same modules again.
        img_size: Side of the images it is trained on.
        embed_dim: Width D of its tokens.
        patch_size: Stride of its tokens in pixels.
        channels: Input channels of each modality it knows.
        inputs: The encoder file's input contract by modality.
        metadata: All of the encoder file's header.
        fuses: Whether modalities given together, to ``pooled_together`` and ``pyramid_together``, see each
            other.
        checkpoint_activations: Whether ``run_block`` saves memory in training.
    """

    arch: str
    arch_kwargs: dict[str, Any]
    img_size: int
    embed_dim: int
    patch_size: int
    channels: dict[str, int]
    inputs: dict[str, InputSpec]
    metadata: EncoderMetadata
    fuses: bool = False
    checkpoint_activations: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities this encoder takes images of."""
        return tuple(self.channels)

    def check_modality(self, modality: str) -> None:
        """Refuses a modality this encoder was not made for.

        Raises:
            KeyError: It is not among ``modalities``.
        """
        if modality not in self.channels:
            raise KeyError(f"this encoder knows {', '.join(self.modalities)}, not {modality!r}")

    def run_block(self, block: nn.Module, *inputs: Any) -> Tensor:
        """The block's output, recomputed in the backward pass where that is asked for."""
        if self.checkpoint_activations and self.training:
            return recomputed(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """All tokens of the images: (B, C, H, W) -> (B, N, D)."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        """Mean over the tokens: (B, C, H, W) -> (B, D)."""
        return self(images, modality).mean(dim=1)

    def pooled_together(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features (B, D) of each modality of the same ground; here each sees itself alone.

        An encoder that fuses modalities answers with features that have seen each other.
        """
        return {modality: self.pooled(image, modality) for modality, image in images.items()}

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        raise TypeError(f"{self.arch} has no feature maps at strides 4, 8, 16 and 32")

    def pyramid(self, images: Tensor, modality: str) -> list[Tensor]:
        """Feature maps at strides 4, 8, 16 and 32: (B, D_level, H/s, W/s)."""
        raise TypeError(f"{self.arch} has no feature maps at strides 4, 8, 16 and 32")

    def pyramid_together(self, images: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """``pyramid`` of each modality of the same ground; here each sees itself alone."""
        return {modality: self.pyramid(image, modality) for modality, image in images.items()}

    @property
    def stem_dim(self) -> int:
        """Width of the stem's output, to which ``encode_filled`` adds the mask token."""
        raise TypeError(f"{self.arch} has no encode_filled")

    def encode_filled(
        self,
        images: Mapping[str, Tensor],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """The last feature maps of whole images in which removed blocks were filled, in one run.

        Args:
            images: Modality -> (B, C, H, W), all of one size; see ``codemae.models.filling``.
            mask: (sum of B, 1, rows, columns) over all modalities in the mapping's order, 1 = removed, in
                equal blocks of the image.
            mask_token: (stem_dim,), added to the stem's output wherever the image was removed.

        Returns:
            (sum of B, D, H / s, W / s) with s = ``patch_size``.
        """
        raise TypeError(f"{self.arch} has no encode_filled")

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter for layer-wise decay; 0 is nearest to the image."""
        raise TypeError(f"{self.arch} does not number its layers")

    def read_initial(self, path_or_name: str) -> dict[str, Tensor]:
        """Weights to start a run from: here of an encoder file of the same architecture.

        A subclass that also reads files of others renames their keys here.

        Raises:
            WeightsError: The file is of another architecture, damaged or unsafe.
        """
        state, metadata = checkpoint.read_encoder(path_or_name)
        if metadata.arch != self.arch:
            raise WeightsError(f"{path_or_name} is a {metadata.arch}; method.encoder.arch is {self.arch}")
        return state

    def fit_state(self, state: Mapping[str, Tensor], rule: ChannelRule = "cycle") -> dict[str, Tensor]:
        """Fits weights of the same architecture to this encoder's image size and channels; here unchanged."""
        return dict(state)


ENCODERS: Registry[Callable[..., Encoder]] = Registry("encoder")
