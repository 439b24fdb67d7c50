"""CMID: masked reconstruction, contrast and local prototypes, distilled from the student's moving average."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from codemae import checkpoint, distributed
from codemae.data.batch import Batch
from codemae.data.cell_positions import matched_cells
from codemae.data.index import Index
from codemae.data.photometric import NUM_DRAWS, PhotometricConfig, augmented_view
from codemae.data.views import View, Views
from codemae.losses.contrastive import prediction_loss, queue_info_nce
from codemae.losses.frequency import focal_frequency_loss
from codemae.losses.prototypes import moved_center, prototype_loss
from codemae.losses.reconstruction import PixelLoss, masked_pixel_loss
from codemae.methods.base import METHODS, Method, Progress, check_channels
from codemae.methods.codemae import PAIR, CropConfig, box_mean
from codemae.methods.pictures import to_picture
from codemae.models.encoder import Encoder
from codemae.models.factory import EncoderConfig, build_encoder, takes
from codemae.models.filling import block_mask, fill_removed, resize_mask
from codemae.models.key_queue import KeyQueue
from codemae.models.masking import gather_tokens
from codemae.models.moving_average import follow, rising_momentum
from codemae.models.projection import PixelHead, PrototypeHead, projector
from codemae.models.sync_norm import with_global_batch_norm

NUM_VIEWS = 2


@dataclass(kw_only=True)
class OverlappingCropConfig(CropConfig):
    """Crops of at least half of the area, so that two of one image overlap."""

    scale: tuple[float, float] = (0.5, 1.0)


@dataclass(kw_only=True)
class OpticalPhotometricConfig(PhotometricConfig):
    """Strengths of MoCo v2's colour jitter, but for hue, and of its gray; the paper names no numbers."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    grayscale: float = 0.2


@dataclass(kw_only=True)
class SARPhotometricConfig(PhotometricConfig):
    """What of colour jitter a gray image can have."""

    brightness: float = 0.4
    contrast: float = 0.4


@dataclass(kw_only=True)
class ReconstructionConfig:
    """L_spat and L_freq, the MIM branch.

    ``pixel``: ``l1`` (paper) or ``focal_l1`` (official). ``frequency_weight`` multiplies L_freq, on top of
    ``weight``. ``alpha``, ``average_spectrum``, ``log_weights`` and ``batch_weights``: see
    ``focal_frequency_loss``; the last three are off in the paper of that loss and on in the official code.
    ``unmasked_weight``: share of the prediction itself, where nothing was removed, in the image whose
    spectrum is compared (paper 1, official 0.001); the rest is the middle between it, as a constant, and the
    target.
    ``sar_target``: ``image`` (paper), or ``multilook``, its box mean over ``sar_window`` px, which removes
    speckle no model can predict. An image of ``encoder.center`` is reconstructed without its mean, which such
    an encoder never sees.
    """

    enabled: bool = True
    weight: float = 1.0
    pixel: PixelLoss = "l1"
    frequency_weight: float = 1.0
    alpha: float = 1.0
    average_spectrum: bool = False
    log_weights: bool = False
    batch_weights: bool = False
    unmasked_weight: float = 1.0
    sar_target: Literal["image", "multilook"] = "image"
    sar_window: int = 5


@dataclass(kw_only=True)
class ContrastConfig:
    """L_NCE, the global branch.

    ``kind``: ``moco`` compares with a queue of ``queue_size`` keys for each modality; ``byol`` is the
    ablation without negatives, where a predictor of ``predictor_hidden_dim`` (the authors' width; the paper
    gives none) guesses the teacher's projection and hidden layers of projector and predictor are
    batch-normalised.
    """

    enabled: bool = True
    weight: float = 1.0
    kind: Literal["moco", "byol"] = "moco"
    hidden_dim: int = 2048
    dim: int = 256
    temperature: float = 0.2
    queue_size: int = 65536
    predictor_hidden_dim: int = 512


@dataclass(kw_only=True)
class LocalConfig:
    """L_local, the local branch.

    ``matches``: position-matched pairs of a view, N; all cells where the map has fewer. ``prototypes``: K.
    ``batch_norm``: after the head's hidden layers (official, for ResNet-50). ``student_temperature``: 0.2 in
    the paper, 0.1 in the official code. The teacher's temperature rises from ``first_teacher_temperature`` to
    ``teacher_temperature`` over ``warmup_epochs`` (paper: none; official: from 0.04 over 50).
    """

    enabled: bool = True
    weight: float = 1.0
    matches: int = 20
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    prototypes: int = 2048
    batch_norm: bool = False
    student_temperature: float = 0.2
    teacher_temperature: float = 0.07
    first_teacher_temperature: float = 0.07
    warmup_epochs: int = 0
    center_momentum: float = 0.9


