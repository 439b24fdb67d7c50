"""CoDe-MAE: masked autoencoding with distillation, conditioned contrast and degraded cross targets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.degradation import (
    KEEPS_COLOUR,
    USES_UNNORMALISED,
    Degradation,
    degraded_patch_dim,
    degraded_patches,
    multi_scale_gradient,
)
from codemae.data.index import Index
from codemae.data.views import View, Views
from codemae.losses.contrastive import symmetric_info_nce
from codemae.losses.distillation import DistillationKind, distillation_loss
from codemae.losses.reconstruction import (
    patchify,
    reconstruction_loss,
    standardise_patches,
    unpatchify,
    unstandardise_patches,
)
from codemae.methods.base import METHODS, Method, Progress, check_channels
from codemae.methods.graph import keep_in_graph
from codemae.methods.pictures import to_picture
from codemae.models.conditioning import ConditionedTokens, ContrastiveProjector, ContrastiveSpace
from codemae.models.decoder import Decoder, DecoderEmbed
from codemae.models.distillation_head import DistillationHead
from codemae.models.factory import EncoderConfig, build_encoder
from codemae.models.hivit import Features, HiViT
from codemae.models.masking import Masking, gather_tokens, random_masking
from codemae.models.teacher import TeacherConfig, build_teacher
from codemae.models.vault import VaultTeacher

PAIR = ("optical", "sar")


@dataclass(kw_only=True)
class CropConfig:
    """Random resized crop and flip; the size is the encoder's ``img_size``."""

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0


@dataclass(kw_only=True)
class DecoderConfig:
    """The decoder and the embedding before it; ``shared`` false gives each modality its own (ablation b).

    The cross decoder of CDR serves both modalities in any case; in the authors' code it is separate too then,
    with embeddings of its own.
    """

    dim: int = 512
    depth: int = 8
    num_heads: int = 16
    shared: bool = True


@dataclass(kw_only=True)
class ReconstructionConfig:
    """L_MAE; like those of the other terms, ``weight`` is 1 in the paper.

    ``sar_target``: ``image`` (paper), ``multilook`` (box mean over ``sar_window`` px, which removes speckle
    no model can predict) or ``mgf`` (multi-scale ratio gradients, SARATR-X).
    """

    weight: float = 1.0
    norm_target: bool = True
    sar_target: Literal["image", "multilook", "mgf"] = "image"
    sar_window: int = 5


@dataclass(kw_only=True)
class OKDConfig:
    """L_OKD.

    ``branches``: ``encoder`` distils the encoder's tokens (paper); ``fused_and_auxiliary`` sums a branch on
    the decoder-embedded tokens and one on the output of attention block ``auxiliary_block`` behind two more
    blocks (official). ``teacher.normalize_output``: LayerNorm without affine on the teacher's tokens
    (official). ``teacher.vault``: folder of cached tokens; the teacher is then neither loaded nor run.
    ``modalities``: whose visible tokens are distilled. The paper: ``[optical]``, SAR profits by sharing the
    encoder. With ``sar`` the teacher also sees SAR images, in gray, and the term is the mean over both.
    """

    enabled: bool = True
    weight: float = 1.0
    loss: DistillationKind = "l1"
    branches: Literal["encoder", "fused_and_auxiliary"] = "encoder"
    modalities: list[str] = field(default_factory=lambda: ["optical"])
    auxiliary_block: int = 18
    auxiliary_depth: int = 2
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig(normalize_output=False))


@dataclass(kw_only=True)
class CCLConfig:
    """L_CCL.

    ``input``: the encoder's tokens (paper) or the decoder-embedded ones (official). ``space``: where the loss
    is taken; the ablations' ``raw``, ``linear``, ``mlp``, or the method's ``cross_attention``, whose form the
    next fields set (paper: one head, no norm, no output projection; official: 16 heads, pre-norm, output
    projection). ``gather_gradient``: gradients into the embeddings gathered from all ranks, with which each
    sample is compared (official: into none of them, the rank's own and the positive included).
    """

    enabled: bool = True
    weight: float = 1.0
    input: Literal["encoder", "decoder_embed"] = "encoder"
    space: ContrastiveSpace = "cross_attention"
    num_heads: int = 1
    pre_norm: bool = False
    output_projection: bool = False
    self_attention: bool = False
    ffn: bool = False
    temperature: float = 0.07
    gather_gradient: bool = True


