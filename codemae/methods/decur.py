"""DeCUR and the cross-modal methods of its tables: two encoders trained by what their embeddings share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.index import Index
from codemae.data.photometric import NUM_DRAWS, PhotometricConfig, augmented_view
from codemae.data.views import View, Views
from codemae.losses.contrastive import nt_xent, symmetric_info_nce
from codemae.losses.redundancy import cross_correlation, redundancy_loss, vicreg_terms
from codemae.methods.base import METHODS, Method, Progress, check_channels
from codemae.methods.codemae import PAIR, CropConfig
from codemae.models.encoder import Encoder
from codemae.models.factory import EncoderConfig, build_encoder, takes
from codemae.models.projection import projector
from codemae.models.sync_norm import with_global_batch_norm

Objective = Literal["redundancy", "vicreg", "nt_xent", "info_nce"]
COLDEST = 0.01
"""Least learned temperature: CLIP keeps the factor on the similarities at or below 100."""


def _optical_photometric() -> PhotometricConfig:
    return PhotometricConfig(brightness=0.4, contrast=0.4, grayscale=0.2, blur=0.5, solarize=0.2)


def _sar_photometric() -> PhotometricConfig:
    return PhotometricConfig(grayscale=0.2, blur=0.5)


@dataclass(kw_only=True)
class AugmentConfig:
    """What happens to the crops of each modality; each crop draws its own numbers.

    ``shared_crop``: whether the first optical and the first SAR view show the same rectangle; in the paper
    each view is cropped for itself. ``sar_crop``: crops and flips of the second modality where they follow a
    rule of their own, as those of an HHA-coded depth image; otherwise ``crop`` serves both.
    """

    optical: PhotometricConfig = field(default_factory=_optical_photometric)
    sar: PhotometricConfig = field(default_factory=_sar_photometric)
    shared_crop: bool = False
    sar_crop: CropConfig | None = None


@dataclass(kw_only=True)
class ProjectorConfig:
    """The MLP after an encoder: Linear, batch norm and ReLU but for the last Linear; no biases.

    ``dims``: widths after the encoder's; empty takes the loss on the encoder's own embedding. ``shared``: one
    for both modalities (official, by mistake), which needs encoders of one width.
    """

    dims: list[int] = field(default_factory=lambda: [8192, 8192, 8192])
    shared: bool = False


@dataclass(kw_only=True)
class VICRegConfig:
    """Weights of VICReg's terms, as its paper has them."""

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0


@dataclass(kw_only=True)
class ContrastConfig:
    """Temperature of the contrastive objectives.

    ``learn``: its logarithm is trained from there, as CLIP does, and kept at or above that of 0.01 after each
    step.
    """

    temperature: float = 0.07
    learn: bool = False


