import re
from pathlib import Path

import pytest
import torch
from foreign_files import DECODER, SIDE, WIDTH, File, codemae_file, hivit_file, itpn_file
from torch import Tensor

import codemae.weights as weights
from codemae.checkpoint import WeightsError, load_strictly, read_encoder, read_weights, save_encoder
from codemae.methods.codemae import (
    CCLConfig,
    CDRConfig,
    CoDeMAE,
    CoDeMAEConfig,
    DecoderConfig,
    OKDConfig,
)
from codemae.models.factory import ENCODERS, EncoderConfig, create_encoder, load_encoder
from codemae.models.teacher import TeacherConfig

REBUILT = {"decoder_pos_embed"}


def official_method() -> CoDeMAE:
    return CoDeMAE(
        CoDeMAEConfig(
            encoder=EncoderConfig(arch="hivit_tiny", img_size=SIDE),
            decoder=DecoderConfig(dim=DECODER, depth=2, num_heads=4),
            okd=OKDConfig(
                branches="fused_and_auxiliary",
                auxiliary_block=3,
                teacher=TeacherConfig(name="vit_tiny_patch16_224", pretrained=False),
            ),
            ccl=CCLConfig(input="decoder_embed", num_heads=4, pre_norm=True, output_projection=True),
            cdr=CDRConfig(target="gray"),
        )
    )


def save(path: Path, state: dict[str, Tensor], wrapper: str = "model") -> Path:
    torch.save({wrapper: state, "epoch": 3}, path)
    return path


def accounted(report: weights.Report) -> set[str]:
    return {*report.loaded, *report.renamed, *report.dropped}


@pytest.mark.parametrize(
    ("state", "layout"),
    [
        (itpn_file(), "itpn"),
        (hivit_file(), "hivit"),
        (hivit_file(True), "hivit"),
        (codemae_file(), "codemae"),
    ],
    ids=["itpn", "hivit", "classifier", "codemae"],
)
def test_every_layout_fills_an_encoder_strictly(state: dict[str, Tensor], layout: str) -> None:
    assert weights.detect_format(state) == layout
    ours, report = weights.to_encoder(state)
    encoder = create_encoder("hivit_tiny", img_size=SIDE, pyramid=layout != "hivit")
    load_strictly(encoder, ours)
    assert accounted(report) == set(state)
    loaded = encoder.state_dict()
    assert torch.equal(loaded["blocks.5.attn.qkv.weight"], state["blocks.5.attn.qkv.weight"])
    for modality, theirs in (("optical", "rgb"), ("sar", "sar")):
        key = f"patch_embed_{theirs}" if layout == "codemae" else "patch_embed"
        assert torch.equal(loaded[f"patch_embed.{modality}.proj.weight"], state[f"{key}.proj.weight"])


def test_report_names_the_rule_that_dropped_a_key() -> None:
    _, report = weights.to_encoder(codemae_file())
    assert report.dropped["decoder_blocks_cross.1.mlp.fc1.weight"] == "reconstruction decoder"
    assert report.dropped["lm_cls_head.bias"] == "distillation head"
    assert report.dropped["norm.weight"] == "output norm"
    assert report.dropped["contrastive_loss.crossattn_sar.cattn.kv.bias"] == "contrastive head"
    assert "contrastive head (20)" in str(report)


@pytest.mark.parametrize("target", ["itpn", "hivit", "saratrx", "codemae"])
def test_export_returns_the_encoder_keys_bit_for_bit(target: str) -> None:
    state = {"itpn": itpn_file, "codemae": codemae_file}.get(target, hivit_file)()
    ours, report = weights.to_encoder(state)
    back = weights.export(ours, target)  # type: ignore[arg-type]
    assert set(back) == set(state) - set(report.dropped)
    for key, value in back.items():
        assert torch.equal(value, state[key]), key