@dataclass(kw_only=True)
class CDRConfig:
    """L_CDR.

    ``target``: what is left of the other modality to reconstruct. ``computed_from``: the [0, 1] ``image``
    (paper) or the ``standardised`` one (official); HOG and MGF always take the image. ``norm_target``:
    standardise each target patch (official). ``pool_size``: side of the blocks of ``avg_pool`` in pixels. The
    patch's (official) leaves one value a channel, and with ``norm_target`` zeros of a gray patch, of a
    coloured one only how its channels differ.
    """

    enabled: bool = True
    weight: float = 1.0
    target: Degradation = "gray"
    computed_from: Literal["image", "standardised"] = "image"
    norm_target: bool = False
    pool_size: int = 16


@dataclass(kw_only=True)
class CoDeMAEConfig:
    """Everything the method reads; the defaults are the ``paper`` preset.

    ``share_mask``: both images of a sample lose the same patches (paper). With a shared mask the positions of
    the visible tokens alone tell which two embeddings belong together, and a small run can lower CCL by
    spelling out positions instead of content; with masks of their own it cannot.
    ``modality_reduction``: whether L_MAE and L_CDR are the ``sum`` over the two modalities (paper) or their
    ``mean`` (official).
    """

    name: str = "codemae"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    mask_ratio: float = 0.75
    share_mask: bool = True
    modality_reduction: Literal["sum", "mean"] = "sum"
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    okd: OKDConfig = field(default_factory=OKDConfig)
    ccl: CCLConfig = field(default_factory=CCLConfig)
    cdr: CDRConfig = field(default_factory=CDRConfig)


