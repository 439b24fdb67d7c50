"""Two modalities become one pyramid; and DeCUR's simple decoder."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, normal_init
from mmengine.registry import MODELS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from torch import Tensor, nn


@MODELS.register_module()
class PyramidFusion(BaseModule):
    """Fuses the maps of two modalities, level by level: 1 x 1 convolution of both, norm, ReLU.

    The shared encoder sees each modality through its own patch embedding, or each has an encoder of its own;
    the backbone with ``modality="both"`` stacks their maps. Where widths allow, the convolution begins as the
    mean of the two maps, so that training starts from what pretraining made alike.

    Args:
        in_channels: Width of each stacked map: twice the encoder's.
        out_channels: Width of the fused maps.
        drop_modality: Chance, in training, that one modality's maps stand in for both; the model then also
            answers to one modality alone. Drawn for each image.
        norm_cfg: Norm of mmcv; None for none.

    Shape:
        (B, 2 D_level, h, w) each -> (B, out_channels, h, w) each.

    Raises:
        ValueError: ``drop_modality`` is no probability, or a map has another width.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        drop_modality: float = 0.0,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if not 0 <= drop_modality <= 1:
            raise ValueError(f"drop_modality is a probability, got {drop_modality}")
        self.in_channels = list(in_channels)
        self.drop_modality = drop_modality
        self.levels = nn.ModuleList(
            ConvModule(width, out_channels, 1, norm_cfg=norm_cfg, act_cfg={"type": "ReLU"})
            for width in self.in_channels
        )
        for level in self.levels:
            start_as_mean(cast(ConvModule, level).conv)

    def init_weights(self) -> None:
        """Keeps the mean that the convolutions begin as: frameworks call this on every module."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The fused pyramid."""
        widths = [level.shape[1] for level in maps]
        if widths != self.in_channels:
            raise ValueError(
                f"the encoder's stacked maps have {widths} channels, model.neck.in_channels of the config is "
                f"{self.in_channels}; set it to the former"
            )
        if self.training and self.drop_modality:
            maps = self._dropped(maps)
        return tuple(fuse(level) for fuse, level in zip(self.levels, maps, strict=True))

    def _dropped(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One modality in place of both, in some images, the same one at every level."""
        draws = torch.rand(2, len(maps[0]), device=maps[0].device)
        drop, first = draws[0] < self.drop_modality, draws[1] < 0.5
        kept = []
        for level in maps:
            one, other = level.chunk(2, dim=1)
            alone = torch.where(first[:, None, None, None], one, other)
            kept.append(torch.where(drop[:, None, None, None], torch.cat([alone, alone], dim=1), level))
        return kept


@torch.no_grad()
def start_as_mean(conv: nn.Conv2d) -> None:
    """Makes a 1 x 1 convolution of two stacked maps their mean, if it keeps the width of one."""
    width = conv.out_channels
    if conv.in_channels != 2 * width:
        return
    half = 0.5 * torch.eye(width)
    conv.weight.copy_(torch.cat([half, half], dim=1)[..., None, None])
    if conv.bias is not None:
        conv.bias.zero_()


@MODELS.register_module()
class SumOfLevelsHead(BaseDecodeHead):
    """DeCUR's fully convolutional decoder: class maps of several levels, upsampled and summed.

    logits = sum_l up(conv_l(x_l)), with one 1 x 1 convolution a level and bilinear upsampling to the size of
    the images; a convolution of one pixel and bilinear upsampling commute, so the order is that which costs
    less.

    Args:
        in_channels: Width of each level that is used.
        in_index: Numbers of these levels; the last three in the paper.
        stride: Of the finest of them.
        **kwargs: Of ``BaseDecodeHead``.

    Of two modalities the maps are stacked, whether two encoders gave them, as in the paper, or one with two
    first convolutions.

    Reference: Wang et al., "Decoupling Common and Unique Representations for Multimodal Self-supervised
        Learning", ECCV 2024, arXiv:2309.05300, section 5.2 and appendix.
    """

    def __init__(
        self, in_channels: Sequence[int], in_index: Sequence[int] = (1, 2, 3), stride: int = 8, **kwargs: Any
    ) -> None:
        super().__init__(
            in_channels=list(in_channels),
            in_index=list(in_index),
            input_transform="multiple_select",
            channels=in_channels[0],
            dropout_ratio=0,
            **kwargs,
        )
        self.stride = stride
        self.conv_seg = nn.Identity()
        self.levels = nn.ModuleList(nn.Conv2d(width, self.out_channels, 1) for width in in_channels)

    def init_weights(self) -> None:
        """Normal weights of deviation 0.01, as heads of mmsegmentation begin."""
        for level in self.levels:
            normal_init(level, std=0.01)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """(B, K, H, W) logits at the size of the images."""
        maps = self._transform_inputs(inputs)
        height, width = maps[0].shape[2:]
        size = (height * self.stride, width * self.stride)
        logits = [
            resize(level(each), size, mode="bilinear", align_corners=self.align_corners)
            for level, each in zip(self.levels, maps, strict=True)
        ]
        return torch.stack(logits).sum(dim=0)