def test_single_patch_embedding_layouts_take_the_named_modality() -> None:
    ours, _ = weights.to_encoder(codemae_file())
    rgb = codemae_file()["patch_embed_rgb.proj.weight"]
    sar = codemae_file()["patch_embed_sar.proj.weight"]
    assert torch.equal(weights.export(ours, "itpn")["patch_embed.proj.weight"], rgb)
    assert torch.equal(weights.export(ours, "saratrx")["patch_embed.proj.weight"], sar)
    assert not [
        key for key in weights.export(ours, "hivit") if key.startswith(("fpn", "split", "align", "block_"))
    ]


def test_released_codemae_fills_the_whole_method_and_comes_back() -> None:
    state = codemae_file()
    ours, report = weights.to_method(state)
    method = official_method()
    load_strictly(method, ours)
    assert accounted(report) == set(state)
    assert set(report.dropped) == REBUILT
    assert torch.equal(
        method.state_dict()["okd_heads.auxiliary.blocks.1.attn.proj.bias"],
        state["cls_pt_layers.1.attn.proj.bias"],
    )
    assert torch.equal(
        method.state_dict()["ccl_spaces.sar.cattn.kv.weight"],
        state["contrastive_loss.crossattn_sar.cattn.kv.weight"],
    )
    assert torch.equal(method.state_dict()["cross_decoder.pred.weight"], state["decoder_pred_cross.weight"])
    back = weights.export(method.state_dict(), "codemae")
    assert set(back) == set(state)
    for key, value in back.items():
        if key in REBUILT:
            torch.testing.assert_close(value, state[key], rtol=0, atol=1e-6)
        else:
            assert torch.equal(value, state[key]), key


def test_encoder_of_a_method_state() -> None:
    method = official_method()
    ours, report = weights.to_encoder(method.state_dict())
    assert set(ours) == set(method.encoder.state_dict())
    assert report.dropped["decoders.0.mask_token"] == "outside the encoder"


def test_decoders_per_modality_are_refused_for_a_method_but_not_for_an_encoder() -> None:
    state = {
        re.sub(r"^(mask_token|decoder_(?!pos)\w+?)(?=\.|$)", r"\1_rgb", k): v for k, v in itpn_file().items()
    }
    state["patch_embed_rgb.proj.weight"] = state.pop("patch_embed.proj.weight")
    with pytest.raises(WeightsError, match="decoder embeddings of their own"):
        weights.to_method(state)
    assert weights.to_encoder(state)[1].dropped["decoder_embed_rgb.0.0.weight"] == "reconstruction decoder"


@pytest.mark.parametrize(
    "key", ["blocks.3.attn.gamma", "blocks.0.gamma_1", "extra.weight", "patch_embed.proj.scale", "pos_embed"]
)
def test_unknown_key_is_an_error_that_names_it(key: str) -> None:
    state = itpn_file() | {key: torch.zeros(1)}
    with pytest.raises(WeightsError, match=re.escape(key)):
        weights.to_encoder(state)


def test_relative_position_bias_is_refused_in_a_sentence() -> None:
    state = hivit_file() | {
        "blocks.5.attn.relative_position_bias_table": torch.zeros(729, 3),
        "relative_position_index": torch.zeros(4, 4),
    }
    with pytest.raises(WeightsError, match=r"relative position bias.*blocks\.5\.attn"):
        weights.to_encoder(state)


def test_missing_key_is_an_error_on_loading(tmp_path: Path) -> None:
    state = itpn_file()
    del state["blocks.4.mlp.fc1.bias"]
    with pytest.raises(WeightsError, match=r"missing: blocks\.4\.mlp\.fc1\.bias"):
        load_encoder(save(tmp_path / "itpn.pth", state))


def test_foreign_layout_is_not_guessed() -> None:
    with pytest.raises(WeightsError, match="neither our keys nor"):
        weights.detect_format({"conv1.weight": torch.zeros(1)})


