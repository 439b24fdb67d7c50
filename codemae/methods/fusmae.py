"""Fus-MAE: masked autoencoding of SAR-optical pairs that are fused by cross-attention, early and late."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.index import Index
from codemae.data.views import View, Views
from codemae.losses.reconstruction import (
    patchify,
    reconstruction_loss,
    standardise_patches,
    unpatchify,
    unstandardise_patches,
)
from codemae.methods.base import METHODS, Method, Progress, check_channels
from codemae.methods.codemae import PAIR, CropConfig, box_mean
from codemae.methods.graph import keep_in_graph
from codemae.methods.pictures import to_picture
from codemae.models.cross_fusion import CrossAttended, CrossAttentionConfig, FusionConfig, XAttnDecoder
from codemae.models.factory import EncoderConfig, build_encoder
from codemae.models.fusion_decoder import LatentDecoder, QueryDecoder
from codemae.models.fusion_hivit import FusionHiViT
from codemae.models.fusion_vit import FusionViT
from codemae.models.masking import Masking, gather_tokens, random_masking


@dataclass(kw_only=True)
class FusingEncoderConfig(EncoderConfig):
    """An encoder in which modalities meet: ``fusmae_vit_*``, or any ``hivit_*``."""

    arch: str = "fusmae_vit_base"
    fusion: FusionConfig = field(default_factory=FusionConfig)


@dataclass(kw_only=True)
class FusMAEDecoderConfig:
    """One decoder for each modality.

    ``fusion``: where its ``XAttnDecoder`` stands. ``latents``: on the encoder's last tokens, before the
    decoder (paper, Eq. 10 and 11). ``queries``: inside the decoder, at its width, where visible and mask
    tokens ask the tokens of both modalities (MultiMAE). ``none``: nowhere. ``dim``, ``depth`` and
    ``num_heads``, which the paper does not give, are MultiMAE's.
    """

    dim: int = 256
    depth: int = 2
    num_heads: int = 8
    fusion: Literal["latents", "queries", "none"] = "latents"
    attention: CrossAttentionConfig = field(default_factory=CrossAttentionConfig)


@dataclass(kw_only=True)
class TargetConfig:
    """What is reconstructed.

    ``norm_target``: standardise each target patch (not in the paper). ``sar_target``: the ``image`` (paper),
    or ``multilook``, its box mean over ``sar_window`` px, which removes speckle no model can predict.
    """

    norm_target: bool = False
    sar_target: Literal["image", "multilook"] = "image"
    sar_window: int = 5


@dataclass(kw_only=True)
class WholeImageConfig(CropConfig):
    """The whole image, unflipped: the paper calls augmentation needless."""

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    horizontal_flip: float = 0.0


def _paper_encoder() -> FusingEncoderConfig:
    return FusingEncoderConfig(channels={"optical": 12, "sar": 2})


@dataclass(kw_only=True)
class FusMAEConfig:
    """Everything the method reads; the defaults are the ``paper`` preset.

    ``masking``: ``independent``, each image of a pair loses its own ``mask_ratio`` of patches, or
    ``consistent``, both lose the same ones. The paper studies both and does not say which its tables show.
    """

    name: str = "fusmae"
    encoder: FusingEncoderConfig = field(default_factory=_paper_encoder)
    crop: WholeImageConfig = field(default_factory=WholeImageConfig)
    masking: Literal["independent", "consistent"] = "independent"
    mask_ratio: float = 0.75
    decoder: FusMAEDecoderConfig = field(default_factory=FusMAEDecoderConfig)
    target: TargetConfig = field(default_factory=TargetConfig)


@METHODS.register("fusmae")
class FusMAE(Method):
    """Fus-MAE, with early fusion ("XAE&D", the default) or without ("XAD", ``encoder.fusion.early: false``).

        images o, s -- masks --> projections --> XAttnEncoder --> blocks over both --> latents z_o, z_s
        XAttnDecoder_o(z_o, z_s), mask tokens --> decoder_o --> removed patches of o (reconstruction_optical)
        XAttnDecoder_s(z_s, z_o), mask tokens --> decoder_s --> removed patches of s (reconstruction_sar)

    Each term is the mean squared error on its removed patches; both weigh 1, as in MultiMAE.

    Encoders: ``fusmae_vit_*`` is the paper's. With ``hivit_*``, for comparisons at equal encoder, the stem of
    the HiViT takes the place of the patch projection and ``XAttnEncoder`` that of the first attention block;
    all equations hold, but no global token is appended. With a pyramid, ``XAttnDecoder`` conditions the last
    tokens and the pyramid is built on these; at use time it stands on tokens no decoder has conditioned.

    Unpaired batches, which the paper does not know: each image is encoded and decoded by itself, without
    cross-attention in the decoder and with what ``encoder.fusion.alone`` says in the encoder. An index
    without any pair is refused. The paper's recipes take ``data.samples: paired``.

    Differs from the authors' code: it was not to be had, so this follows the paper, and decides what the
    paper leaves open as the docstrings of ``FusionConfig``, ``FusionViT``, ``FusMAEConfig`` and
    ``FusMAEDecoderConfig`` say. The two directions of ``XAttnEncoder`` share their weights, for Eq. 2 writes
    one CA; the two decoders do not. "Uniformly across modalities" is read as the same share of each. There
    are two presets: ``paper``, its equations to the letter but for a norm before each decoder's first Linear,
    which stands before Eq. 9 and which no equation has, and ``multimae``, what the code of MultiMAE, on
    which the paper builds, does where the two part: pre-norm, heads and output projections in
    cross-attention, which moves into the decoder, and random crops with flips. Random draws belong to the
    sample and not to the worker.

    Reference: Chan-To-Hing and Veeravalli, "Fus-MAE: A Cross-Attention-Based Data Fusion Approach for Masked
        Autoencoders in Remote Sensing", IGARSS 2024.
    """

    Config = FusMAEConfig

    def __init__(self, config: FusMAEConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config.encoder)
        if not isinstance(encoder, FusionViT | FusionHiViT):
            raise ValueError(
                f"method.encoder.arch {config.encoder.arch}: Fus-MAE needs tokens of two modalities to meet "
                "inside the encoder; name a fusmae_vit_* or a hivit_*"
            )
        if missing := set(PAIR) - set(encoder.channels):
            raise ValueError(f"method.encoder.channels lacks {', '.join(missing)}; Fus-MAE needs both")
        self.encoder = encoder
        grid = encoder.grid
        self.views = Views(
            {name: View(modality=name, size=config.encoder.img_size, **vars(config.crop)) for name in PAIR},
            num_patches=grid[0] * grid[1] * (1 if config.masking == "consistent" else len(PAIR)),
        )
        self.decoders = nn.ModuleDict({name: self._decoder(name) for name in PAIR})
        if config.decoder.fusion == "latents":
            self.xattn = nn.ModuleDict(
                {name: XAttnDecoder(encoder.embed_dim, config.decoder.attention) for name in PAIR}
            )

    def _decoder(self, name: str) -> LatentDecoder:
        config, encoder = self.config.decoder, self.encoder
        sizes: dict[str, Any] = {
            "level_dims": encoder.level_dims,
            "dim": config.dim,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "out_dim": encoder.channels[name] * encoder.patch_size**2,
            "grid": encoder.grid,
        }
        if config.fusion == "queries":
            return QueryDecoder(config.attention, **sizes)
        return LatentDecoder(**sizes)

    def encoders(self) -> Mapping[str, nn.Module]:
        """The one encoder, which answers optical, SAR and both."""
        return {"encoder": self.encoder}

    def check_index(self, index: Index) -> None:
        """Refuses an index without pairs, or with other channels than the encoder takes.

        Raises:
            ValueError: It does not fit; the message says what to do.
        """
        if not len(index.paired_rows):
            raise ValueError(
                f"{', '.join(index.folders)}: Fus-MAE learns by fusing the two images of a pair and no "
                "row has both; prepare pairs with `python datasets/prepare.py pairs`, or train another method"
            )
        check_channels(index, {name: self.encoder.channels[name] for name in PAIR})

    def training_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Terms ``reconstruction_optical`` and ``reconstruction_sar``."""
        images = {name: batch.normalised(name) for name in PAIR}
        maskings = self.maskings(batch)
        predictions = self._predictions(images, maskings, batch.paired)
        losses = {}
        for name, targets in self.targets(images).items():
            removed = gather_tokens(targets, maskings[name].ids_removed)
            if self.config.target.norm_target:
                removed = standardise_patches(removed)
            losses[f"reconstruction_{name}"] = reconstruction_loss(predictions[name], removed)
        if not batch.paired:
            name = f"reconstruction_{PAIR[0]}"
            losses[name] = keep_in_graph(losses[name], self._paired_parameters())
        return losses

    def maskings(self, batch: Batch) -> dict[str, Masking]:
        """Each modality's mask; the same one where masking is consistent."""
        noise = batch.mask_noise
        consistent = self.config.masking == "consistent"
        parts = [noise, noise] if consistent else noise.chunk(len(PAIR), dim=1)
        masks = [random_masking(part, self.config.mask_ratio) for part in parts]
        return dict(zip(PAIR, masks, strict=True))

    def targets(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All patches of what each modality reconstructs: (B, N, C P P)."""
        config, found = self.config.target, {}
        for name, image in images.items():
            image = image.float()
            if name == "sar" and config.sar_target == "multilook":
                image = box_mean(image, config.sar_window)
            image = image.expand(-1, self.encoder.channels[name], -1, -1)
            found[name] = patchify(image, self.encoder.patch_size)
        return found

    def _predictions(
        self, images: Mapping[str, Tensor], maskings: Mapping[str, Masking], paired: bool
    ) -> dict[str, Tensor]:
        """The removed patches of each modality as its decoder guesses them: (B, N - M, C P P)."""
        keep = {name: masking.ids_keep for name, masking in maskings.items()}
        if paired:
            features: Any = self.encoder.encode(images, torch.cat(list(keep.values())))
        else:
            features = _stacked([self.encoder.encode({name: images[name]}, keep[name]) for name in PAIR])
        if self.config.decoder.fusion == "latents":
            features = replace(features, tokens=self._exchanged(features.tokens, paired))
        halves = zip(*(level.chunk(2) for level in self.encoder.level_features(features)), strict=True)
        levels = dict(zip(PAIR, halves, strict=True))
        predictions = {}
        for name, other in zip(PAIR, reversed(PAIR), strict=True):
            context = (levels[other], keep[other]) if paired else (None, None)
            predictions[name] = self.decoders[name](levels[name], maskings[name], *context)
        return predictions

    def _exchanged(self, tokens: Tensor, paired: bool) -> Tensor:
        """Each modality's latents conditioned on the other's: (2B, M, D), optical first."""
        optical, sar = tokens.chunk(2)
        return torch.cat(
            [
                self.xattn["optical"](optical, sar if paired else None),
                self.xattn["sar"](sar, optical if paired else None),
            ]
        )

    def _paired_parameters(self) -> list[nn.Parameter]:
        """What a step without pairs may leave out: cross-attention, and embeddings of the other modality."""
        parameters = []
        for module in self.modules():
            if isinstance(module, CrossAttended):
                parameters += list(module.cross.parameters())
            if isinstance(module, QueryDecoder):
                parameters.append(module.other_embedding)
        return parameters

    def probe_features(self, batch: Batch) -> dict[str, Tensor]:
        """Mean tokens of the whole images, each modality seen by itself as most users will use it."""
        return {name: self.encoder.pooled(batch.normalised(name), name) for name in PAIR}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of what the model sees and guesses, each (B, 3, H, W) in [0, 1].

        For each modality m: ``m`` the target, ``m_masked`` with removed patches gray, ``m_from_m`` with the
        guesses in their place, which have seen both modalities. Of more than three channels the first three
        are shown, of two the first. Guesses of standardised patches have the true patch's mean and deviation.
        """
        images = {name: batch.normalised(name) for name in PAIR}
        maskings = self.maskings(batch)
        predictions = self._predictions(images, maskings, batch.paired)
        pictures = {}
        for name, whole in self.targets(images).items():
            ids, guessed = maskings[name].ids_removed, predictions[name].float()
            if self.config.target.norm_target:
                guessed = unstandardise_patches(guessed, gather_tokens(whole, ids))
            filled = whole.scatter(1, ids[:, :, None].expand_as(guessed), guessed)
            masked = whole * (1 - maskings[name].mask[:, :, None])
            for key, patches in ((name, whole), (f"{name}_masked", masked), (f"{name}_from_{name}", filled)):
                image = unpatchify(patches, self.encoder.patch_size, self.encoder.grid)
                pictures[key] = to_picture(image, batch, name)
        return pictures

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first sample's ``reconstruct`` pictures."""
        return {name: images[0] for name, images in self.reconstruct(batch).items()}


def _stacked(parts: list[Any]) -> Any:
    """Features of several encoder calls, one after the other along the batch."""
    tensors = {
        entry.name: torch.cat([getattr(part, entry.name) for part in parts])
        for entry in fields(parts[0])
        if isinstance(getattr(parts[0], entry.name), Tensor)
    }
    return replace(parts[0], **tensors)
