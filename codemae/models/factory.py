"""Encoders by name, and the one call that loads any of them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codemae import checkpoint
from codemae.models.embeddings import ChannelRule, adapt_channels, resize_pos_embed
from codemae.models.hivit import HiViT
from codemae.models.itpn import ITPN
from codemae.registry import Registry

ENCODERS: Registry[Callable[..., HiViT]] = Registry("encoder")


def _hivit(arch: str, pyramid: bool, fpn_dim: int, **kwargs: Any) -> HiViT:
    return ITPN(arch=arch, fpn_dim=fpn_dim, **kwargs) if pyramid else HiViT(arch=arch, **kwargs)


@ENCODERS.register
def hivit_tiny(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """Ours, for two CPU cores: width 192, 1 + 1 + 4 blocks, 3 heads; no published counterpart."""
    return _hivit("hivit_tiny", pyramid, 96, embed_dim=192, depths=(1, 1, 4), num_heads=3, **kwargs)


@ENCODERS.register
def hivit_small(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-S: width 384, 4 + 4 + 20 blocks, 6 heads; its paper counts two MLP blocks of the stem as one."""
    return _hivit("hivit_small", pyramid, 256, embed_dim=384, depths=(4, 4, 20), num_heads=6, **kwargs)


@ENCODERS.register
def hivit_base(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-B as iTPN and CoDe-MAE use it: width 512, 3 + 3 + 24 blocks, 8 heads; 77.9 M parameters."""
    return _hivit("hivit_base", pyramid, 256, embed_dim=512, depths=(3, 3, 24), num_heads=8, **kwargs)


@ENCODERS.register
def hivit_base20(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-B as its authors and SARATR-X release it: width 512, 4 + 4 + 20 blocks, 8 heads."""
    return _hivit("hivit_base20", pyramid, 256, embed_dim=512, depths=(4, 4, 20), num_heads=8, **kwargs)


@ENCODERS.register
def hivit_large(pyramid: bool = True, **kwargs: Any) -> HiViT:
    """HiViT-L: width 768, 2 + 2 + 40 blocks, 12 heads."""
    return _hivit("hivit_large", pyramid, 256, embed_dim=768, depths=(2, 2, 40), num_heads=12, **kwargs)


def create_encoder(name: str, **kwargs: Any) -> HiViT:
    """Builds a registered encoder with fresh weights.

    Args:
        name: One of ``ENCODERS.names()``.
        **kwargs: ``img_size``, ``channels``, ``pyramid``, ``drop_path``, ``checkpoint_activations``.

    Raises:
        KeyError: Unknown name; the message names the nearest.
    """
    encoder = ENCODERS.get(name)(**kwargs)
    structural = ("img_size", "channels", "pyramid", "fpn_depth", "center")
    encoder.arch_kwargs = {key: kwargs[key] for key in structural if key in kwargs}
    return encoder


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


def build_encoder(config: EncoderConfig) -> HiViT:
    """Builds an encoder for pretraining, from fresh weights or from those of ``config.init``."""
    fields = {key: value for key, value in vars(config).items() if key not in ("arch", "init")}
    encoder = create_encoder(config.arch, **fields)
    if config.init:
        from codemae.weights import read_encoder_state

        state = read_encoder_state(config.init, pyramid=config.pyramid)
        checkpoint.load_strictly(encoder, fit_state(state, encoder))
    return encoder


def load_encoder(
    path_or_name: str | Path,
    *,
    img_size: int | None = None,
    channels: Mapping[str, int] | None = None,
    channel_rule: ChannelRule = "cycle",
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
        channels: Input channels by modality where they differ from the file's.
        channel_rule: How patch embeddings adapt to them.
        seed: For ``random:``, the seed of the initialisation; the global generator is left untouched.
        **kwargs: Passed to the encoder (``drop_path``, ``checkpoint_activations``).

    Returns:
        An encoder with the interface of ``HiViT``; ``.inputs`` holds the file's input contract, if any.

    Raises:
        FileNotFoundError: No such file, and no such name.
        codemae.checkpoint.WeightsError: The file is damaged, unsafe, or does not fit.
    """
    name = str(path_or_name)
    if name.startswith("random:"):
        return _random_encoder(name.removeprefix("random:"), seed, img_size, channels, kwargs)
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
        arch_kwargs["channels"] = {**arch_kwargs.get("channels", {"optical": 3, "sar": 3}), **channels}
    encoder = create_encoder(metadata.arch, **arch_kwargs, **kwargs)
    checkpoint.load_strictly(encoder, fit_state(state, encoder, channel_rule))
    encoder.inputs = metadata.inputs
    encoder.metadata = metadata
    return encoder.eval()


def fit_state(state: Mapping[str, Tensor], encoder: HiViT, rule: ChannelRule = "cycle") -> dict[str, Tensor]:
    """Fits positions to the encoder's grid and patch embeddings to its channels; all else is untouched."""
    fitted = dict(state)
    if (key := "absolute_pos_embed") in fitted and fitted[key].shape != encoder.absolute_pos_embed.shape:
        fitted[key] = resize_pos_embed(fitted[key], encoder.grid)
    for key, value in state.items():
        found = re.fullmatch(r"patch_embed\.(\w+)\.proj\.weight", key)
        if found and found[1] in encoder.channels:
            fitted[key] = adapt_channels(value, encoder.channels[found[1]], rule)
    return fitted


def _random_encoder(
    arch: str, seed: int, img_size: int | None, channels: Mapping[str, int] | None, kwargs: dict[str, Any]
) -> nn.Module:
    inputs = None
    if arch not in ENCODERS and Path(arch).exists():
        metadata = checkpoint.read_encoder(arch)[1]
        kwargs = {**metadata.arch_kwargs, **kwargs}
        arch, inputs = metadata.arch, metadata.inputs
    if img_size:
        kwargs["img_size"] = img_size
    if channels:
        kwargs["channels"] = dict(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = create_encoder(arch, **kwargs)
    if inputs is not None:
        encoder.inputs = inputs
    return encoder.eval()
