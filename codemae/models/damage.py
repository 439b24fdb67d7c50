"""Two dates, one encoder: which buildings stood before, and what became of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from codemae.models.hivit import HiViT

DamageHead = Literal["damageformer", "upernet", "difference"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DamageOutput:
    """Logits at the size of the images; None where the dates given do not define them.

    Attributes:
        localisation: (B, 2, H, W), background and building.
        damage: (B, K, H, W), background and what became of the building; needs both dates.
        post_localisation: (B, 2, H, W), buildings seen in the second date alone.
    """

    localisation: Tensor | None = None
    damage: Tensor | None = None
    post_localisation: Tensor | None = None


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm beside a 1 x 1 shortcut."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(in_dim, dim, 1, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim, H, W) -> (B, dim, H, W)."""
        return F.relu(self.body(x) + self.shortcut(x))


class DamageFormerHead(nn.Module):
    """All scales of a date resized to stride 4 and joined; both dates joined for the damage.

    ::

        pre levels  -> stride 4, concatenated -> ResidualBlock -+-> 1 x 1: background, building
                                                                +-> both -> ResidualBlock -> 1 x 1: damage
        post levels -> stride 4, concatenated -> ResidualBlock -+-> (1 x 1: building in the second date)

    Args:
        dims: Channels of the levels, fine to coarse.
        num_classes: K, background included.
        width: Channels after each block.
        post_localisation: Whether the second date has a localisation of its own, so that the trained model
            also answers with that date alone.

    Differs from the authors' code: theirs has one encoder a date, here both dates share one (as in CoDe-MAE);
    the localisation of the second date is ours.

    Reference: Chen et al., "Dual-tasks siamese transformer framework for building damage assessment", IGARSS
    2022, arXiv:2201.10953; Chen et al., "BRIGHT", ESSD 2025, arXiv:2501.06019.
    """

    single_dates = True

    def __init__(
        self, dims: Sequence[int], num_classes: int, width: int = 256, *, post_localisation: bool = False
    ) -> None:
        super().__init__()
        self.pre = ResidualBlock(sum(dims), width)
        self.post = ResidualBlock(sum(dims), width)
        self.fused = ResidualBlock(2 * width, width)
        self.localise = nn.Conv2d(width, 2, 1)
        self.localise_post = nn.Conv2d(width, 2, 1) if post_localisation else None
        self.assess = nn.Conv2d(width, num_classes, 1)

    def forward(self, pre: list[Tensor] | None, post: list[Tensor] | None) -> DamageOutput:
        """Levels (B, C_l, H/s_l, W/s_l) of the dates there are -> logits at the finest stride."""
        before = None if pre is None else self.pre(_joined(pre))
        after = None if post is None else self.post(_joined(post))
        return DamageOutput(
            localisation=None if before is None else self.localise(before),
            damage=(
                None
                if before is None or after is None
                else self.assess(self.fused(torch.cat([before, after], dim=1)))
            ),
            post_localisation=(
                None if after is None or self.localise_post is None else self.localise_post(after)
            ),
        )


class PyramidPooling(nn.Module):
    """Averages over 1, 2, 3 and 6 cells a side beside the map itself, then a 3 x 3 convolution."""

    def __init__(self, in_dim: int, dim: int, cells: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.cells = tuple(cells)
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_dim, dim, 1), nn.ReLU(inplace=True)) for _ in self.cells
        )
        self.fuse = _conv(in_dim + dim * len(self.cells), dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim, h, w) -> (B, dim, h, w)."""
        pooled = [
            _resized(reduce(F.adaptive_avg_pool2d(x, side)), x.shape[-2:])
            for side, reduce in zip(self.cells, self.reduce, strict=True)
        ]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class TopDownPyramid(nn.Module):
    """Pyramid pooling on the coarsest level, a top-down path, all levels joined at the finest stride.

    Reference: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018.
    """

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.top = PyramidPooling(dims[-1], dim)
        self.lateral = nn.ModuleList(_conv(each, dim, 1) for each in dims[:-1])
        self.smooth = nn.ModuleList(_conv(dim, dim, 3) for _ in dims[:-1])
        self.fuse = _conv(dim * len(dims), dim, 3)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Levels, fine to coarse -> (B, dim, H/4, W/4)."""
        maps = [self.top(levels[-1])]
        for level, lateral in zip(levels[-2::-1], list(self.lateral)[::-1], strict=True):
            maps.append(lateral(level) + _resized(maps[-1], level.shape[-2:]))
        smoothed = [smooth(level) for level, smooth in zip(maps[:0:-1], self.smooth, strict=True)]
        return self.fuse(_joined([*smoothed, maps[0]]))


