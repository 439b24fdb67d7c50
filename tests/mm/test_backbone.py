from pathlib import Path
from typing import Any

import pytest
import small_encoders  # noqa: F401
import torch
from gradients import reached_parameters

pytest.importorskip("mmengine")

import mmdet.registry  # noqa: E402
import mmengine.registry  # noqa: E402
import mmseg.registry  # noqa: E402
from mm.encoder_data import encoder_file  # noqa: E402

from codemae.checkpoint import WeightsError, load_strictly, save_weights  # noqa: E402
from codemae.mm.backbone import BackboneError, CoDeMAEBackbone, EncoderOfEach, _frozen  # noqa: E402
from codemae.mm.checkpoints import ENCODER_KEY, export_encoder  # noqa: E402
from codemae.models.factory import create_encoder, load_encoder  # noqa: E402
from codemae.models.layer_decay import _scales  # noqa: E402

pytestmark = pytest.mark.mm
SIZE = (64, 96)


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


ONE_MODALITY = [("hivit_tiny", {"sar": 3}), ("resnet_test", {"sar": 1}), ("resnet_rda_test", {"sar": 3})]
CHANNELS = {"optical": 3, "sar": 3}


@pytest.mark.parametrize(("arch", "own"), ONE_MODALITY)
@pytest.mark.parametrize("random", [False, True])
def test_a_file_of_one_modality_serves_a_config_that_states_the_channels_of_two(
    tmp_path: Path, arch: str, own: dict[str, int], random: bool
) -> None:
    path = encoder_file(tmp_path, arch, channels=own)
    name = f"random:{path}" if random else str(path)
    backbone = CoDeMAEBackbone(encoder=name, modality="sar", channels=CHANNELS).eval()
    assert backbone.encoder.channels == {"sar": 3}
    gray = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(6))
    if not random:
        wanted = load_encoder(path).pyramid(gray.expand(-1, own["sar"], -1, -1), "sar")  # type: ignore[operator]
        for got, expected in zip(backbone(gray.expand(-1, 3, -1, -1)), wanted, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(BackboneError, match=r"encoder.safetensors, a .*takes sar images$"):
        CoDeMAEBackbone(encoder=name, modality="optical", channels=CHANNELS)
    with pytest.raises(BackboneError, match="takes sar images; name two encoders: OPTICAL_FILE,SAR_FILE"):
        CoDeMAEBackbone(encoder=name, modality="both", channels=CHANNELS)


@pytest.mark.parametrize("arch", ["hivit_tiny", "resnet_test"])
def test_two_files_see_each_its_own_modality_and_are_rebuilt_from_their_description(
    tmp_path: Path, arch: str
) -> None:
    left = encoder_file(tmp_path, arch, "encoder_optical", seed=1, channels={"optical": 3})
    right = encoder_file(tmp_path, arch, "encoder_sar", seed=2, channels={"sar": 1})
    options: dict[str, Any] = {"modality": "both", "channels": CHANNELS, "center": []}
    backbone = CoDeMAEBackbone(encoder=f"{left},{right}", **options).eval()
    images = torch.randn(1, 6, *SIZE, generator=torch.Generator().manual_seed(7))
    optical: Any = load_encoder(left)
    sar: Any = load_encoder(right, channels={"sar": 3})
    maps = backbone(images)
    sides = optical.pyramid(images[:, :3], "optical"), sar.pyramid(images[:, 3:], "sar")
    for level, *parts in zip(maps, *sides, strict=True):
        assert torch.equal(level, torch.cat(parts, dim=1))

    reached = reached_parameters(backbone.train())
    sum((level**2).sum() for level in backbone(images)).backward()  # type: ignore[union-attr]
    assert reached == {name for name, _ in backbone.named_parameters()}

    described = backbone.description()
    assert described["method"] == "codemae" and set(described["inputs"]) == {"optical", "sar"}
    again = CoDeMAEBackbone(
        arch={"name": described["arch"], **described["arch_kwargs"]}, modality="both", source=backbone.source
    )
    load_strictly(again, backbone.state_dict())
    for got, expected in zip(again.eval()(images), backbone.eval()(images), strict=True):
        assert torch.equal(got, expected)
    assert again.source["encoder"] == f"{left},{right}"
    held = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    torch.save({"state_dict": held, "meta": {ENCODER_KEY: described}}, tmp_path / "iter_1.pth")
    export_encoder(tmp_path / "iter_1.pth", tmp_path / "back.safetensors", modality="sar")
    back: Any = load_encoder(tmp_path / "back.safetensors")
    assert (back.arch, back.modalities) == (arch, ("sar",))
    prefix = "encoder.encoders.sar."
    for name, value in back.state_dict().items():
        assert torch.equal(backbone.state_dict()[prefix + name], value), name
    with pytest.raises(WeightsError, match="modality=optical or sar"):
        export_encoder(tmp_path / "iter_1.pth", tmp_path / "back.safetensors")

    other = encoder_file(tmp_path, arch, "other_sar", seed=4, channels={"sar": 1})
    changed = CoDeMAEBackbone(encoder=[str(left), str(other)], **options)
    assert changed.source["checkpoint_hash"] != backbone.source["checkpoint_hash"]


def test_layers_of_two_encoders_decay_as_those_of_one() -> None:
    one: Any = create_encoder("hivit_tiny")
    wanted = {name: scale for name, scale in _scales(one, "official", 0.5).items() if ".sar." not in name}
    pair = EncoderOfEach({name: create_encoder("hivit_tiny", channels={name: 3}) for name in CHANNELS})  # type: ignore[misc]
    for name, scale in _scales(pair, "official", 0.5).items():
        _, modality, key = name.split(".", 2)
        assert scale == wanted[key.replace(f".{modality}.", ".optical.")]


def test_encoders_that_make_no_pair_are_refused(tmp_path: Path) -> None:
    optical = encoder_file(tmp_path, "resnet_test", "encoder_optical", channels={"optical": 3})
    sar = encoder_file(tmp_path, "resnet_rda_test", "encoder_sar", channels={"sar": 3})
    for names, modality, message in (
        (f"{sar},{optical}", "both", "modality='optical': .*encoder_sar.safetensors.* takes sar images"),
        (f"{optical},{sar}", "both", "encoders differ: .*resnet_test.*resnet_rda_test"),
        ([str(optical)] * 3, "both", "with 3 encoders"),
        ([str(optical), str(sar)], "sar", "with 2 encoders"),
    ):
        with pytest.raises(BackboneError, match=message):
            CoDeMAEBackbone(encoder=names, modality=modality)
    halves = {"optical": create_encoder("hivit_tiny"), "sar": create_encoder("hivit_tiny")}
    assert len(_frozen(EncoderOfEach(halves), 4)) == 2 * len(_frozen(halves["sar"], 4))


FUSING = [
    ({}, False),
    ({"early": False}, False),
    ({"alone": "self"}, False),
    ({"attention": {"pre_norm": True, "output_projection": True, "num_heads": 2}}, True),
]


@pytest.mark.parametrize(("fusion", "pyramid"), FUSING)
@pytest.mark.parametrize("modality", ["optical", "sar", "both"])
def test_every_trainable_parameter_of_a_fusing_encoder_gets_a_gradient(
    tmp_path: Path, fusion: dict[str, Any], pyramid: bool, modality: str
) -> None:
    path = encoder_file(tmp_path, fusion=fusion, pyramid=pyramid)
    backbone = CoDeMAEBackbone(encoder=str(path), modality=modality).train()
    reached = reached_parameters(backbone)
    images = torch.randn(2, 6 if modality == "both" else 3, *SIZE)
    sum((level**2).sum() for level in backbone(images)).backward()  # type: ignore[union-attr]
    assert reached == {name for name, p in backbone.named_parameters() if p.requires_grad}
    still = {name for name, p in backbone.encoder.named_parameters() if not p.requires_grad}
    alone = modality != "both"
    crossed = alone and fusion.get("early", True) and fusion.get("alone") != "self"
    assert crossed == any(".cross." in name for name in still)
    assert alone == any(name.startswith("patch_embed.") for name in still)
    assert all(".cross." in name or name.startswith("patch_embed.") for name in still)


@pytest.mark.parametrize("norm_maps", [False, True])
def test_a_fusing_vit_gives_four_maps_of_both(tmp_path: Path, norm_maps: bool) -> None:
    path = encoder_file(tmp_path, arch="fusmae_vit_tiny", fusion={})
    backbone = CoDeMAEBackbone(encoder=str(path), modality="both", norm_maps=norm_maps).eval()
    encoder: Any = load_encoder(path)
    optical, sar, other = torch.randn(3, 2, 3, *SIZE, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        maps, swapped = backbone(torch.cat([optical, sar], 1)), backbone(torch.cat([optical, other], 1))
        tokens = encoder.encode({"optical": optical, "sar": sar}).tokens
    assert [tuple(level.shape[1:]) for level in maps] == [(384, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert not torch.equal(maps[2].chunk(2, 1)[0], swapped[2].chunk(2, 1)[0])
    if not norm_maps:
        assert torch.equal(maps[2][1, 192:].flatten(1).T, tokens[3])


@pytest.mark.parametrize("pyramid", [False, True])
def test_a_fusing_encoder_sees_both_modalities_together(tmp_path: Path, pyramid: bool) -> None:
    path = encoder_file(tmp_path, fusion={}, pyramid=pyramid)
    backbone = CoDeMAEBackbone(encoder=str(path), modality="both").eval()
    encoder: Any = load_encoder(path)
    generator = torch.Generator().manual_seed(8)
    optical, sar, other = torch.randn(3, 2, 3, *SIZE, generator=generator)
    with torch.no_grad():
        maps, swapped = backbone(torch.cat([optical, sar], 1)), backbone(torch.cat([optical, other], 1))
        together = encoder.level_features(encoder.encode({"optical": optical, "sar": sar}))
    rows, columns = SIZE[0] // 16, SIZE[1] // 16
    for level, grouped in zip(maps, reversed(together), strict=False):
        assert level.shape[1] == 2 * grouped.shape[-1]
        side = grouped.shape[2]
        for place in (0, 1):
            half = level.chunk(2, dim=1)[place]
            for patch in (0, columns + 1, rows * columns - 1):
                top, left = side * (patch // columns), side * (patch % columns)
                cell = half[1, :, top : top + side, left : left + side]
                assert torch.equal(cell.permute(1, 2, 0), grouped[2 * place + 1, patch])
    assert [tuple(level.shape[2:]) for level in maps] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert not torch.equal(maps[2].chunk(2, 1)[0], swapped[2].chunk(2, 1)[0])
