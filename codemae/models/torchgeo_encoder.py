"""Peers from torchgeo behind the encoder interface: CROMA, DOFA, Swin and timm models, weights by name."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from codemae import checkpoint
from codemae.modality import MODALITY_NAMES, get_modality
from codemae.models.bands import usual_bands
from codemae.models.timm_features import (
    FeatureExtractor,
    ReadyModel,
    TeacherError,
    as_channels,
    first_convolution,
    to_tokens,
)

# Micrometres: the centres of Sentinel-2 bands; for C-band radar the number that DOFA was trained with.
_OPTICAL_WAVELENGTHS = {"B4": 0.665, "B3": 0.56, "B2": 0.49}
_SAR_WAVELENGTH = 5.405
_EXTRA = "pip install -e '.[torchgeo]'"
_KINDS = "CROMA, DOFA, ResNet, ViT and Swin models do"
# Models of weather, place recognition and masks, and those that also want dates, places or band numbers.
_OTHER_KINDS = ("aurora", "copernicusfm", "earthloc", "panopticon", "unet")
_HEADS = (r"(head|classifier|fc)\..*",)
# What published files leave out: norms that then start as plain ones, and a table made from the image size.
_ABSENT = (*_HEADS, r"fc_norm\..*", r"norm\..*", "attn_bias")


class TorchGeoEncoder(nn.Module):
    """A torchgeo model with the interface of our encoders.

    CROMA gives its pooled feature of the modality asked for, DOFA and Swin their own pooled feature, and the
    models that torchgeo builds on timm the mean of their last tokens or map. Images come standardised by
    their dataset. Tried with torchgeo 0.8.1.

    Args:
        name: As ``torchgeo.models.list_models()`` has it.
        weights: ``SENTINEL2_ALL_MOCO``, ``ResNet50_Weights.SENTINEL2_ALL_MOCO``, or a local file; random ones
            when None.
        img_size: Side of the images; the model's own when not given. CROMA is built for it; DOFA's is fixed.

    Attributes:
        channels: Bands it takes, by modality.
        bands: Their names, where torchgeo states them or the model's kind fixes them.

    Raises:
        ImportError: torchgeo is not installed; the message says how to.
        TeacherError: Unknown name, weights that do not exist or could not be fetched, a size that the model
            cannot take, or a model of a kind that gives no image feature.

    Shape:
        images (B, C, H, W) -> (B, D) through ``pooled``.
    """

    def __init__(self, name: str, weights: str | None = None, *, img_size: int | None = None) -> None:
        super().__init__()
        api = _torchgeo()
        if name not in api.list_models():
            known = ", ".join(sorted(api.list_models()))
            raise TeacherError(f"torchgeo has no model {name!r}; it has {known}")
        if name.startswith(_OTHER_KINDS):
            raise TeacherError(f"torchgeo:{name} gives no feature of an image alone; {_KINDS}")
        self.network, meta = _build(api, name, weights, img_size)
        self.arch = f"torchgeo:{name}"
        self.arch_kwargs: dict[str, Any] = {}
        self.inputs: dict[str, checkpoint.InputSpec] = {}
        self.licence_notes = [f"{self.arch}: {weights}"] if weights else []
        self.bands: dict[str, tuple[str, ...]] = {}
        self._pool: Callable[[Tensor, str], Tensor]
        if hasattr(self.network, "s1_encoder") or hasattr(self.network, "s2_encoder"):
            self._pool = self._croma
            self.bands = {"optical": usual_bands("optical", 12), "sar": usual_bands("sar", 2)}
            own_size = int(getattr(self.network, "image_size", 120))
        elif "wavelengths" in inspect.signature(self.network.forward).parameters:
            self._pool = self._dofa
            self.bands = {"optical": usual_bands("optical", 3), "sar": usual_bands("sar", 2)}
            own_size = int(getattr(self.network, "img_size", 224))
            if img_size not in (None, own_size):
                raise TeacherError(f"torchgeo:{name} takes images of {own_size} x {own_size} only")
        elif isinstance(self.network, SwinTransformer):
            self._pool = self._swin
            self.network.head = nn.Identity()
            self._name_bands(meta)
            own_size = 256 if "_v2_" in name else 224
        elif hasattr(self.network, "forward_features"):
            self._pool = self._timm
            channels = int(first_convolution(self.network).shape[1])
            size = int(getattr(self.network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1])
            ready = ReadyModel(
                network=self.network, mean=(0.0,) * channels, std=(1.0,) * channels, licence="", size=size
            )
            self.extractor = FeatureExtractor(ready).eval()
            self._name_bands(meta)
            own_size = img_size or size
        else:
            raise TeacherError(f"torchgeo:{name} gives no feature of an image; {_KINDS}")
        self.img_size = img_size or own_size
        self.modalities = tuple(side for side in MODALITY_NAMES if side in self.bands)
        self.channels = {side: len(names) for side, names in self.bands.items()}
        side = self.modalities[0]
        with torch.no_grad():
            probe = torch.zeros(1, self.channels[side], self.img_size, self.img_size)
            self.eval()
            self.embed_dim = int(self.pooled(probe, side).shape[1])

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        """One feature an image: (B, C, H, W) -> (B, D)."""
        get_modality(modality)
        return self._pool(as_channels(images, self.channels[modality]), modality)

    def _name_bands(self, meta: dict[str, Any]) -> None:
        """Bands as the weights state them, on the side they belong to; else the usual ones."""
        channels = int(first_convolution(self.network).shape[1])
        stated = tuple(meta.get("bands") or ())
        seen = _modality_of(stated)
        for side in MODALITY_NAMES if seen is None else (seen,):
            self.bands[side] = stated if len(stated) == channels else usual_bands(side, channels)

    def _croma(self, images: Tensor, modality: str) -> Tensor:
        # With both modalities on, its forward pass joins them and fails where one side is missing.
        network: Any = self.network
        both, network.modalities = network.modalities, (modality,)
        try:
            outcome: dict[str, Tensor] = network(**{f"x_{modality}": images})
        finally:
            network.modalities = both
        return outcome[f"{modality}_GAP"]

    def _swin(self, images: Tensor, modality: str) -> Tensor:
        pooled: Tensor = self.network(images)
        return pooled

    def _dofa(self, images: Tensor, modality: str) -> Tensor:
        network: Any = self.network
        if modality == "sar":
            return network.forward_features(images, [_SAR_WAVELENGTH] * images.shape[1])
        return network.forward_features(images, [_OPTICAL_WAVELENGTHS[b] for b in self.bands[modality]])

    def _timm(self, images: Tensor, modality: str) -> Tensor:
        maps = self.extractor(self.extractor.fitted(images))
        return to_tokens(maps[-1]).mean(dim=1)


def _torchgeo() -> Any:
    try:
        return importlib.import_module("torchgeo.models")
    except ImportError as error:
        raise ImportError(f"torchgeo: encoders need the package of that name: {_EXTRA}") from error


def _build(
    api: Any, name: str, weights: str | None, img_size: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    options: dict[str, Any] = {"image_size": img_size} if "croma" in name and img_size else {}
    if weights is None:
        return api.get_model(name, **options), {}
    if Path(weights).is_file():
        state = checkpoint.read_weights(weights)
        first = next((value for value in state.values() if value.ndim == 4), None)
        channels = None if first is None or "croma" in name or "dofa" in name else int(first.shape[1])
        if channels and not name.startswith("swin"):
            options["in_chans"] = channels
        network = api.get_model(name, **options)
        if channels and isinstance(network, SwinTransformer):
            _take_channels(network, channels)
        checkpoint.load_strictly(network, state, allow_missing=_absent(network), allow_unexpected=_HEADS)
        return network, {}
    try:
        known = api.get_model_weights(name)
        entry = known[weights.rpartition(".")[2]]
    except (KeyError, ValueError):
        raise TeacherError(
            f"torchgeo has no weights {weights!r} of {name}, and there is no such file; see "
            f"torchgeo.models.get_model_weights({name!r})"
        ) from None
    try:
        return api.get_model(name, weights=entry, **options), dict(getattr(entry, "meta", None) or {})
    except OSError as error:
        raise TeacherError(
            f"the weights {weights} of torchgeo:{name} could not be fetched ({str(error)[:200]}). Download "
            f"{getattr(entry, 'url', 'them')} where there is a network and pass the file: "
            f"torchgeo:{name}:FILE"
        ) from error


def _absent(network: nn.Module) -> tuple[str, ...]:
    """Keys that torchgeo lets a file leave out: heads, and of its own kinds of models a few more."""
    kept = ("DOFA", "CROMA", "SwinTransformer")
    return _ABSENT if type(network).__name__ in kept else _HEADS


def _take_channels(network: SwinTransformer, channels: int) -> None:
    """Gives torchvision's Swin, which is built for RGB, a first convolution of as many channels."""
    stem: Any = network.features[0]
    first: nn.Conv2d = stem[0]
    if first.in_channels != channels:
        stem[0] = nn.Conv2d(channels, first.out_channels, first.kernel_size, first.stride)  # type: ignore[arg-type]


def _modality_of(bands: tuple[str, ...]) -> str | None:
    if not bands:
        return None
    return "sar" if all(band.upper() in ("VV", "VH", "HH", "HV") for band in bands) else "optical"
