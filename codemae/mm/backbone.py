"""The encoder as a backbone, registered once where both frameworks look."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from codemae.checkpoint import EncoderMetadata, WeightsError
from codemae.evaluation.features import encoder_hash
from codemae.modality import MODALITY_NAMES
from codemae.models.encoder import Encoder
from codemae.models.factory import create_encoder, load_encoder
from codemae.models.hivit import HiViT, PatchMerge

log = logging.getLogger(__name__)

BOTH = "both"
NUM_STAGES = 4


class BackboneError(ValueError):
    """An encoder cannot serve as the backbone that the config describes."""


@MODELS.register_module()
class CoDeMAEBackbone(BaseModule):
    """Feature maps of an encoder at strides 4, 8, 16, 32 and, if wanted, 64.

    The maps are those of ``encoder.pyramid``, unchanged, unless ``out_channels`` asks for another width.
    Weights are loaded strictly when the backbone is built, so a file that does not fit ends the run before it
    begins. A detector's own checkpoint holds the whole encoder under ``backbone.encoder.``, the patch
    embeddings of unused modalities included.

    Args:
        encoder: FILE, released NAME or ``random:ARCH``, as ``codemae.load_encoder`` takes them.
        modality: ``optical``, ``sar``, or ``both``: images of both modalities stacked along the channels,
            optical first. Each is encoded by itself and the maps are stacked along the channels.
        arch: In place of ``encoder``: name and keyword arguments of an encoder whose weights a detector's
            checkpoint will bring.
        out_channels: Width of the maps. A level of another width gets a 1 x 1 convolution; None keeps the
            encoder's own.
        stride64: ``max`` or ``average`` adds a fifth map, pooled from the fourth; None adds none.
        frozen_stages: -1 trains all; 0 freezes patch embeddings and positions, 1, 2 and 3 also the blocks at
            strides 4, 8 and 16, 4 the whole encoder. Frozen parts stay in eval mode.
        norm_maps: LayerNorm over the channels of each map of each modality, as pretraining's decoder has. The
            coarse maps of a pretrained HiViT are otherwise several times as large as the fine ones.
        drop_path: Largest stochastic depth rate.
        checkpoint_activations: Recompute attention blocks in the backward pass to save memory.
        img_size: Side that positions are laid out for; the encoder's own when None. Other sizes interpolate.
        channels: Input channels of each modality where they differ from the encoder's.
        center: Modalities whose images lose their own mean on entry; the encoder's own choice when None.
        seed: Of the weights of ``random:``.
        source: With ``arch``: name and hash of the weights that training once started from.
        init_cfg: Ignored; frameworks pass it to every module.

    Shape:
        images (B, C, H, W), sides divisible by 16 (``pad_size_divisor=32`` of the data preprocessor sees to
        it) -> a tuple of (B, D_level, H/s, W/s).

    Raises:
        BackboneError: No feature maps at these strides, unknown modality, or stages that cannot be frozen.
        codemae.checkpoint.WeightsError: The file does not fit or is damaged.
    """

    def __init__(
        self,
        encoder: str | None = None,
        modality: str = "optical",
        arch: Mapping[str, Any] | None = None,
        out_channels: int | None = None,
        stride64: Literal["max", "average"] | None = None,
        frozen_stages: int = -1,
        norm_maps: bool = False,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        img_size: int | None = None,
        channels: Mapping[str, int] | None = None,
        center: Sequence[str] | None = None,
        seed: int = 0,
        source: Mapping[str, str] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__()
        if stride64 not in (None, "max", "average"):
            raise BackboneError(f"stride64 is {stride64!r}; choose 'max', 'average' or None")
        passed: dict[str, Any] = {"drop_path": drop_path, "checkpoint_activations": checkpoint_activations}
        passed = {key: value for key, value in passed.items() if value}
        if (encoder is None) == (arch is None):
            raise BackboneError(
                "the backbone needs one of encoder=FILE (NAME, random:ARCH) and arch=dict(name=..., ...); "
                "name the first on the command line with --encoder"
            )
        if arch is not None:
            # A config's own dictionary type must not reach a checkpoint, which holds plain values alone.
            kwargs = arch.to_dict() if isinstance(arch, ConfigDict) else dict(arch)
            built: nn.Module = create_encoder(kwargs.pop("name"), **kwargs, **passed)
        else:
            given = {"img_size": img_size, "channels": channels, "center": center, "seed": seed}
            built = _load(str(encoder), given | passed)
        self.encoder = cast(Encoder, built)
        name = str(encoder) if encoder is not None else self.encoder.arch
        self.source = dict(source or {"encoder": name, "checkpoint_hash": encoder_hash(name, built)})
        self.modalities = _modalities(self.encoder, modality)
        self.stride64 = stride64
        self.norms = nn.ModuleDict(
            {
                name: nn.ModuleList(LayerNorm2d(width) for width in _widths(self.encoder))
                for name in self.modalities
                if norm_maps
            }
        )
        widths = [width * len(self.modalities) for width in _widths(self.encoder)]
        self.align = nn.ModuleList()
        if out_channels is not None and any(width != out_channels for width in widths):
            log.info(
                "%s gives maps of %s channels; a 1 x 1 convolution brings each to %d",
                self.encoder.arch,
                widths,
                out_channels,
            )
            self.align = nn.ModuleList(nn.Conv2d(width, out_channels, 1) for width in widths)
            widths = [out_channels] * len(widths)
        self.out_channels = widths + widths[-1:] * (stride64 is not None)
        self.frozen = _frozen(self.encoder, frozen_stages)
        for name, parameter in self.encoder.named_parameters():
            if name in self.frozen or _of_another_modality(name, self.modalities):
                parameter.requires_grad_(False)
        self.train()

    def init_weights(self) -> None:
        """Keeps the loaded weights: frameworks call this on every module before training."""

    def train(self, mode: bool = True) -> "CoDeMAEBackbone":
        """Sets training mode of all but modules that are frozen whole."""
        super().train(mode)
        for name, module in self.encoder.named_modules():
            own = [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters()]
            if own and all(key in self.frozen for key in own):
                module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps at strides 4, 8, 16, 32 and perhaps 64."""
        parts = images.split([self._channels(images, name) for name in self.modalities], dim=1)
        pyramids = [self._maps(part, name) for part, name in zip(parts, self.modalities, strict=True)]
        maps = [
            torch.cat(level, dim=1) if len(level) > 1 else level[0] for level in zip(*pyramids, strict=True)
        ]
        if self.align:
            maps = [align(level) for align, level in zip(self.align, maps, strict=True)]
        if self.stride64 == "average":
            maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True))
        elif self.stride64 == "max":
            maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return tuple(maps)

    def _maps(self, images: Tensor, modality: str) -> Sequence[Tensor]:
        maps: Sequence[Tensor] = self.encoder.pyramid(images, modality)
        if modality in self.norms:
            norms = cast(nn.ModuleList, self.norms[modality])
            return [norm(level) for norm, level in zip(norms, maps, strict=True)]
        return maps

    def description(self) -> dict[str, Any]:
        """What rebuilds the encoder and heads its file: the fields of ``EncoderMetadata`` as plain values."""
        known = getattr(self.encoder, "metadata", None)
        metadata = EncoderMetadata(
            arch=self.encoder.arch,
            arch_kwargs=dict(self.encoder.arch_kwargs),
            inputs=dict(getattr(self.encoder, "inputs", {})),
            method=known.method if known else "random initialisation",
            steps=known.steps if known else 0,
            source_commit=known.source_commit if known else "unknown",
            licence_notes=list(known.licence_notes) if known else [],
        )
        return asdict(metadata)

    def _channels(self, images: Tensor, modality: str) -> int:
        return images.shape[1] if len(self.modalities) == 1 else self.encoder.channels[modality]