class UperNetHead(nn.Module):
    """Plain UperNet on the concatenated levels of both dates; both answers come from the same features.

    Args:
        dims: Channels of the levels of one date, fine to coarse.
        num_classes: K, background included.
        width: Channels of the pyramid.
    """

    single_dates = False

    def __init__(self, dims: Sequence[int], num_classes: int, width: int = 256) -> None:
        super().__init__()
        self.pyramid = TopDownPyramid([2 * dim for dim in dims], width)
        self.localise = nn.Conv2d(width, 2, 1)
        self.assess = nn.Conv2d(width, num_classes, 1)

    def forward(self, pre: list[Tensor], post: list[Tensor]) -> DamageOutput:
        """Levels of both dates -> logits at the finest stride."""
        features = self.pyramid([torch.cat(pair, dim=1) for pair in zip(pre, post, strict=True)])
        return DamageOutput(localisation=self.localise(features), damage=self.assess(features))


class DifferenceHead(nn.Module):
    """Absolute differences of the projected levels tell the change, the first date tells the buildings.

    Each date has a 1 x 1 projection a level, since features of two sensors are not comparable as they are.

    Args:
        dims: Channels of the levels of one date, fine to coarse.
        num_classes: K, background included.
        width: Channels of the pyramids.
    """

    single_dates = False

    def __init__(self, dims: Sequence[int], num_classes: int, width: int = 256) -> None:
        super().__init__()
        self.project_pre = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in dims)
        self.project_post = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in dims)
        self.buildings = TopDownPyramid([width] * len(dims), width)
        self.changes = TopDownPyramid([width] * len(dims), width)
        self.localise = nn.Conv2d(width, 2, 1)
        self.assess = nn.Conv2d(2 * width, num_classes, 1)

    def forward(self, pre: list[Tensor], post: list[Tensor]) -> DamageOutput:
        """Levels of both dates -> logits at the finest stride."""
        before = [project(level) for project, level in zip(self.project_pre, pre, strict=True)]
        after = [project(level) for project, level in zip(self.project_post, post, strict=True)]
        buildings = self.buildings(before)
        changes = self.changes([(a - b).abs() for a, b in zip(after, before, strict=True)])
        return DamageOutput(
            localisation=self.localise(buildings),
            damage=self.assess(torch.cat([buildings, changes], dim=1)),
        )


