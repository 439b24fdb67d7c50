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
from codemae.evaluation.card import joint_hash
from codemae.evaluation.features import encoder_hash
from codemae.mm.checkpoints import PAIR
from codemae.modality import MODALITY_NAMES
from codemae.models.cross_fusion import XAttnEncoder
from codemae.models.encoder import Encoder
from codemae.models.factory import create_encoder, load_encoder
from codemae.models.hivit import HiViT, PatchMerge

log = logging.getLogger(__name__)

BOTH = "both"
NUM_STAGES = 4


class BackboneError(ValueError):
    """An encoder cannot serve as the backbone that the config describes."""


class EncoderOfEach(Encoder):
    """One encoder a modality behind the interface of a single one, as DeCUR leaves them.

    Args:
        encoders: By modality, all of one architecture.

    Raises:
        BackboneError: The architectures differ, or an encoder does not take images of its modality.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        super().__init__()
        names = {name: encoder.arch for name, encoder in encoders.items()}
        if len(set(names.values())) > 1:
            raise BackboneError(f"the encoders differ: {names}; name two of one architecture")
        for name, encoder in encoders.items():
            _modalities(encoder, name)
        first = next(iter(encoders.values()))
        self.encoders = nn.ModuleDict(encoders)
        self.arch = PAIR
        self.arch_kwargs = {name: {"name": each.arch, **each.arch_kwargs} for name, each in encoders.items()}
        self.img_size, self.embed_dim, self.patch_size = first.img_size, first.embed_dim, first.patch_size
        self.channels = {name: encoder.channels[name] for name, encoder in encoders.items()}
        stated = {name: getattr(encoder, "inputs", {}) for name, encoder in encoders.items()}
        self.inputs = {name: inputs[name] for name, inputs in stated.items() if name in inputs}
        if hasattr(first, "metadata"):
            self.metadata = first.metadata

    def of(self, modality: str) -> Encoder:
        """The encoder of a modality."""
        return cast(Encoder, self.encoders[modality])

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        return self.of(self.modalities[0]).pyramid_dims

    def pyramid(self, images: Tensor, modality: str) -> list[Tensor]:
        """Feature maps by the modality's own encoder."""
        return self.of(modality).pyramid(images, modality)

    def layer_ids(self) -> dict[str, int]:
        """Depth of every parameter, numbered by the ``official`` rule of layer-wise decay."""
        ids = {}
        for name in self.modalities:
            encoder = self.of(name)
            top = len(encoder.blocks) if isinstance(encoder, HiViT) else None
            for key, number in encoder.layer_ids().items():
                ids[f"encoders.{name}.{key}"] = number if top is None else min(number, top)
        return ids


@MODELS.register_module()
class CoDeMAEBackbone(BaseModule):
    """Feature maps of an encoder at strides 4, 8, 16, 32 and, if wanted, 64.

    The maps are those of ``encoder.pyramid``, unchanged, unless ``out_channels`` asks for another width.
    Weights are loaded strictly when the backbone is built, so a file that does not fit ends the run before it
    begins. A detector's own checkpoint holds the whole encoder under ``backbone.encoder.``, the patch
    embeddings of unused modalities included.

    Args:
        encoder: FILE, released NAME or ``random:ARCH``, as ``codemae.load_encoder`` takes them. With ``both``
            also two of them, optical first, with a comma between or as a list: an encoder a modality.
        modality: ``optical``, ``sar``, or ``both``: images of both modalities stacked along the channels,
            optical first. Each is encoded by itself, unless the encoder fuses modalities, and the maps are
            stacked along the channels.
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
        channels: Input channels of each modality where they differ from the encoder's; modalities that the
            encoder has not are passed over.
        center: Modalities whose images lose their own mean on entry; the encoder's own choice when None.
        seed: Of the weights of ``random:``.
        source: With ``arch``: name and hash of the weights that training once started from.
        init_cfg: Ignored; frameworks pass it to every module.

    Shape:
        images (B, C, H, W), sides divisible by 16 (``pad_size_divisor=32`` of the data preprocessor sees to
        it) -> a tuple of (B, D_level, H/s, W/s).

    Raises:
        BackboneError: No feature maps at these strides, a modality the encoder has not, or stages that cannot
            be frozen.
        codemae.checkpoint.WeightsError: The file does not fit or is damaged.
    """

    def __init__(
        self,
        encoder: str | Sequence[str] | None = None,
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
            self.encoder = _create(arch.to_dict() if isinstance(arch, ConfigDict) else dict(arch), passed)
            names = [self.encoder.arch]
        else:
            given = {"img_size": img_size, "channels": channels, "center": center, "seed": seed}
            names = _split(cast(str | Sequence[str], encoder), modality)
            self.encoder = _load_all(names, given | passed)
        self.source = dict(source or _source(names, self.encoder))
        self.modalities = _modalities(self.encoder, modality, names[0])
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
        still = self.frozen | _unreached(self.encoder, self.modalities)
        for name, parameter in self.encoder.named_parameters():
            if name in still:
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
        widths = [self._channels(images, name) for name in self.modalities]
        parts = dict(zip(self.modalities, images.split(widths, dim=1), strict=True))
        pyramids = self.encoder.pyramid_together(parts)
        normed = [self._normed(maps, name) for name, maps in pyramids.items()]
        maps = [
            torch.cat(level, dim=1) if len(level) > 1 else level[0] for level in zip(*normed, strict=True)
        ]
        if self.align:
            maps = [align(level) for align, level in zip(self.align, maps, strict=True)]
        if self.stride64 == "average":
            maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True))
        elif self.stride64 == "max":
            maps.append(F.max_pool2d(maps[-1], 2, ceil_mode=True))
        return tuple(maps)

    def _normed(self, maps: Sequence[Tensor], modality: str) -> Sequence[Tensor]:
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


