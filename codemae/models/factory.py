"""Encoders by name, and the one call that loads any of them."""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codemae import checkpoint
from codemae.models.embeddings import ChannelRule
from codemae.models.encoder import ENCODERS, Encoder

for _module in [
    "hivit_archs",
    "resnet",
    "vit",
    "fusion_vit",
    "swin",
]:
    importlib.import_module(f"codemae.models.{_module}")


def create_encoder(name: str, **kwargs: Any) -> Encoder:
    """Builds a registered encoder with fresh weights.

    Args:
        name: One of ``ENCODERS.names()``.
        **kwargs: ``img_size``, ``channels``, ``drop_path``, ``checkpoint_activations``, ``pyramid`` and
            whatever else this encoder takes.

    Raises:
        KeyError: Unknown name; the message names the nearest.
    """
    encoder = ENCODERS.get(name)(**kwargs)
    encoder.arch = name
    passing = ("drop_path", "checkpoint_activations")
    encoder.arch_kwargs = {key: value for key, value in kwargs.items() if key not in passing}
    return encoder


def takes(name: str, option: str) -> bool:
    """Whether the encoder of this name can be built with this keyword argument."""
    parameters = inspect.signature(ENCODERS.get(name)).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@dataclass(kw_only=True)
class EncoderConfig:
    """An encoder to be pretrained.

    ``init``: a file or released name whose encoder weights the run starts from (the paper: iTPN-B pixel);
    empty for fresh ones.
    """

    arch: str = "hivit_base"
    img_size: int = 224
    channels: dict[str, int] = field(default_factory=lambda: {"optical": 3, "sar": 3})
    pyramid: bool = True
    drop_path: float = 0.0
    checkpoint_activations: bool = False
    center: list[str] = field(default_factory=list)
    init: str = ""


def build_encoder(config: EncoderConfig) -> Encoder:
    """Builds an encoder for pretraining, from fresh weights or from those of ``config.init``.

    Raises:
        ValueError: A field is set that this encoder has no use for.
    """
    options = {}
    for entry in fields(config):
        key, value = entry.name, getattr(config, entry.name)
        if key in ("arch", "init"):
            continue
        if takes(config.arch, key):
            options[key] = value
        elif value != (entry.default if entry.default_factory is MISSING else entry.default_factory()):
            raise ValueError(f"method.encoder.{key} means nothing to {config.arch}; leave it out")
    encoder = create_encoder(config.arch, **options)
    if config.init:
        checkpoint.load_strictly(encoder, encoder.fit_state(encoder.read_initial(config.init)))
    return encoder


def load_encoder(
    path_or_name: str | Path,
    *,
    img_size: int | None = None,
    channels: Mapping[str, int] | None = None,
    channel_rule: ChannelRule = "cycle",
    center: Sequence[str] | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> nn.Module:
    """Loads an encoder, strictly, in eval mode.

    Args:
        path_or_name: An ``encoder.safetensors`` file; a foreign checkpoint file; a released name;
            ``random:ARCH`` or ``random:FILE`` (that file's architecture with fresh weights);
            ``timm:NAME`` or ``timm:NAME:FILE`` (local weights, of any number of input channels);
            ``torchgeo:NAME`` or ``torchgeo:NAME:WEIGHTS`` (by torchgeo's name, or a local file);
            ``efficientnet_lite0``.
        img_size: Image side the positions are laid out for; the file's own when not given.
        channels: Input channels by modality where they differ from the file's; of modalities that the file
            has not, nothing is made.
        channel_rule: How patch embeddings adapt to them.
        center: Modalities whose images lose their own mean on entry, where it is to differ from the file's:
            none of them for tasks in which brightness itself is the answer, as water is dark in SAR.
        seed: For ``random:``, the seed of the initialisation; the global generator is left untouched.
        **kwargs: Passed to the encoder (``drop_path``, ``checkpoint_activations``).

    Returns:
        An encoder with the interface of ``Encoder``; ``.inputs`` holds the file's input contract, if any.

    Raises:
        FileNotFoundError: No such file, and no such name.
        codemae.checkpoint.WeightsError: The file is damaged, unsafe, or does not fit.
        ValueError: ``center`` for an encoder that leaves images as they are.
    """
    name = str(path_or_name)
    if name.startswith("random:"):
        return _random_encoder(name.removeprefix("random:"), seed, img_size, channels, center, kwargs)
    if name.startswith(("timm:", "torchgeo:")) or name == "efficientnet_lite0":
        _set_center({}, name, center)
    if name.startswith("timm:") or name == "efficientnet_lite0":
        from codemae.models.timm_encoder import TimmEncoder

        model, _, file = name.removeprefix("timm:").partition(":")
        return TimmEncoder(model, img_size=img_size, weights=file or None).eval()
    if name.startswith("torchgeo:"):
        from codemae.models.torchgeo_encoder import TorchGeoEncoder

        model, _, file = name.removeprefix("torchgeo:").partition(":")
        return TorchGeoEncoder(model, file or None, img_size=img_size).eval()
    from codemae.weights import read_any_encoder

    state, metadata = read_any_encoder(name)
    arch_kwargs = dict(metadata.arch_kwargs)
    if img_size:
        arch_kwargs["img_size"] = img_size
    if channels:
        arch_kwargs["channels"] = _adapted(arch_kwargs, channels)
    _set_center(arch_kwargs, metadata.arch, center)
    encoder = create_encoder(metadata.arch, **arch_kwargs, **kwargs)
    checkpoint.load_strictly(encoder, encoder.fit_state(state, channel_rule))
    encoder.inputs = metadata.inputs
    encoder.metadata = metadata
    return encoder.eval()


def _random_encoder(
    arch: str,
    seed: int,
    img_size: int | None,
    channels: Mapping[str, int] | None,
    center: Sequence[str] | None,
    kwargs: dict[str, Any],
) -> nn.Module:
    inputs = None
    if arch not in ENCODERS and Path(arch).exists():
        metadata = checkpoint.read_encoder(arch)[1]
        kwargs = {**metadata.arch_kwargs, **kwargs}
        arch, inputs = metadata.arch, metadata.inputs
        channels = _adapted(metadata.arch_kwargs, channels) if channels else None
    if img_size:
        kwargs["img_size"] = img_size
    if channels:
        kwargs["channels"] = dict(channels)
    _set_center(kwargs, arch, center)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = create_encoder(arch, **kwargs)
    if inputs is not None:
        encoder.inputs = inputs
    return encoder.eval()


def _adapted(arch_kwargs: Mapping[str, Any], channels: Mapping[str, int]) -> dict[str, int]:
    """Channels of the modalities of a file, where wanted others than its own."""
    own = arch_kwargs.get("channels", {"optical": 3, "sar": 3})
    return {name: channels.get(name, count) for name, count in own.items()}


def _set_center(kwargs: dict[str, Any], arch: str, center: Sequence[str] | None) -> None:
    if center is None:
        return
    if arch in ENCODERS and takes(arch, "center"):
        kwargs["center"] = list(center)
    elif center:
        raise ValueError(f"{arch} cannot center {', '.join(center)} images; give no center")
