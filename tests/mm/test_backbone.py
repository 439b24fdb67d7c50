from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")

import mmdet.registry  # noqa: E402
import mmengine.registry  # noqa: E402
import mmseg.registry  # noqa: E402

from codemae.checkpoint import EncoderMetadata, InputSpec, WeightsError, save_encoder, save_weights  # noqa: E402
from codemae.mm.backbone import BackboneError, CoDeMAEBackbone  # noqa: E402
from codemae.models.factory import create_encoder, load_encoder  # noqa: E402

pytestmark = pytest.mark.mm
SIZE = (64, 96)


def encoder_file(folder: Path, **kwargs: Any) -> Path:
    torch.manual_seed(3)
    encoder = create_encoder("hivit_tiny", img_size=64, **kwargs)
    spec = InputSpec(channels=3, mean=[0.4] * 3, std=[0.2] * 3, scaling="uint8 / 255", size=64)
    metadata = EncoderMetadata(
        arch="hivit_tiny",
        arch_kwargs=encoder.arch_kwargs,
        inputs={"optical": spec, "sar": spec},
        method="codemae",
        steps=7,
        licence_notes=["research only"],
    )
    path = folder / "encoder.safetensors"
    save_encoder(path, encoder, metadata)
    return path


@pytest.mark.parametrize(
    "models",
    [mmengine.registry.MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS],
    ids=["root", "det", "seg"],
)
@pytest.mark.parametrize("prefix", ["", "mmengine."])
def test_every_framework_finds_the_one_registration(models: Any, prefix: str) -> None:
    assert models.get(f"{prefix}CoDeMAEBackbone") is CoDeMAEBackbone
    assert not [key for key in mmdet.registry.MODELS.module_dict if key.startswith("CoDeMAE")]


@pytest.mark.parametrize("modality", ["optical", "sar"])
def test_maps_are_those_of_the_encoder(tmp_path: Path, modality: str) -> None:
    path = encoder_file(tmp_path)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    backbone = CoDeMAEBackbone(encoder=str(path), modality=modality).eval()
    encoder: Any = load_encoder(path)
    with torch.no_grad():
        maps, wanted = backbone(images), encoder.pyramid(images, modality)
    assert len(maps) == 4
    for stride, got, expected in zip((4, 8, 16, 32), maps, wanted, strict=True):
        assert got.shape[2:] == (SIZE[0] // stride, SIZE[1] // stride)
        assert torch.equal(got, expected)


def test_a_map_at_stride_64_is_pooled_from_the_last() -> None:
    images = torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    for kind, pool in (("max", torch.amax), ("average", torch.mean)):
        maps = CoDeMAEBackbone(encoder="random:hivit_tiny", stride64=kind).eval()(images)  # type: ignore[arg-type]
        assert len(maps) == 5 and maps[4].shape[2:] == (2, 3)
        for row in range(2):
            for column in range(3):
                cell = maps[3][:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                torch.testing.assert_close(maps[4][:, :, row, column], pool(cell, dim=(2, 3)))


def test_both_modalities_are_encoded_by_themselves() -> None:
    generator = torch.Generator().manual_seed(2)
    optical, sar = torch.randn(2, 1, 3, *SIZE, generator=generator)
    both = CoDeMAEBackbone(encoder="random:hivit_tiny", modality="both").eval()
    maps = both(torch.cat([optical, sar], dim=1))
    for level, (left, right) in enumerate(
        zip(both.encoder.pyramid(optical, "optical"), both.encoder.pyramid(sar, "sar"), strict=True)
    ):
        assert torch.equal(maps[level], torch.cat([left, right], dim=1))
    assert both.out_channels == [192] * 4


def test_normalised_maps_are_those_of_the_pyramid_with_each_pixel_standardised() -> None:
    images = torch.randn(1, 6, *SIZE, generator=torch.Generator().manual_seed(4))
    backbone = CoDeMAEBackbone(encoder="random:hivit_tiny", modality="both", norm_maps=True).eval()
    for name, norms in backbone.norms.items():
        assert [tuple(norm.weight.shape) for norm in norms] == [(96,)] * 4, name
    sides = [backbone.encoder.pyramid(images[:, c : c + 3], m) for c, m in ((0, "optical"), (3, "sar"))]
    for level, *parts in zip(backbone(images), *sides, strict=True):
        spread = [
            (p - p.mean(1, keepdim=True)) / (p.var(1, keepdim=True, correction=0) + 1e-6) ** 0.5
            for p in parts
        ]
        torch.testing.assert_close(level, torch.cat(spread, dim=1), rtol=1e-4, atol=1e-5)


def test_another_width_is_reached_by_a_convolution_a_level() -> None:
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(4))
    narrow = CoDeMAEBackbone(encoder="random:hivit_tiny", out_channels=32, stride64="max").eval()
    assert narrow.out_channels == [32] * 5
    for level, raw, align in zip(
        narrow(images)[:4], narrow.encoder.pyramid(images, "optical"), narrow.align, strict=True
    ):
        weight, bias = align.weight[:, :, 0, 0], align.bias
        expected = torch.einsum("od,bdhw->bohw", weight, raw) + bias[:, None, None]
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)
    assert len(CoDeMAEBackbone(encoder="random:hivit_tiny", out_channels=96).align) == 0