@dataclass(kw_only=True)
class DeCURConfig:
    """Everything the method reads; the defaults are the paper's for SAR and optical images.

    ``encoder``: both encoders' settings; each gets its own modality's ``channels``, and no pyramid, which
    nothing here would train. A digital elevation model or an HHA-coded depth image takes the place of SAR.
    ``objective``: what compares the modalities; ``redundancy`` is DeCUR, and Barlow Twins with ``common`` 1
    and no ``intra``; ``vicreg``, ``nt_xent`` (SimCLR-cross) and ``info_nce`` (CLIP) are the other rows.
    ``intra``: whether two views of one modality are compared, by their correlation; without, a modality has
    one view. ``common``: share of the dimensions that both modalities have in common, the first ones (0.875
    SAR and optical, 0.75 elevation and depth). ``off_diagonal``: lambda of all correlation losses.
    ``reduction``: the loss is the ``sum`` of its four terms (paper), or, ``official``, (intra_optical +
    intra_sar + (common + unique) / 2) / 3. ``gather_gradient``: gradients through sums over ranks
    (official: none); in the contrastive objectives, off makes the keys of all ranks constants.
    ``share_attention``: both encoders use the same deformable attention (official, by mistake).
    ``sync_batch_norm``: batch norms see the samples of all ranks.
    """

    name: str = "decur"
    encoder: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(arch="resnet50_rda", channels={"optical": 13, "sar": 2})
    )
    crop: CropConfig = field(default_factory=lambda: CropConfig(vertical_flip=0.5))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    objective: Objective = "redundancy"
    intra: bool = True
    common: float = 0.875
    off_diagonal: float = 0.0051
    reduction: Literal["sum", "official"] = "sum"
    gather_gradient: bool = True
    vicreg: VICRegConfig = field(default_factory=VICRegConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    share_attention: bool = False
    sync_batch_norm: bool = True


@METHODS.register("decur")
class DeCUR(Method):
    """Decoupling Common and Unique Representations.

    Data flow, for each modality m with its own encoder and projector:

        m_1, m_2 -- crop, flip, photometric --> encoder --> mean over tokens --> projector --> Z'_m, Z''_m
        C(Z'_m, Z''_m)             --> identity     (intra_optical, intra_sar)
        C(Z'_o, Z'_s) common dims  --> identity     (common)
        C(Z'_o, Z'_s) unique dims  --> zero         (unique)

    The other objectives return ``vicreg`` or ``contrast`` instead of the last two. On unpaired batches only
    the intra-modal terms are computed. Reads the keys of ``DeCURConfig``; writes an encoder file a modality.

    Every view is cropped and flipped for itself, in the paper and the authors' code too: the optical and the
    SAR view of a pair show different parts of its ground, unless ``augment.shared_crop``.

    Differs from the authors' code, where fields do not say so. Encoders start from fresh weights unless
    ``encoder.init`` names a file; there DeCUR's start from ImageNet (torchvision's ResNet-50, timm's
    vit_small_patch16_224), but for a first convolution of 13 or 2 bands, which starts at random, where ours
    is fitted from the file's. Correlations are divided by the real number of samples, there by four times the
    batch of a process. LARS is used where a config names it, there AdamW always; their AdamW also decays
    biases and norms, ours never does. Their cosine moves once an epoch, ours at every step. Views are two
    crops of one image, there of two seasons' images, which our index does not have, and are standardised by
    their source's statistics, there on SSL4EO-S12 and GeoNRW left in [0, 1]. Correlations are computed in
    float32, there under autocast in half precision. No class token in ViT. MiT, the encoder of the paper's
    best RGB-depth rows, is not offered. The
    deformable attention of each modality is trained.

    The other rows differ too. Barlow Twins, VICReg, SimCLR and CLIP start their ResNet-50 from random weights
    there, their ViT from ImageNet. Barlow Twins and VICReg have one projector for both modalities there, by
    the mistake of ``projector.shared``. VICReg: covariances are gathered over processes there but divided by
    the batch of one less 1, here by the real N - 1; its weights are options that are not declared. SimCLR and
    CLIP: their projector has two layers, 2048-512-128, with biases and a batch norm at the end, in the
    configs here three, 2048-2048-2048-128, with neither; their temperature is 1.0 and fixed, here 0.1 and
    fixed for SimCLR, 0.07 and learned for CLIP. CLIP: the first modality has to find the second there, here
    each the other.

    Reference: Wang et al., "Decoupling Common and Unique Representations for Multimodal Self-supervised
        Learning", ECCV 2024, arXiv:2309.05300.
    """

    Config = DeCURConfig

    def __init__(self, config: DeCURConfig) -> None:
        super().__init__()
        self.config = config
        if not 0 <= config.common <= 1:
            raise ValueError(f"method.common is a share of the dimensions, 0 to 1, got {config.common}")
        if config.intra and config.objective != "redundancy":
            raise ValueError(
                f"method.objective {config.objective} compares modalities only; set method.intra=false"
            )
        if config.contrast.learn and config.objective not in ("nt_xent", "info_nce"):
            raise ValueError(
                f"method.objective {config.objective} has no temperature; set method.contrast.learn=false"
            )
        self.views = _views(config)
        self.backbones = nn.ModuleDict({name: self._encoder(name) for name in PAIR})
        if config.share_attention:
            _share_attention(self.backbones)
        self.projectors = nn.ModuleDict(self._projectors())
        if config.contrast.learn:
            self.log_temperature = nn.Parameter(torch.tensor(config.contrast.temperature).log())
        if config.sync_batch_norm:
            with_global_batch_norm(self)

    def _encoder(self, name: str) -> Encoder:
        wanted = self.config.encoder
        if name not in wanted.channels:
            raise ValueError(f"method.encoder.channels names no {name}: it needs {' and '.join(PAIR)}")
        config = replace(
            wanted,
            channels={name: wanted.channels[name]},
            center=[other for other in wanted.center if other == name],
        )
        if takes(wanted.arch, "pyramid"):
            config.pyramid = False
        return build_encoder(config)

    def _projectors(self) -> dict[str, nn.Module]:
        config = self.config.projector

        def build() -> nn.Module:
            if not config.dims:
                return nn.Identity()
            return projector([self.encoder("optical").embed_dim, *config.dims], batch_norm=True, bias=False)

        if config.shared:
            return dict.fromkeys(PAIR, build())
        return {name: build() for name in PAIR}

    def encoder(self, name: str) -> Encoder:
        """The encoder of a modality."""
        encoder = self.backbones[name]
        assert isinstance(encoder, Encoder)
        return encoder

    def encoders(self) -> Mapping[str, nn.Module]:
        """``encoder_optical`` and ``encoder_sar``."""
        return {f"encoder_{name}": self.encoder(name) for name in PAIR}

    def check_index(self, index: Index) -> None:
        """Refuses an index without pairs, or with images of other channels than the encoders take."""
        if not len(index.paired_rows):
            raise ValueError(
                "this index has no pairs, and DeCUR learns from what two modalities of one place share; "
                "make one with `python datasets/prepare.py pairs`"
            )
        check_channels(index, {name: self.config.encoder.channels[name] for name in PAIR})

    def training_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Terms ``intra_optical``, ``intra_sar`` and, for paired batches, ``common``, ``unique`` or others.

        Raises:
            ValueError: The batch is unpaired and there are no intra-modal terms.
        """
        if not batch.paired and not self.config.intra:
            raise ValueError(
                f"an unpaired batch says nothing to {self.config.objective} across modalities; "
                "set --data.samples paired"
            )
        embedded = {name: self.embed(batch, name) for name in self.views}
        losses: dict[str, Tensor] = {}
        if self.config.intra:
            for name in PAIR:
                correlation = self._correlation(embedded[f"{name}_1"], embedded[f"{name}_2"])
                losses[f"intra_{name}"] = redundancy_loss(correlation, self.config.off_diagonal)
        if batch.paired:
            losses |= self._across(embedded["optical_1"], embedded["sar_1"])
        if self.config.reduction == "official":
            losses = {
                name: loss / (6 if name in ("common", "unique") else 3) for name, loss in losses.items()
            }
        return losses

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Keeps a learned temperature from cooling below ``COLDEST``."""
        # Not in the loss, where the clamped parameter would get no gradient and could never warm up again.
        if self.config.contrast.learn:
            self.log_temperature.clamp_(min=math.log(COLDEST))

    def _across(self, optical: Tensor, sar: Tensor) -> dict[str, Tensor]:
        config = self.config
        if config.objective == "vicreg":
            terms = vicreg_terms(optical, sar)
            weights = config.vicreg
            return {
                "vicreg": weights.invariance * terms.invariance
                + weights.variance * terms.variance
                + weights.covariance * terms.covariance
            }
        if config.objective in ("nt_xent", "info_nce"):
            contrast = nt_xent if config.objective == "nt_xent" else symmetric_info_nce
            return {
                "contrast": contrast(
                    optical, sar, self._temperature(), gather_gradient=config.gather_gradient
                )
            }
        correlation = self._correlation(optical, sar)
        shared = round(config.common * len(correlation))
        terms_by_name = {}
        if shared:
            terms_by_name["common"] = redundancy_loss(correlation[:shared, :shared], config.off_diagonal)
        if shared < len(correlation):
            unique = correlation[shared:, shared:]
            terms_by_name["unique"] = redundancy_loss(unique, config.off_diagonal, target=0.0)
        return terms_by_name

    def _correlation(self, first: Tensor, second: Tensor) -> Tensor:
        return cross_correlation(first, second, gather_gradient=self.config.gather_gradient)

    def _temperature(self) -> float | Tensor:
        contrast = self.config.contrast
        return self.log_temperature.exp() if contrast.learn else contrast.temperature

    def augmented(self, batch: Batch, view: str) -> Tensor:
        """A view after its photometric changes, standardised: (B, C, H, W); missing pixels are 0."""
        place = list(self.views).index(view) * NUM_DRAWS
        draws = batch.mask_noise[:, place : place + NUM_DRAWS]
        return augmented_view(batch, view, draws, getattr(self.config.augment, batch.modalities[view]))

    def embed(self, batch: Batch, view: str) -> Tensor:
        """Projected embeddings of an augmented view: (B, K)."""
        modality = batch.modalities[view]
        return self.projectors[modality](self.encoder(modality).pooled(self.augmented(batch, view), modality))

    def probe_features(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings of the encoders, of views without photometric changes."""
        return {name: self.encoder(name).pooled(batch.normalised(f"{name}_1"), name) for name in PAIR}


def _views(config: DeCURConfig) -> Views:
    numbers = (1, 2) if config.intra else (1,)
    crops = {"optical": config.crop, "sar": config.augment.sar_crop or config.crop}
    if config.augment.shared_crop and crops["optical"] != crops["sar"]:
        raise ValueError("method.augment.sar_crop has to equal method.crop for method.augment.shared_crop")
    views = {}
    for modality in PAIR:
        for number in numbers:
            name = f"{modality}_{number}"
            shared = config.augment.shared_crop and number == 1
            views[name] = View(
                modality=modality,
                size=config.encoder.img_size,
                crop_group="pair" if shared else name,
                **vars(crops[modality]),
            )
    # The mask noise of a method that masks nothing serves the photometric changes: it belongs to the sample.
    return Views(views, num_patches=NUM_DRAWS * len(views))


def _share_attention(backbones: nn.ModuleDict) -> None:
    """Makes the second encoder use the first one's deformable attention."""
    first, second = (backbones[name] for name in PAIR)
    attention: Any = getattr(first, "attention", None)
    if not attention:
        raise ValueError("method.share_attention: these encoders have no deformable attention")
    second.attention = attention