class DamageModel(nn.Module):
    """The shared encoder's pyramid of each date, and a head.

    The coarsest level of a HiViT, which has none of its own at stride 32, is the maximum over 2 x 2 of the
    level at stride 16, as in CoDe-MAE's code; other encoders bring their own.

    Args:
        encoder: With ``pyramid(images, modality)`` and ``pyramid_dims``.
        num_classes: K, background included.
        pre_modality: Of the first date's images.
        post_modality: Of the second date's images.
        head: ``damageformer``, ``upernet`` or ``difference``.
        width: Channels inside the head.
        post_localisation: Whether buildings are also found in the second date alone (``damageformer``).
        norm_levels: LayerNorm over the channels of each level before the head, as pretraining's decoder has.
            The coarse levels of a pretrained HiViT are several times as large as the fine ones.
        seed: Of the head's first weights; the global generator is left untouched.

    Shape:
        pre, post (B, C, H, W), sides divisible by 16, either of them None -> logits of (H, W).
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_classes: int,
        *,
        pre_modality: str = "optical",
        post_modality: str = "sar",
        head: DamageHead = "damageformer",
        width: int = 256,
        post_localisation: bool = False,
        norm_levels: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pre_modality = pre_modality
        self.post_modality = post_modality
        self.num_classes = num_classes
        dims = tuple(cast(Any, encoder).pyramid_dims)
        self.norms = nn.ModuleList(LayerNorm2d(dim) for dim in dims if norm_levels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if head == "damageformer":
                self.head: nn.Module = DamageFormerHead(
                    dims, num_classes, width, post_localisation=post_localisation
                )
            elif head == "upernet":
                self.head = UperNetHead(dims, num_classes, width)
            else:
                self.head = DifferenceHead(dims, num_classes, width)
        if post_localisation and head != "damageformer":
            raise ValueError(f"the {head} head needs both dates and cannot localise in the second one alone")
        self.encoder.requires_grad_(True)

    @property
    def answers(self) -> tuple[str, ...]:
        """Which dates the model answers with: some of ``both``, ``pre``, ``post``."""
        if not isinstance(self.head, DamageFormerHead):
            return ("both",)
        return ("both", "pre") if self.head.localise_post is None else ("both", "pre", "post")

    def levels(self, images: Tensor, modality: str) -> list[Tensor]:
        """Maps at strides 4, 8, 16, 32."""
        maps = list(cast(Any, self.encoder).pyramid(images, modality))
        if isinstance(self.encoder, HiViT):
            maps[-1] = F.max_pool2d(maps[-2], 2, ceil_mode=True)
        if self.norms:
            maps = [norm(level) for norm, level in zip(self.norms, maps, strict=True)]
        return maps

    def forward(self, pre: Tensor | None, post: Tensor | None) -> DamageOutput:
        """Logits of what the given dates define.

        Raises:
            ValueError: This model does not answer with these dates.
        """
        given = "both" if pre is not None and post is not None else "post" if pre is None else "pre"
        images = post if pre is None else pre
        if images is None or given not in self.answers:
            raise ValueError(
                f"this model answers with {', '.join(self.answers)}, not with {given} alone"
                if images is not None
                else "neither date is given"
            )
        before = None if pre is None else self.levels(pre, self.pre_modality)
        after = None if post is None else self.levels(post, self.post_modality)
        out = self.head(before, after)
        size = images.shape[-2:]
        return DamageOutput(
            localisation=_resized_logits(out.localisation, size),
            damage=_resized_logits(out.damage, size),
            post_localisation=_resized_logits(out.post_localisation, size),
        )


def damage_probabilities(output: DamageOutput) -> Mapping[str, Tensor]:
    """Softmax of what an output holds: ``building`` (B, H, W) and, with both dates, ``damage`` (B, K, H, W).

    With the second date alone its own localisation is the building probability.
    """
    localisation = output.post_localisation if output.localisation is None else output.localisation
    assert localisation is not None
    found = {"building": localisation.float().softmax(dim=1)[:, 1]}
    if output.damage is not None:
        found["damage"] = output.damage.float().softmax(dim=1)
    return found


def _conv(in_dim: int, dim: int, side: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, dim, side, padding=side // 2, bias=False),
        nn.BatchNorm2d(dim),
        nn.ReLU(inplace=True),
    )


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _joined(levels: list[Tensor]) -> Tensor:
    """All levels at the finest one's size, side by side."""
    size = levels[0].shape[-2:]
    return torch.cat([levels[0], *(_resized(level, size) for level in levels[1:])], dim=1)


def _resized_logits(logits: Tensor | None, size: Sequence[int]) -> Tensor | None:
    return None if logits is None else _resized(logits.float(), size)
