"""Registered encoders of a few thousand weights that stand in for the large ones of their kind."""

from collections.abc import Mapping

from codemae.models.encoder import ENCODERS
from codemae.models.resnet import ResNet
from codemae.models.swin import Swin
from codemae.models.vit import ViT

LAYERS, WIDTHS = (1, 1, 1, 1), (4, 4, 8, 16)

SMALL = {
    "resnet50": "resnet_test",
    "resnet50_rda": "resnet_rda_test",
    "swin_base": "swin_test",
    "vit_small": "vit_test",
    "fusmae_vit_base": "fusmae_vit_tiny",
    "hivit_small": "hivit_tiny",
    "hivit_base": "hivit_tiny",
}
"""Arch to the one that stands in for it."""


@ENCODERS.register
def resnet_test(*, img_size: int = 224, channels: Mapping[str, int] | None = None) -> ResNet:
    return ResNet(img_size=img_size, channels=channels, layers=LAYERS, widths=WIDTHS)


@ENCODERS.register
def resnet_rda_test(*, img_size: int = 224, channels: Mapping[str, int] | None = None) -> ResNet:
    return ResNet(img_size=img_size, channels=channels, layers=LAYERS, widths=WIDTHS, attention=True)


@ENCODERS.register
def swin_test(
    *, img_size: int = 224, channels: Mapping[str, int] | None = None, drop_path: float = 0.0
) -> Swin:
    sizes = {"embed_dim": 8, "depths": LAYERS, "num_heads": (1, 1, 2, 2), "window": 2}
    return Swin(img_size=img_size, channels=channels, drop_path=drop_path, **sizes)


@ENCODERS.register
def vit_test(*, img_size: int = 224, channels: Mapping[str, int] | None = None) -> ViT:
    return ViT(img_size=img_size, channels=channels, embed_dim=16, depth=1, num_heads=2)