@dataclass(kw_only=True)
class CMIDConfig:
    """Everything the method reads; the defaults are the ``paper`` preset.

    ``modalities``: one, or both, which then share everything but the stem, the last layer of the
    reconstruction and the queue. ``optical`` and ``sar``: photometric augmentation of ``augmented_views``, of
    both or of the second alone (official); what is reconstructed is the augmented image. ``encoder``: any
    with ``encode_filled``; the pyramid of a HiViT is not built, since no branch would train it.
    ``mask_block``: side of a removed block in pixels. ``ema_momentum``: share of the teacher that stays at
    the first step; it rises to 1.
    """

    name: str = "cmid"
    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(arch="swin_base"))
    modalities: list[str] = field(default_factory=lambda: list(PAIR))
    crop: OverlappingCropConfig = field(default_factory=OverlappingCropConfig)
    optical: OpticalPhotometricConfig = field(default_factory=OpticalPhotometricConfig)
    sar: SARPhotometricConfig = field(default_factory=SARPhotometricConfig)
    augmented_views: Literal["both", "second"] = "both"
    mask_ratio: float = 0.6
    mask_block: int = 32
    ema_momentum: float = 0.996
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    local: LocalConfig = field(default_factory=LocalConfig)

    def __post_init__(self) -> None:
        if not self.modalities or not set(self.modalities) <= set(PAIR):
            raise ValueError(f"method.modalities {self.modalities}: name optical, sar or both")
        if missing := set(self.modalities) - set(self.encoder.channels):
            raise ValueError(f"method.encoder.channels has no count for {', '.join(sorted(missing))}")
        if self.encoder.img_size % self.mask_block:
            raise ValueError(
                f"method.mask_block {self.mask_block} does not divide method.encoder.img_size "
                f"{self.encoder.img_size}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"method.mask_ratio {self.mask_ratio} must lie between 0 and 1")
        if not (self.reconstruction.enabled or self.contrast.enabled or self.local.enabled):
            raise ValueError("method: reconstruction, contrast and local are all off; enable one")


@METHODS.register("cmid")
class CMID(Method):
    """Contrastive Mask Image Distillation.

    Data flow, for views 1 and 2 of each image (below: student on 1, teacher on 2; the same the other way
    round, and all terms are means over both ways and over the modalities):

        view 1 -- blocks filled with its mean --> stem + mask token --> student --> map
        view 2 ------------------------------------------------------> teacher --> map'
        map            --> 1 x 1 convolution     --> removed pixels (spatial), spectrum (frequency)
        mean of map    --> projector             --> the teacher's projection, among a queue of others (nce)
        map at N cells --> prototype head        --> the teacher's assignment of the nearest cells (local)

    The teacher, encoder and heads, is the moving average of the student; it gets no gradient, its norms see
    batch statistics, and it is saved with the run but not exported. Queues and centres move in ``after_step``
    with what all ranks and micro-batches of the step saw.

    With both modalities, all branches treat every image by itself, so paired and unpaired batches are the
    same to them; encoder, projector and prototypes are shared, while each modality has its own queue and its
    own centre: to tell a SAR image from optical ones needs no contrast, and with one centre for both the
    assignments came to say little else than which of the two a cell is of.

    Differs from the authors' code: one forward for queue, distributed queue and BYOL alike, where theirs has
    three; optical, SAR or both, where theirs is optical alone. ``paper`` and ``official`` settings are
    configs, not code: pixel loss, options of the frequency loss, temperatures, norms of the prototype head,
    crops, views that are augmented. Their second view also changes its hue and gets noise; their centre
    moves once for each direction, twice a step. Their places of cells add a crop's offset, as a share of the
    room it has, to positions in pixels, so that where a crop lies hardly counts; here Eq. 6 and 7 hold. They
    pretrain on the test split of MillionAID; here an index says what is read. Where printed equations cannot
    be meant (Eq. 5 and 10), the losses say what is done instead.

    Decided here, where the paper is silent: batch means of the frequency loss and of the centre, statistics
    of batch norms and the keys of the queue are those of all ranks. Both views go through an encoder as one
    batch, so a ResNet's norms see them together. Flips count when cells are matched. The teacher has its own
    moving average of the prototypes, as in DINO.

    Reference: Muhtar et al., "CMID: A Unified Self-Supervised Learning Framework for Remote Sensing Image
        Understanding", IEEE TGRS 2023, arXiv:2304.09670.
    """

    Config = CMIDConfig
    center: Tensor

    def __init__(self, config: CMIDConfig) -> None:
        super().__init__()
        self.config = config
        modalities = config.modalities
        channels = {name: config.encoder.channels[name] for name in modalities}
        center = [name for name in config.encoder.center if name in modalities]
        wanted = replace(config.encoder, channels=channels, center=center)
        if takes(wanted.arch, "pyramid"):
            wanted = replace(wanted, pyramid=False)
        self.encoder = build_encoder(wanted)
        if type(self.encoder).encode_filled is Encoder.encode_filled:
            raise ValueError(f"method.encoder.arch {wanted.arch}: CMID needs an encoder with encode_filled")
        dim, size = self.encoder.embed_dim, wanted.img_size
        self.mask_grid = (size // config.mask_block, size // config.mask_block)
        blocks = self.mask_grid[0] * self.mask_grid[1]
        self.views = Views(
            {
                view_name(name, number): View(
                    modality=name, size=size, crop_group=f"view{number}", **vars(config.crop)
                )
                for name in modalities
                for number in range(NUM_VIEWS)
            },
            num_patches=(blocks + NUM_DRAWS) * NUM_VIEWS * len(modalities),
        )
        self.mask_token = nn.Parameter(torch.zeros(self.encoder.stem_dim))

        teacher: dict[str, nn.Module] = {
            "encoder": build_encoder(replace(wanted, drop_path=0.0, checkpoint_activations=False, init=""))
        }
        checkpoint.load_strictly(teacher["encoder"], self.encoder.state_dict())
        if config.reconstruction.enabled:
            self.pixel_heads = nn.ModuleDict(
                {
                    name: PixelHead(dim, self.encoder.channels[name], self.encoder.patch_size)
                    for name in modalities
                }
            )
        if config.contrast.enabled:
            contrast = config.contrast
            is_byol = contrast.kind == "byol"
            self.projector = projector([dim, contrast.hidden_dim, contrast.dim], batch_norm=is_byol)
            teacher["projector"] = copy.deepcopy(self.projector)
            if is_byol:
                widths = [contrast.dim, contrast.predictor_hidden_dim, contrast.dim]
                self.predictor = projector(widths, batch_norm=True)
            else:
                self.queues = nn.ModuleDict(
                    {name: KeyQueue(contrast.queue_size, contrast.dim) for name in modalities}
                )
        if config.local.enabled:
            local = config.local
            self.prototype_head = PrototypeHead(
                dim, local.hidden_dim, local.bottleneck_dim, local.prototypes, batch_norm=local.batch_norm
            )
            teacher["prototype_head"] = copy.deepcopy(self.prototype_head)
            self.register_buffer("center", torch.zeros(len(modalities), local.prototypes))
        self.teacher = nn.ModuleDict(teacher).requires_grad_(False)
        with_global_batch_norm(self)
        # every rank fills its queues alike, so DDP need not send them along at each step
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name.startswith("queues.")
        ]
        self._seen: list[tuple[int, dict[str, Tensor]]] = []

    def encoders(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"encoder": self.encoder}

    def check_index(self, index: Index) -> None:
        """Refuses an index with images of other channels than the encoder takes."""
        check_channels(index, self.encoder.channels)

    def training_losses(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Terms ``spatial`` and ``frequency``, ``nce``, and ``local``, as far as enabled."""
        images, mask = self.images(batch), self.mask(batch)
        maps = self._by_view(self.encoder.encode_filled(self._filled(images, mask), mask, self.mask_token))
        with torch.no_grad():
            targets = self._by_view(self._teacher_encoder.encode_filled(images))
            seen: dict[str, Tensor] = {}
        losses = {}
        if self.config.reconstruction.enabled:
            losses.update(self._reconstruction(maps, images, mask))
        if self.config.contrast.enabled:
            losses["nce"] = self.config.contrast.weight * self._contrast(maps, targets, seen)
        if self.config.local.enabled:
            losses["local"] = self.config.local.weight * self._local(maps, targets, batch, progress, seen)
        if self.training:
            self._remember(progress.step, seen)
        return losses

    @property
    def _teacher_encoder(self) -> Encoder:
        encoder = self.teacher["encoder"]
        assert isinstance(encoder, Encoder)
        return encoder

    def images(self, batch: Batch) -> dict[str, Tensor]:
        """Augmented, standardised images by modality, all of view 1, then all of view 2: (2B, C, H, W).

        Pixels that are NaN or infinite become 0, the mean.
        """
        draws = self._noise(batch)[:, -NUM_DRAWS:].chunk(len(self.config.modalities))
        images = {}
        for name, numbers in zip(self.config.modalities, draws, strict=True):
            changes = [getattr(self.config, name)] * NUM_VIEWS
            if self.config.augmented_views == "second":
                changes[0] = PhotometricConfig()
            parts = zip(range(NUM_VIEWS), numbers.chunk(NUM_VIEWS), changes, strict=True)
            images[name] = torch.cat(
                [
                    augmented_view(batch, view_name(name, number), part, change)
                    for number, part, change in parts
                ]
            )
        return images

    def mask(self, batch: Batch) -> Tensor:
        """Removed blocks of all images, modality by modality and view by view: (sum of 2B, 1, h, w)."""
        return block_mask(self._noise(batch)[:, :-NUM_DRAWS], self.mask_grid, self.config.mask_ratio)

    def _noise(self, batch: Batch) -> Tensor:
        """Each image's own share of its sample's numbers: (sum of 2B, blocks + draws)."""
        return torch.cat(batch.mask_noise.chunk(NUM_VIEWS * len(self.config.modalities), dim=1))

    def _filled(self, images: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        masks = mask.chunk(len(images))
        return {
            name: fill_removed(image, part) for (name, image), part in zip(images.items(), masks, strict=True)
        }

    def _by_view(self, maps: Tensor) -> Tensor:
        """(modalities * 2 * B, D, h, w) -> (modalities, 2, B, D, h, w)."""
        return maps.unflatten(0, (len(self.config.modalities), NUM_VIEWS, -1))

    def _targets(self, name: str, images: Tensor) -> Tensor:
        config = self.config.reconstruction
        images = images.expand(-1, self.encoder.channels[name], -1, -1)
        unseen = self._unseen_mean(name, images)
        if name == "sar" and config.sar_target == "multilook":
            images = box_mean(images, config.sar_window)
        return images - unseen

    def _unseen_mean(self, name: str, images: Tensor) -> Tensor:
        """What a centring encoder takes from each channel of an image on entry: (B, C, 1, 1); else 0."""
        mean = images.mean((-2, -1), keepdim=True)
        return mean if name in self.config.encoder.center else torch.zeros_like(mean)

    def _reconstruction(self, maps: Tensor, images: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        config = self.config.reconstruction
        spatial, frequency = [], []
        for (name, image), part, removed in zip(images.items(), maps, mask.chunk(len(images)), strict=True):
            predictions = self.pixel_heads[name](part.flatten(0, 1)).float()
            targets = self._targets(name, image)
            pixels = resize_mask(removed, image.shape[-2:])
            spatial.append(masked_pixel_loss(predictions, targets, pixels, config.pixel))
            if not config.frequency_weight:
                continue
            predictions = self._for_spectra(predictions, targets, pixels)
            for guess, target in zip(predictions.chunk(NUM_VIEWS), targets.chunk(NUM_VIEWS), strict=True):
                frequency.append(
                    focal_frequency_loss(
                        guess,
                        target,
                        alpha=config.alpha,
                        average_spectrum=config.average_spectrum,
                        log_weights=config.log_weights,
                        batch_weights=config.batch_weights,
                    )
                )
        losses = {"spatial": config.weight * torch.stack(spatial).mean()}
        if config.frequency_weight:
            weight = config.weight * config.frequency_weight
            losses["frequency"] = weight * torch.stack(frequency).mean()
        return losses

    def _for_spectra(self, predictions: Tensor, targets: Tensor, pixels: Tensor) -> Tensor:
        """The predictions as their spectra are compared with the targets', see ``ReconstructionConfig``."""
        share = pixels + self.config.reconstruction.unmasked_weight * (1 - pixels)
        return torch.lerp(0.5 * (predictions.detach() + targets), predictions, share.expand_as(predictions))

    def _contrast(self, maps: Tensor, targets: Tensor, seen: dict[str, Tensor]) -> Tensor:
        contrast, shape = self.config.contrast, maps.shape[:3]
        queries = self.projector(maps.mean((-2, -1)).flatten(0, 2))
        with torch.no_grad():
            keys = self.teacher["projector"](targets.mean((-2, -1)).flatten(0, 2)).unflatten(0, shape)
        if contrast.kind == "byol":
            return prediction_loss(self.predictor(queries), keys.flip(1).flatten(0, 2))
        terms = []
        for name, asked, offered in zip(
            self.config.modalities, queries.unflatten(0, shape), keys, strict=True
        ):
            others = self.queues[name].keys
            assert isinstance(others, Tensor)
            # each view looks for the other one of its image
            partners = offered.flip(0).flatten(0, 1)
            terms.append(queue_info_nce(asked.flatten(0, 1), partners, others, contrast.temperature))
            seen[f"keys_{name}"] = offered.flatten(0, 1)
        return torch.stack(terms).mean()

    def _local(
        self, maps: Tensor, targets: Tensor, batch: Batch, progress: Progress, seen: dict[str, Tensor]
    ) -> Tensor:
        local, grid = self.config.local, (maps.shape[-2], maps.shape[-1])
        ours, theirs = [], []
        for place, name in enumerate(self.config.modalities):
            for number in range(NUM_VIEWS):
                other = 1 - number
                first, second = (batch.crops[view_name(name, view)] for view in (number, other))
                mine, matched = matched_cells(first, second, grid, local.matches)
                ours.append(gather_tokens(maps[place, number].flatten(2).transpose(1, 2), mine))
                theirs.append(gather_tokens(targets[place, other].flatten(2).transpose(1, 2), matched))
        by_modality = (len(self.config.modalities), -1)
        student = self.prototype_head(torch.cat(ours).flatten(0, 1)).unflatten(0, by_modality)
        with torch.no_grad():
            teacher = self.teacher["prototype_head"](torch.cat(theirs).flatten(0, 1))
            teacher = teacher.unflatten(0, by_modality)
            seen["similarity"] = teacher.mean(1)[None]
        return prototype_loss(
            student,
            teacher,
            self.center[:, None],
            student_temperature=local.student_temperature,
            teacher_temperature=teacher_temperature(local, progress.epoch),
        )

    def _remember(self, step: int, seen: dict[str, Tensor]) -> None:
        """Keeps what ``after_step`` needs; that of a step which was skipped is dropped by the next."""
        self._seen = [entry for entry in self._seen if entry[0] == step]
        self._seen.append((step, {name: tensor.detach().float() for name, tensor in seen.items()}))

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Moves the teacher towards the student, then the queues and the centres."""
        momentum = rising_momentum(progress.step - 1, progress.total_steps, self.config.ema_momentum)
        for name, module in self.teacher.items():
            follow(module, getattr(self, name), momentum)
        names = self._seen[0][1] if self._seen else ()
        seen = {name: torch.cat([tensors[name] for _, tensors in self._seen]) for name in names}
        self._seen = []
        for name in self.config.modalities:
            if f"keys_{name}" in seen:
                queue = self.queues[name]
                assert isinstance(queue, KeyQueue)
                queue.add(distributed.all_gather(seen[f"keys_{name}"], differentiable=False))
        if "similarity" in seen:
            mean = seen["similarity"].mean(0)
            self.center.copy_(moved_center(self.center, mean, self.config.local.center_momentum))

    def probe_features(self, batch: Batch) -> dict[str, Tensor]:
        """The student's pooled features of the first view."""
        return {
            name: self.encoder.pooled(batch.normalised(view_name(name, 0)), name)
            for name in self.config.modalities
        }

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """Of the first sample's first view: the image, the image as the student sees it, and its guess."""
        if not self.config.reconstruction.enabled:
            return {}
        images, mask = self.images(batch), self.mask(batch)
        filled = self._filled(images, mask)
        maps = self._by_view(self.encoder.encode_filled(filled, mask, self.mask_token))
        pictures = {}
        for place, (name, removed) in enumerate(zip(images, mask.chunk(len(images)), strict=True)):
            guess = self.pixel_heads[name](maps[place, 0, :1]).float()
            pixels = resize_mask(removed[:1], guess.shape[-2:])
            target = self._targets(name, images[name][:1])
            shown = {
                name: target,
                f"{name}_filled": self._targets(name, filled[name][:1]),
                f"{name}_from_{name}": torch.lerp(target, guess, pixels.expand_as(guess)),
            }
            mean = self._unseen_mean(name, images[name][:1])
            pictures.update({key: to_picture(image + mean, batch, name)[0] for key, image in shown.items()})
        return pictures


def view_name(modality: str, number: int) -> str:
    """Name of one view of a modality: ``optical_1``, ``optical_2``, ``sar_1``, ``sar_2``."""
    return f"{modality}_{number + 1}"


def teacher_temperature(local: LocalConfig, epoch: int) -> float:
    """The teacher's temperature: linear over the warm-up epochs, then constant."""
    share = min(1.0, epoch / local.warmup_epochs) if local.warmup_epochs else 1.0
    return local.first_teacher_temperature + share * (
        local.teacher_temperature - local.first_teacher_temperature
    )
