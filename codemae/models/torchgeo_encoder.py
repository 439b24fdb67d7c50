"""Peers from torchgeo behind the encoder interface: CROMA, DOFA and its timm models, weights by name."""

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


class TorchGeoEncoder(nn.Module):
    """A torchgeo model with the interface of our encoders.

    CROMA gives its pooled feature of the modality asked for, DOFA its own pooled feature, and the models that
    torchgeo builds on timm the mean of their last tokens or map. Images come standardised by their dataset.

    Args:
        name: As ``torchgeo.models.list_models()`` has it.
        weights: ``SENTINEL2_ALL_MOCO``, ``ResNet50_Weights.SENTINEL2_ALL_MOCO``, or a local file; random ones
            when None.
        img_size: Side of the images; the model's own when not given.

    Attributes:
        channels: Bands it takes, by modality.
        bands: Their names, where torchgeo states them or the model's kind fixes them.

    Raises:
        ImportError: torchgeo is not installed; the message says how to.
        TeacherError: Unknown name or weights, or a model of a kind that gives no image feature.

    Shape:
        images (B, C, H, W) -> (B, D) through ``pooled``.
    """

    def __init__(self, name: str, weights: str | None = None, *, img_size: int | None = None) -> None:
        super().__init__()
        api = _torchgeo()
        if name not in api.list_models():
            known = ", ".join(sorted(api.list_models()))
            raise TeacherError(f"torchgeo has no model {name!r}; it has {known}")
        self.network, meta = _build(api, name, weights)
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
        elif hasattr(self.network, "forward_features"):
            self._pool = self._timm
            channels = int(first_convolution(self.network).shape[1])
            size = int(getattr(self.network, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1])
            ready = ReadyModel(
                network=self.network, mean=(0.0,) * channels, std=(1.0,) * channels, licence="", size=size
            )
            self.extractor = FeatureExtractor(ready).eval()
            stated = tuple(meta.get("bands") or ())
            seen = _modality_of(stated)
            sides = MODALITY_NAMES if seen is None else (seen,)
            for side in sides:
                self.bands[side] = stated if len(stated) == channels else usual_bands(side, channels)
            own_size = img_size or size
        else:
            raise TeacherError(
                f"torchgeo:{name} gives no feature of an image; CROMA, DOFA, ResNet and ViT models do"
            )
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

    def _croma(self, images: Tensor, modality: str) -> Tensor:
        outcome: dict[str, Tensor] = self.network(**{f"x_{modality}": images})
        return outcome[f"{modality}_GAP"]

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


def _build(api: Any, name: str, weights: str | None) -> tuple[nn.Module, dict[str, Any]]:
    if weights is None:
        return api.get_model(name, weights=None), {}
    if Path(weights).is_file():
        state = checkpoint.read_weights(weights)
        first = next((value for value in state.values() if value.ndim == 4), None)
        options = {} if first is None or "croma" in name or "dofa" in name else {"in_chans": first.shape[1]}
        network = api.get_model(name, weights=None, **options)
        checkpoint.load_strictly(network, state, allow_unexpected=(r"(head|classifier|fc)\..*",))
        return network, {}
    try:
        known = api.get_model_weights(name)
        entry = known[weights.rpartition(".")[2]]
    except KeyError:
        raise TeacherError(
            f"torchgeo has no weights {weights!r} of {name}, and there is no such file; see "
            f"torchgeo.models.get_model_weights({name!r})"
        ) from None
    return api.get_model(name, weights=entry), dict(getattr(entry, "meta", {}))


def _modality_of(bands: tuple[str, ...]) -> str | None:
    if not bands:
        return None
    return "sar" if all(band.upper() in ("VV", "VH", "HH", "HV") for band in bands) else "optical"
