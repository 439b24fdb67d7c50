"""Our encoder against OpenMMLab's independent HiViT and iTPN neck, with weights copied across."""

import re

import pytest
import torch
from torch import Tensor, nn

from codemae.models.factory import create_encoder
from codemae.models.hivit import HiViT
from codemae.models.itpn import ITPN

pytest.importorskip("mmpretrain", reason="pip install onedl-mmpretrain model-index ordered-set")

# More attention blocks than stem entries: theirs takes an output index for either list otherwise.
WIDTH, DEPTHS, HEADS = 64, (2, 2, 8), 4
EPS = {"type": "LN", "eps": 1e-6}


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    module.eval()  # theirs returns None
    return module


def reference(side: int) -> nn.Module:
    from mmpretrain.models.backbones.hivit import HiViT as Theirs

    # Their depths count two MLP blocks of the stem as one.
    stem, _, attention = DEPTHS
    arch = {"embed_dims": WIDTH, "depths": [stem // 2, stem // 2, attention], "num_heads": HEADS}
    return scrambled(Theirs(arch=arch, img_size=side, norm_cfg=EPS))


def copied(ours: HiViT, theirs: nn.Module) -> dict[str, Tensor]:
    state = {}
    for key, value in theirs.state_dict().items():
        if key == "pos_embed":
            state["absolute_pos_embed"] = value
        elif key.startswith("patch_embed."):
            state |= {key.replace("patch_embed.", f"patch_embed.{name}."): value for name in ours.modalities}
        else:
            state[key] = value
    return state


def test_trunk_gives_the_same_tokens() -> None:
    torch.manual_seed(0)
    theirs = reference(64)
    ours = HiViT(arch="test", img_size=64, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS)
    ours.load_state_dict(copied(ours, theirs))
    images = torch.randn(2, 3, 64, 64)
    expected = theirs(images)[-1]  # (B, D, h, w)
    given = ours.eval()(images, "sar")
    torch.testing.assert_close(given, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_pyramid_gives_the_same_maps() -> None:
    from mmpretrain.models.necks.itpn_neck import iTPNPretrainDecoder

    torch.manual_seed(0)
    fpn = 32
    neck = scrambled(
        iTPNPretrainDecoder(
            num_patches=16,
            embed_dim=WIDTH,
            fpn_dim=fpn,
            fpn_depth=1,
            decoder_embed_dim=64,
            decoder_depth=1,
            decoder_num_heads=4,
        ),
        seed=1,
    )
    theirs = reference(64)
    ours = ITPN(
        arch="test", img_size=64, embed_dim=WIDTH, depths=DEPTHS, num_heads=HEADS, fpn_dim=fpn, fpn_depth=1
    )
    pyramid = {k: v for k, v in neck.state_dict().items() if not re.match(r"decoder|mask_token|ln", k)}
    ours.load_state_dict(copied(ours, theirs) | pyramid)
    ours.eval()
    images = torch.randn(2, 3, 64, 64)
    features = ours.encode({"optical": images})

    # Their neck hands each level to its decoder embedding; it is read off there.
    caught: list[Tensor] = []
    for embed in neck.decoder_embed:  # type: ignore[union-attr]
        embed.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    neck((features.stride4, features.stride8, features.tokens), ids_restore=torch.arange(16).expand(2, -1))
    for level, expected in zip(ours.level_features(features), caught, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-4)


def test_published_small_encoder_has_the_published_size() -> None:
    from mmpretrain.models.backbones.hivit import HiViT as Theirs

    ours = create_encoder("hivit_small", pyramid=False, channels={"optical": 3})
    theirs = Theirs(arch="small")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