def find_backbone(model: nn.Module) -> tuple[str, CoDeMAEBackbone]:
    """Name and module of the encoder within a detector or segmentor.

    Raises:
        BackboneError: It has none, or several.
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, CoDeMAEBackbone)]
    if len(found) != 1:
        raise BackboneError(f"{type(model).__name__} has {len(found)} CoDeMAEBackbone modules; it needs one")
    return found[0]


def _load(name: str, options: dict[str, Any]) -> nn.Module:
    try:
        return load_encoder(name, **options)
    except WeightsError:
        raise
    except (KeyError, FileNotFoundError, ImportError, ValueError) as error:
        raise BackboneError(f"encoder {name}: {error.args[0] if error.args else error}") from error


def _modalities(encoder: Encoder, modality: str) -> tuple[str, ...]:
    names = tuple(MODALITY_NAMES) if modality == BOTH else (modality,)
    for name in names:
        if name not in encoder.modalities:
            raise BackboneError(
                f"modality={modality!r}: {encoder.arch} takes {', '.join(encoder.modalities)} images"
            )
    return names


def _widths(encoder: Encoder) -> list[int]:
    try:
        return list(encoder.pyramid_dims)
    except (TypeError, AttributeError):
        raise BackboneError(
            f"{encoder.arch} has no feature maps at strides 4 to 32; take a hivit, a resnet50 or a swin"
        ) from None


def _of_another_modality(name: str, modalities: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to the patch embedding or stem of a modality that is not used."""
    others = set(MODALITY_NAMES) - set(modalities)
    return any(name.startswith((f"patch_embed.{other}.", f"stem.{other}.")) for other in others)


def _frozen(encoder: Encoder, stages: int) -> frozenset[str]:
    """Names of the encoder's parameters that the first stages hold."""
    if not -1 <= stages <= NUM_STAGES:
        raise BackboneError(f"frozen_stages is {stages}; it lies between -1 and {NUM_STAGES}")
    names = [name for name, _ in encoder.named_parameters()]
    if stages == -1:
        return frozenset()
    if stages == NUM_STAGES:
        return frozenset(names)
    if not isinstance(encoder, HiViT):
        raise BackboneError(
            f"frozen_stages={stages} is defined for hivit encoders; of a {encoder.arch} freeze all "
            f"({NUM_STAGES}) or nothing (-1)"
        )
    merges = [i for i, block in enumerate(encoder.blocks) if isinstance(block, PatchMerge)]
    ends = [-1, *merges, len(encoder.blocks) - 1]
    ids = encoder.layer_ids()
    return frozenset(name for name in names if ids[name] <= ends[stages] + 1)