def _split(encoder: str | Sequence[str], modality: str) -> list[str]:
    """The one encoder that is named, or with ``both`` perhaps the two."""
    if isinstance(encoder, str):
        names = [name.strip() for name in encoder.split(",")] if modality == BOTH else [encoder]
    else:
        names = list(encoder)
    if len(names) not in ((1, 2) if modality == BOTH else (1,)):
        raise BackboneError(
            f"modality={modality!r} with {len(names)} encoders ({', '.join(names)}); name one, or for 'both' "
            "two, optical first"
        )
    return names


def _load_all(names: Sequence[str], options: dict[str, Any]) -> Encoder:
    """The encoder of that name; of two names, one a modality."""
    if len(names) == 1:
        return _load(names[0], options)
    encoders = {}
    for modality, name in zip(MODALITY_NAMES, names, strict=True):
        center = options["center"]
        own = {"center": None if center is None else [each for each in center if each == modality]}
        encoders[modality] = _load(name, options | own)
        _modalities(encoders[modality], modality, name)
    return EncoderOfEach(encoders)


def _load(name: str, options: dict[str, Any]) -> Encoder:
    try:
        return cast(Encoder, load_encoder(name, **options))
    except WeightsError:
        raise
    except (KeyError, FileNotFoundError, ImportError, ValueError) as error:
        raise BackboneError(f"encoder {name}: {error.args[0] if error.args else error}") from error


def _create(arch: dict[str, Any], passed: dict[str, Any]) -> Encoder:
    """An encoder as a checkpoint describes it, or one a modality."""
    name = arch.pop("name")
    if name != PAIR:
        return create_encoder(name, **arch, **passed)
    return EncoderOfEach({modality: _create(dict(each), passed) for modality, each in arch.items()})


def _source(names: Sequence[str], encoder: Encoder) -> dict[str, str]:
    """Name and hash of the weights that training starts from."""
    if isinstance(encoder, EncoderOfEach) and len(names) > 1:
        each = zip(names, encoder.modalities, strict=True)
        hashed = joint_hash([encoder_hash(name, encoder.of(modality)) for name, modality in each])
    else:
        hashed = encoder_hash(names[0], encoder)
    return {"encoder": ",".join(names), "checkpoint_hash": hashed}


def _modalities(encoder: Encoder, modality: str, name: str = "") -> tuple[str, ...]:
    wanted = tuple(MODALITY_NAMES) if modality == BOTH else (modality,)
    if all(each in encoder.modalities for each in wanted):
        return wanted
    said = f"{name}, a {encoder.arch}," if name not in ("", encoder.arch) else encoder.arch
    hint = "; name two encoders: OPTICAL_FILE,SAR_FILE" if modality == BOTH else ""
    raise BackboneError(f"modality={modality!r}: {said} takes {', '.join(encoder.modalities)} images{hint}")


def _widths(encoder: Encoder) -> list[int]:
    try:
        return list(encoder.pyramid_dims)
    except (TypeError, AttributeError):
        raise BackboneError(
            f"{encoder.arch} has no feature maps at strides 4 to 32; take a hivit, a resnet50 or a swin"
        ) from None


def _unreached(encoder: Encoder, modalities: tuple[str, ...]) -> frozenset[str]:
    """Names of the parameters that images of these modalities do not reach.

    They are the patch embeddings or stems of other modalities and, where one comes alone, the attention that
    asks the other. Data-parallel training would wait for their gradients.
    """
    if isinstance(encoder, EncoderOfEach):
        each = {
            name: _unreached(encoder.of(name), (name,) if name in modalities else ())
            for name in encoder.modalities
        }
        return frozenset(f"encoders.{name}.{key}" for name, keys in each.items() for key in keys)
    if not modalities:
        return frozenset(name for name, _ in encoder.named_parameters())
    others = set(encoder.modalities) - set(modalities)
    parts = [f"{part}.{other}." for part in ("patch_embed", "stem") for other in others]
    if len(modalities) == 1:
        parts += [
            f"{name}.cross."
            for name, module in encoder.named_modules()
            if isinstance(module, XAttnEncoder) and not module.reads_itself
        ]
    names = [name for name, _ in encoder.named_parameters()]
    return frozenset(name for name in names if name.startswith(tuple(parts)))


def _frozen(encoder: Encoder, stages: int) -> frozenset[str]:
    """Names of the encoder's parameters that the first stages hold."""
    if not -1 <= stages <= NUM_STAGES:
        raise BackboneError(f"frozen_stages is {stages}; it lies between -1 and {NUM_STAGES}")
    if isinstance(encoder, EncoderOfEach):
        each = {name: _frozen(encoder.of(name), stages) for name in encoder.modalities}
        return frozenset(f"encoders.{name}.{key}" for name, keys in each.items() for key in keys)
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