@METHODS.register("codemae")
class CoDeMAE(Method):
    """Conditioned and Degraded Masked Autoencoder.

    Data flow, o optical and s SAR, one encoder call for both:

        images o, s -- same mask --> encoder --> tokens X --> decoder embed --> Z
        Z + mask tokens      --> decoder        --> removed patches of the same modality  (reconstruction)
        X_o (or Z_o)         --> head           --> the teacher's tokens                   (okd)
        X + CA(X, X_other)   --> mean, L2       --> InfoNCE across the batch and ranks     (ccl)
        Z + mask tokens      --> cross decoder  --> removed patches of Deg(other modality) (cdr)

    On unpaired batches the last two are neither computed nor returned. Reads the keys of ``CoDeMAEConfig``.

    Images may have any number of bands. A shared decoder has the outputs of the modality with more; one band
    is reconstructed as three equal ones. OKD's teacher and the cross targets ``rgb``, ``median`` and
    ``avg_pool`` need one band or three, the others take the mean over bands.

    Differs from the authors' code: batches are wholly paired or unpaired over all ranks at a step, so ranks
    with unpaired data add no negatives to CCL; mask and crop belong to the sample and not to the worker; the
    decoder predicts removed patches only; every Linear that no file fills starts from Xavier's uniform
    weights, as in MAE, there from a truncated normal of deviation 0.02; the cross targets ``hog`` and, at
    borders, ``median`` are others (``codemae.data.degradation``). ``paper`` and ``official`` settings are
    configs, not code.

    Reference: Peng et al., "Better with Less: Tackling Heterogeneous Multi-Modal Image Joint Pretraining via
        Conditioned and Degraded Masked Autoencoder", arXiv:2604.16952.
    """

    Config = CoDeMAEConfig

    def __init__(self, config: CoDeMAEConfig) -> None:
        super().__init__()
        self.config = config
        encoder = build_encoder(config.encoder)
        if not isinstance(encoder, HiViT):
            raise ValueError(f"method.encoder.arch {encoder.arch}: CoDe-MAE masks a HiViT; name one")
        self.encoder = encoder
        self._check_bands()
        dim, patch = self.encoder.embed_dim, self.encoder.patch_size
        grid = self.encoder.grid
        self.views = Views(
            {name: View(modality=name, size=config.encoder.img_size, **vars(config.crop)) for name in PAIR},
            num_patches=grid[0] * grid[1] * (1 if config.share_mask else len(PAIR)),
        )

        level_dims = self.encoder.level_dims
        self.decoder_embed: nn.Module = (
            DecoderEmbed(level_dims, config.decoder.dim)
            if config.decoder.shared
            else nn.ModuleDict({name: DecoderEmbed(level_dims, config.decoder.dim) for name in PAIR})
        )

        def decoder(out_dim: int) -> Decoder:
            return Decoder(
                dim=config.decoder.dim,
                depth=config.decoder.depth,
                num_heads=config.decoder.num_heads,
                out_dim=out_dim,
                grid=grid,
                num_levels=len(level_dims),
            )

        self.target_channels = {name: self._target_channels(name) for name in PAIR}
        widths = list(self.target_channels.values())
        self.decoders = nn.ModuleList(
            decoder(width * patch**2) for width in ([max(widths)] if config.decoder.shared else widths)
        )

        self.licence_notes: list[str] = []
        if config.okd.enabled:
            self.teacher = build_teacher(config.okd.teacher)
            self.licence_notes += self.teacher.licence_notes
            self.okd_heads = nn.ModuleDict(self._okd_heads(dim))
        if config.ccl.enabled:
            self.ccl_spaces = nn.ModuleDict({name: self._ccl_space() for name in PAIR})
        if config.cdr.enabled:
            self.cross_decoder = decoder(degraded_patch_dim(config.cdr.target, patch))

    def _check_bands(self) -> None:
        """Refuses settings that cannot be met with the images' number of bands."""
        config, channels = self.config, self.encoder.channels
        for name in PAIR:
            if name not in channels:
                raise ValueError(f"method.encoder.channels names no {name}: it needs {' and '.join(PAIR)}")
            if channels[name] in (1, 3):
                continue
            given = f"and method.encoder.channels.{name} is {channels[name]}"
            if config.okd.enabled and name in config.okd.modalities and not config.okd.teacher.vault:
                raise ValueError(
                    f"the teacher of method.okd sees images of 1 or 3 channels, {given}; take {name} out of "
                    "method.okd.modalities or set method.okd.enabled=false"
                )
            if config.cdr.enabled and config.cdr.target in KEEPS_COLOUR:
                raise ValueError(
                    f"method.cdr.target {config.cdr.target} needs images of 1 or 3 channels, {given}; "
                    "set method.cdr.target to gray, hog or mgf"
                )
        size, pool = config.encoder.img_size, config.cdr.pool_size
        if config.cdr.enabled and config.cdr.target == "avg_pool" and (pool < 1 or size % pool):
            raise ValueError(f"method.cdr.pool_size {pool}: blocks of this side do not tile {size} px")

    def _target_channels(self, name: str) -> int:
        if name == "sar" and self.config.reconstruction.sar_target == "mgf":
            return degraded_patch_dim("mgf", 1)
        count = self.encoder.channels[name]
        return 3 if count == 1 else count

    def _okd_heads(self, dim: int) -> dict[str, nn.Module]:
        okd, width = self.config.okd, self.teacher.dim
        if not okd.modalities or not set(okd.modalities) <= set(PAIR):
            raise ValueError(f"method.okd.modalities {okd.modalities}: name optical, sar or both")
        if okd.branches == "encoder":
            return {"encoder": DistillationHead(dim, width)}
        if not 0 <= okd.auxiliary_block < self.encoder.num_attention_blocks:
            raise ValueError(
                f"method.okd.auxiliary_block {okd.auxiliary_block}: {self.config.encoder.arch} has attention "
                f"blocks 0 to {self.encoder.num_attention_blocks - 1}"
            )
        return {
            "fused": DistillationHead(self.config.decoder.dim, width),
            "auxiliary": DistillationHead(
                dim, width, depth=okd.auxiliary_depth, num_heads=self.encoder.num_heads
            ),
        }

    def _ccl_space(self) -> nn.Module:
        ccl = self.config.ccl
        dim = self.encoder.embed_dim if ccl.input == "encoder" else self.config.decoder.dim
        if ccl.space != "cross_attention":
            return ContrastiveProjector(dim, ccl.space)
        return ConditionedTokens(
            dim,
            num_heads=ccl.num_heads,
            pre_norm=ccl.pre_norm,
            output_projection=ccl.output_projection,
            self_attention=ccl.self_attention,
            ffn=ccl.ffn,
        )

    def encoders(self) -> Mapping[str, nn.Module]:
        """The shared encoder."""
        return {"encoder": self.encoder}

    def check_index(self, index: Index) -> None:
        """Refuses images of other channels than the encoder's, and cached tokens of another index."""
        check_channels(index, {name: self.encoder.channels[name] for name in PAIR})
        if self.config.okd.enabled and isinstance(self.teacher, VaultTeacher):
            self.teacher.check_index(index)

    def training_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Terms ``reconstruction``, ``okd`` and, for paired batches, ``ccl`` and ``cdr``."""
        images = {name: batch.normalised(name) for name in PAIR}
        masking = self.masking(batch)
        features = self.encoder.encode(images, masking.ids_keep, taps=self._taps)
        fused = self.fused_tokens(features)

        losses = {"reconstruction": self._reconstruction(fused, masking, images, batch)}
        if self.config.okd.enabled:
            losses["okd"] = self._okd(features, fused, masking, batch)
        if batch.paired and self.config.ccl.enabled:
            losses["ccl"] = self._ccl(features, fused)
        if batch.paired and self.config.cdr.enabled:
            losses["cdr"] = self._cdr(fused, masking, images, batch)
        losses = {name: getattr(self.config, name).weight * loss for name, loss in losses.items()}
        if not batch.paired:
            losses["reconstruction"] = keep_in_graph(losses["reconstruction"], self._paired_parameters())
        return losses

    def masking(self, batch: Batch) -> Masking:
        """The masks of all optical images, then of all SAR images: 2B rows, equal halves if shared."""
        noise = batch.mask_noise
        if self.config.share_mask:
            return random_masking(torch.cat([noise, noise]), self.config.mask_ratio)
        return random_masking(torch.cat(noise.chunk(len(PAIR), dim=1)), self.config.mask_ratio)

    def fused_tokens(self, features: Features) -> Tensor:
        """Z of both modalities, optical first: (2B, M, decoder width)."""
        levels = self.encoder.level_features(features)
        if not isinstance(self.decoder_embed, nn.ModuleDict):
            fused: Tensor = self.decoder_embed(levels)
            return fused
        halves = zip(*(level.chunk(len(PAIR)) for level in levels), strict=True)
        return torch.cat([self.decoder_embed[name](half) for name, half in zip(PAIR, halves, strict=True)])

    @property
    def _taps(self) -> tuple[int, ...]:
        okd = self.config.okd
        return (okd.auxiliary_block,) if okd.enabled and okd.branches == "fused_and_auxiliary" else ()

    def _paired_parameters(self) -> list[nn.Parameter]:
        modules = [getattr(self, name, None) for name in ("ccl_spaces", "cross_decoder")]
        return [p for module in modules if module is not None for p in module.parameters()]

    def _over_modalities(self, mean_loss: Tensor) -> Tensor:
        return mean_loss * len(PAIR) if self.config.modality_reduction == "sum" else mean_loss

    def _decode(self, fused: Tensor, masking: Masking) -> dict[str, Tensor]:
        """Predicted removed patches of each modality: (B, N - M, P P C)."""
        if len(self.decoders) == 1:
            guesses = self.decoders[0](fused, masking).chunk(2)
        else:
            halves = zip(self.decoders, fused.chunk(2), _halves(masking), strict=True)
            guesses = tuple(decoder(half, mask) for decoder, half, mask in halves)
        return {name: self._own_bands(guess, name) for name, guess in zip(PAIR, guesses, strict=True)}

    def _own_bands(self, guess: Tensor, name: str) -> Tensor:
        """Of a shared decoder's bands the first, as many as the modality has."""
        pixels = guess.unflatten(-1, (self.encoder.patch_size**2, -1))
        return pixels[..., : self.target_channels[name]].flatten(-2)

    def self_targets(self, images: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """What each modality reconstructs of itself, all patches: (B, N, P P C)."""
        config = self.config.reconstruction
        sources = {name: images[name] for name in PAIR}
        if config.sar_target == "multilook":
            sources["sar"] = box_mean(images["sar"], config.sar_window)
        elif config.sar_target == "mgf":
            sources["sar"] = multi_scale_gradient(batch.unit("sar"))
        return {
            name: patchify(
                source.expand(-1, self.target_channels[name], -1, -1).float(), self.encoder.patch_size
            )
            for name, source in sources.items()
        }

    def cross_targets(self, images: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """What each modality reconstructs of the other, all patches: (2B, N, E), SAR's degradation first."""
        cdr = self.config.cdr
        unit = cdr.computed_from == "image" or cdr.target in USES_UNNORMALISED
        source = {name: batch.unit(name) if unit else images[name] for name in PAIR}
        if self.config.reconstruction.sar_target == "multilook":
            source["sar"] = box_mean(source["sar"], self.config.reconstruction.sar_window)
        patch = self.encoder.patch_size
        return torch.cat(
            [degraded_patches(source[name], cdr.target, patch, cdr.pool_size) for name in reversed(PAIR)]
        )

    def _reconstruction(
        self, fused: Tensor, masking: Masking, images: Mapping[str, Tensor], batch: Batch
    ) -> Tensor:
        guesses, targets = self._decode(fused, masking), self.self_targets(images, batch)
        losses = []
        for name, removed in zip(PAIR, masking.ids_removed.chunk(2), strict=True):
            target = gather_tokens(targets[name], removed)
            if self.config.reconstruction.norm_target:
                target = standardise_patches(target)
            losses.append(reconstruction_loss(guesses[name], target))
        return self._over_modalities(torch.stack(losses).mean())

    def _okd(self, features: Features, fused: Tensor, masking: Masking, batch: Batch) -> Tensor:
        terms = [self._okd_of(name, features, fused, masking, batch) for name in self.config.okd.modalities]
        return torch.stack(terms).mean()

    def _okd_of(
        self, modality: str, features: Features, fused: Tensor, masking: Masking, batch: Batch
    ) -> Tensor:
        okd, half = self.config.okd, PAIR.index(modality)
        tokens = self.teacher.tokens(batch, modality, self.encoder.grid)
        teacher = gather_tokens(tokens, masking.ids_keep.chunk(2)[half])
        if okd.branches == "encoder":
            students = [self.okd_heads["encoder"](features.tokens.chunk(2)[half])]
        else:
            students = [
                self.okd_heads["fused"](fused.chunk(2)[half]),
                self.okd_heads["auxiliary"](features.taps[okd.auxiliary_block].chunk(2)[half]),
            ]
        return torch.stack([distillation_loss(student, teacher, okd.loss) for student in students]).sum()

    def _ccl(self, features: Features, fused: Tensor) -> Tensor:
        ccl = self.config.ccl
        optical, sar = (features.tokens if ccl.input == "encoder" else fused).chunk(2)
        to_optical, to_sar = (self.ccl_spaces[name] for name in PAIR)
        if ccl.space == "cross_attention":
            first, second = to_optical(optical, sar).mean(1), to_sar(sar, optical).mean(1)
        else:
            first, second = to_optical(optical.mean(1)), to_sar(sar.mean(1))
        return symmetric_info_nce(first, second, ccl.temperature, gather_gradient=ccl.gather_gradient)

    def _cdr(self, fused: Tensor, masking: Masking, images: Mapping[str, Tensor], batch: Batch) -> Tensor:
        targets = gather_tokens(self.cross_targets(images, batch), masking.ids_removed)
        if self.config.cdr.norm_target:
            targets = standardise_patches(targets)
        return self._over_modalities(reconstruction_loss(self.cross_decoder(fused, masking), targets))

    def probe_features(self, batch: Batch) -> dict[str, Tensor]:
        """Mean tokens of the whole, unmasked images."""
        return {name: self.encoder.pooled(batch.normalised(name), name) for name in PAIR}

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of what the model sees and guesses, each (B, 3, H, W) in [0, 1].

        For each modality m and the other one n: ``m`` the image, ``m_masked`` with removed patches gray,
        ``m_from_m`` the self-reconstruction pasted into the visible patches, and, where the cross target is
        an image, ``n_from_m`` the guessed and ``n_target`` the true degraded other. Predictions of
        standardised patches are shown with the true patch's mean and deviation.
        """
        images = {name: batch.normalised(name) for name in PAIR}
        masking = self.masking(batch)
        fused = self.fused_tokens(self.encoder.encode(images, masking.ids_keep))
        patch, grid = self.encoder.patch_size, self.encoder.grid
        pictures = {}

        guesses, own_targets = self._decode(fused, masking), self.self_targets(images, batch)
        for name, half in zip(PAIR, _halves(masking), strict=True):
            whole, guess = own_targets[name], guesses[name].float()
            if self.config.reconstruction.norm_target:
                guess = unstandardise_patches(guess, gather_tokens(whole, half.ids_removed))
            shown_as_is = name == "sar" and self.config.reconstruction.sar_target == "mgf"
            for key, patches in (
                (name, whole),
                (f"{name}_masked", whole * (1 - half.mask[:, :, None])),
                (f"{name}_from_{name}", _pasted(whole, guess, half)),
            ):
                picture = unpatchify(patches, patch, grid)
                pictures[key] = _stretch(picture) if shown_as_is else to_picture(picture, batch, name)

        if self.config.cdr.enabled and batch.paired and self.config.cdr.target not in USES_UNNORMALISED:
            cross = self.cross_decoder(fused, masking).float()
            targets = self.cross_targets(images, batch)
            if self.config.cdr.norm_target:
                cross = unstandardise_patches(cross, gather_tokens(targets, masking.ids_removed))
            filled = _pasted(targets, cross, masking)
            for source, other, truth, guess in zip(
                PAIR, reversed(PAIR), targets.chunk(2), filled.chunk(2), strict=True
            ):
                for key, patches in ((f"{other}_target", truth), (f"{other}_from_{source}", guess)):
                    picture = unpatchify(patches, patch, grid)
                    if self.config.cdr.computed_from == "image":
                        pictures[key] = picture.expand(-1, 3, -1, -1).clamp(0, 1)
                    else:
                        bands = max(picture.shape[1], batch.mean[other].shape[1])
                        pictures[key] = to_picture(picture.expand(-1, bands, -1, -1), batch, other)
        return pictures

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The first sample's ``reconstruct`` pictures."""
        return {name: images[0] for name, images in self.reconstruct(batch).items()}


def box_mean(images: Tensor, size: int) -> Tensor:
    """Mean over a size x size window, borders counted over the pixels there are: multi-looking an image."""
    return F.avg_pool2d(images, size, stride=1, padding=size // 2, count_include_pad=False)


def _halves(masking: Masking) -> tuple[Masking, Masking]:
    first, second = zip(*(part.chunk(2) for part in masking), strict=True)
    return Masking(*first), Masking(*second)


def _pasted(patches: Tensor, guesses: Tensor, masking: Masking) -> Tensor:
    return patches.scatter(1, masking.ids_removed[:, :, None].expand_as(guesses), guesses)


def _stretch(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp(min=1e-6)
