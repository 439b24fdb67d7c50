"""ResNet-50 behind the encoder interface, plain or with residual deformable attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from codemae import checkpoint
from codemae.models.deformable import DeformableAttention
from codemae.models.embeddings import ChannelRule, fit_patch_embeddings
from codemae.models.encoder import ENCODERS, Encoder
from codemae.models.filling import resize_mask
from codemae.models.timm_features import as_channels

HEAD_CHANNELS = 128
STEM_CHANNELS = 64


class ResNet(Encoder):
    """timm's bottleneck ResNet; modalities share all of it but the first convolution.

    With ``attention`` a deformable attention with residual follows each of the last two stages: heads of 128
    channels; 4 groups, stride 2 and kernel 5 after the third, 8 groups, stride 1 and kernel 3 after the
    fourth. Tokens are the cells of the last map.

    Args:
        img_size: Side of the images the attention's position bias is laid out for.
        channels: Input channels of each modality.
        layers: Blocks of the four stages.
        widths: Bottleneck widths of the four stages; a stage puts out four times as many channels.
        attention: Whether there is deformable attention.
        residual: Whether the attention adds to the map (RDA) or replaces it (the paper's ablation, DA).
        drop_path: Largest stochastic depth rate.

    Reference: He et al., "Deep Residual Learning", CVPR 2016; the attention: DeCUR section 3.2 and
        appendix B.1.
    """

    patch_size = 32

    def __init__(
        self,
        *,
        img_size: int = 224,
        channels: Mapping[str, int] | None = None,
        layers: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        attention: bool = False,
        residual: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.channels = dict(channels or {"optical": 3, "sar": 3})
        # timm's annotation asks for an instance where a class is meant.
        block: Any = Bottleneck
        trunk: Any = TimmResNet(
            block,
            tuple(layers),
            num_classes=0,
            channels=tuple(widths),
            drop_path_rate=drop_path,
        )
        trunk.conv1 = nn.Identity()
        self.trunk = trunk
        self.stem = nn.ModuleDict({name: _first_convolution(count) for name, count in self.channels.items()})
        self.widths = [4 * width for width in widths]
        self.embed_dim = self.widths[-1]
        self.attention = nn.ModuleDict()
        if attention:
            for stage, groups, stride, kernel in ((3, 4, 2, 5), (4, 8, 1, 3)):
                dim, side = self.widths[stage - 1], -(-img_size // 2 ** (stage + 1))
                self.attention[str(stage)] = DeformableAttention(
                    dim,
                    num_heads=max(dim // HEAD_CHANNELS, groups),
                    groups=groups,
                    stride=stride,
                    kernel_size=kernel,
                    grid=(side, side),
                    residual=residual,
                )

    @property
    def pyramid_dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps of ``pyramid``."""
        first, second, third, fourth = self.widths
        return first, second, third, fourth

    def pyramid(self, images: Tensor, modality: str) -> list[Tensor]:
        """The outputs of the four stages, attention included: (B, D_level, H/s, W/s), s = 4, 8, 16, 32."""
        return self._stages(self._after_stem({modality: images}))

    def _after_stem(self, images: Mapping[str, Tensor]) -> Tensor:
        """Maps at stride 4, stacked in the mapping's order; one norm sees them all."""
        for name in images:
            self.check_modality(name)
        trunk: Any = self.trunk
        x = torch.cat(
            [self.stem[name](as_channels(image, self.channels[name])) for name, image in images.items()]
        )
        return trunk.maxpool(trunk.act1(trunk.bn1(x)))

    def _stages(self, x: Tensor) -> list[Tensor]:
        trunk: Any = self.trunk
        maps = []
        for number, stage in enumerate((trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4), start=1):
            x = stage(x)
            if str(number) in self.attention:
                x = self.attention[str(number)](x)
            maps.append(x)
        return maps

    @property
    def stem_dim(self) -> int:
        """Width of what a mask token is added to."""
        return STEM_CHANNELS

    def encode_filled(
        self,
        images: Mapping[str, Tensor],
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """The last feature maps of filled images, stacked in the mapping's order; see ``Encoder``."""
        x = self._after_stem(images)
        if mask is not None and mask_token is not None:
            x = x + (resize_mask(mask, x.shape[-2:]) * mask_token[:, None, None]).to(x.dtype)
        return self._stages(x)[-1]

    def forward(self, images: Tensor, modality: str) -> Tensor:
        """The cells of the last map: (B, C, H, W) -> (B, H/32 * W/32, D)."""
        return rearrange(self.pyramid(images, modality)[-1], "b d h w -> b (h w) d")

    def layer_ids(self) -> dict[str, int]:
        """Stem 0, then a number a block; attention has that of the block before it."""
        depths = [len(getattr(self.trunk, f"layer{stage}")) for stage in range(1, 5)]
        ids = {}
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            if part == "attention":
                ids[name] = sum(depths[: int(rest.split(".")[0])])
            elif rest.startswith("layer"):
                stage, block = rest.split(".")[:2]
                ids[name] = sum(depths[: int(stage[-1]) - 1]) + int(block) + 1
            else:
                ids[name] = 0
        return ids

    def read_initial(self, path_or_name: str) -> dict[str, Tensor]:
        """Weights of one of our files, or of a ResNet file of torchvision or timm.

        The latter's first convolution serves every modality, its classifier is left out, and the attention,
        which such a file does not have, keeps the weights it was given.
        """
        if checkpoint.is_encoder_file(path_or_name):
            return super().read_initial(path_or_name)
        state = {}
        for key, value in checkpoint.read_weights(path_or_name).items():
            if key == "conv1.weight":
                state.update({f"stem.{name}.weight": value for name in self.channels})
            elif not key.startswith("fc."):
                state[f"trunk.{key}"] = value
        own = self.state_dict()
        return state | {key: own[key] for key in own if key.startswith("attention.")}

    def fit_state(self, state: Mapping[str, Tensor], rule: ChannelRule = "cycle") -> dict[str, Tensor]:
        """Fits first convolutions to this encoder's channels and position biases to its image size."""
        fitted = fit_patch_embeddings(state, self.channels, rule, key="stem.{}.weight")
        own = self.state_dict()
        for key in [key for key in fitted if key.endswith(".bias_table")]:
            if key in own and own[key].shape != fitted[key].shape:
                resized = F.interpolate(
                    fitted[key][None].float(), own[key].shape[1:], mode="bicubic", align_corners=True
                )
                fitted[key] = resized[0]
        return fitted


def _first_convolution(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, STEM_CHANNELS, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


@ENCODERS.register
def resnet50(
    *, img_size: int = 224, channels: Mapping[str, int] | None = None, drop_path: float = 0.0
) -> ResNet:
    """ResNet-50: width 2048, 3 + 4 + 6 + 3 blocks."""
    return ResNet(img_size=img_size, channels=channels, drop_path=drop_path)


@ENCODERS.register
def resnet50_rda(
    *,
    img_size: int = 224,
    channels: Mapping[str, int] | None = None,
    drop_path: float = 0.0,
    residual: bool = True,
) -> ResNet:
    """ResNet-50 of DeCUR: deformable attention after the last two stages."""
    return ResNet(
        img_size=img_size, channels=channels, drop_path=drop_path, attention=True, residual=residual
    )