def test_second_pyramid_block_is_kept_or_dropped_by_name(tmp_path: Path) -> None:
    state = itpn_file(pyramid_depth=2)
    path = save(tmp_path / "itpn.pth", state)
    whole = load_encoder(path)
    assert torch.equal(
        whole.state_dict()["block_8to4.1.mlp.fc1.weight"], state["block_8to4.1.mlp.fc1.weight"]
    )
    _, report = weights.to_encoder(state, fpn_depth=1)
    assert report.dropped["block_16to8.1.norm2.bias"] == "pyramid blocks beyond 1"
    started = weights.read_encoder_state(path)
    load_strictly(create_encoder("hivit_tiny", img_size=SIDE), started)


def test_positions_are_resized_and_listed() -> None:
    ours, report = weights.to_encoder(itpn_file(), grid=(4, 4))
    assert ours["absolute_pos_embed"].shape == (1, 16, WIDTH)
    assert report.resized == {"absolute_pos_embed": "absolute_pos_embed from 4 to 4 x 4 positions"}
    # Interpolation of a constant field is that constant.
    flat = itpn_file() | {"absolute_pos_embed": torch.full((1, 4, WIDTH), 0.25)}
    resized, _ = weights.to_encoder(flat, grid=(4, 4))
    torch.testing.assert_close(resized["absolute_pos_embed"], torch.full((1, 16, WIDTH), 0.25))


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_foreign_file_loads_converts_and_exports(tmp_path: Path, wrapper: str) -> None:
    torch.manual_seed(0)
    state = codemae_file()
    source = save(tmp_path / "codemae.pth", state, wrapper)
    image = torch.randn(2, 3, SIDE, SIDE)
    direct = load_encoder(source)
    report = weights.convert_file(source, tmp_path / "encoder.safetensors")
    assert report.source == "codemae"
    converted = load_encoder(tmp_path / "encoder.safetensors")
    assert torch.equal(direct.pooled(image, "sar"), converted.pooled(image, "sar"))
    metadata = read_encoder(tmp_path / "encoder.safetensors")[1]
    assert (metadata.arch, metadata.arch_kwargs["img_size"]) == ("hivit_tiny", SIDE)
    assert metadata.inputs["sar"].mean == [0.1738] * 3
    assert any("DINOv3" in note for note in metadata.licence_notes)
    weights.export_file(tmp_path / "encoder.safetensors", tmp_path / "back.pth", "codemae")
    back = read_weights(tmp_path / "back.pth")
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    assert "patch_embed_sar.norm.bias" in back


def test_a_run_can_start_from_our_own_file_without_its_pyramid(tmp_path: Path) -> None:
    encoder = create_encoder("hivit_tiny", img_size=SIDE)
    state, metadata = weights.read_any_encoder(save(tmp_path / "itpn.pth", itpn_file()))
    save_encoder(tmp_path / "encoder.safetensors", state, metadata)
    plain = weights.read_encoder_state(tmp_path / "encoder.safetensors", pyramid=False)
    load_strictly(create_encoder("hivit_tiny", img_size=SIDE, pyramid=False), plain)
    load_strictly(encoder, weights.read_encoder_state(tmp_path / "encoder.safetensors"))
    with pytest.raises(WeightsError, match=r"has no pyramid; set method\.encoder\.pyramid=false"):
        weights.read_encoder_state(save(tmp_path / "hivit.pth", hivit_file()))


def test_architecture_table_matches_the_registered_encoders() -> None:
    found = {}
    shipped = [name for name in ENCODERS if ENCODERS.get(name).__module__ == "codemae.models.hivit_archs"]
    for name in shipped:
        with torch.device("meta"):
            state = ENCODERS.get(name)(pyramid=False).state_dict()
        found[state["absolute_pos_embed"].shape[-1], weights._depths(state)] = name
    assert found == weights.ARCHITECTURES


def test_unknown_architecture_is_named() -> None:
    file = File()
    file.patch_embed("patch_embed")
    file.trunk(stem=2, attention=3)
    with pytest.raises(WeightsError, match=r"width 192 and blocks \(2, 2, 3\)"):
        weights._described(weights.to_encoder(file.state)[0], "hivit")