@pytest.mark.parametrize("arch", ["resnet50", "swin_tiny"])
def test_other_encoders_serve_at_a_config_s_width(arch: str) -> None:
    backbone = CoDeMAEBackbone(encoder=f"random:{arch}", modality="sar", out_channels=16).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in maps] == [(16, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    named = backbone.encoder.named_parameters()
    unused = [name for name, p in named if ".optical." in name and p.requires_grad]
    assert unused == []


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (-1, set()),
        (0, {"absolute_pos_embed", "patch_embed"}),
        (2, {"absolute_pos_embed", "patch_embed", "blocks.0", "blocks.1", "blocks.2", "blocks.3"}),
        (3, {"absolute_pos_embed", "patch_embed", *(f"blocks.{i}" for i in range(8))}),
    ],
)
def test_frozen_stages_learn_nothing_and_stay_in_eval_mode(stages: int, frozen: set[str]) -> None:
    backbone = CoDeMAEBackbone(encoder="random:hivit_tiny", frozen_stages=stages, drop_path=0.5)
    backbone.train()
    sum(level.sum() for level in backbone(torch.randn(1, 3, *SIZE))).backward()  # type: ignore[union-attr]
    still = set()
    for name, parameter in backbone.encoder.named_parameters():
        if parameter.grad is None and "patch_embed.sar" not in name:
            still.add(".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0])
    assert still == frozen
    modes = {name: module.training for name, module in backbone.encoder.blocks.named_children()}
    assert modes == {str(i): f"blocks.{i}" not in frozen for i in range(8)}
    assert not any(p.requires_grad for p in backbone.encoder.get_submodule("patch_embed.sar").parameters())


def test_the_whole_encoder_can_be_frozen_but_not_half_a_resnet() -> None:
    whole = CoDeMAEBackbone(encoder="random:hivit_tiny", frozen_stages=4)
    assert not any(parameter.requires_grad for parameter in whole.parameters())
    with pytest.raises(BackboneError, match="defined for hivit"):
        CoDeMAEBackbone(encoder="random:resnet50", frozen_stages=2)


def test_activation_checkpointing_changes_no_gradient() -> None:
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    grads = []
    for recompute in (False, True):
        backbone = CoDeMAEBackbone(encoder="random:hivit_tiny", checkpoint_activations=recompute).train()
        assert backbone.encoder.checkpoint_activations is recompute
        sum((level**2).sum() for level in backbone(images)).backward()  # type: ignore[union-attr]
        grads.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 50
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name])


def test_initialisation_by_a_framework_keeps_the_weights(tmp_path: Path) -> None:
    path = encoder_file(tmp_path)
    backbone = CoDeMAEBackbone(encoder=str(path))
    backbone.init_weights()
    wanted = load_encoder(path).state_dict()
    got = backbone.encoder.state_dict()
    assert got.keys() == wanted.keys() and all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs one of encoder"),
        ({"encoder": "random:vit_small"}, "no feature maps at strides"),
        ({"encoder": "random:hivit_tiny", "modality": "thermal"}, "takes optical, sar images"),
        ({"encoder": "random:hivit_tiny", "stride64": "sum"}, "stride64"),
        ({"encoder": "random:hivit_tiny", "frozen_stages": 5}, "between -1 and 4"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        CoDeMAEBackbone(**options)


def test_a_file_that_does_not_fit_ends_in_an_error_and_not_in_random_weights(tmp_path: Path) -> None:
    path = encoder_file(tmp_path)
    state = load_encoder(path).state_dict()
    del state["blocks.4.attn.qkv.weight"]
    save_weights(tmp_path / "cut.safetensors", state)
    with pytest.raises(WeightsError):
        CoDeMAEBackbone(encoder=str(tmp_path / "cut.safetensors"))
