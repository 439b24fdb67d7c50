from pathlib import Path

import pytest
import timm
import torch

from codemae.checkpoint import EncoderMetadata, InputSpec, save_encoder
from codemae.models.factory import EncoderConfig, build_encoder, create_encoder, load_encoder
from codemae.models.swin import Swin

INPUT = InputSpec(channels=3, mean=[0.5] * 3, std=[0.2] * 3, scaling="uint8", size=64)


def small(**kwargs: object) -> Swin:
    torch.manual_seed(0)
    return Swin(
        img_size=64, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window=4, **kwargs
    ).eval()


@torch.no_grad()
def test_tokens_equal_timms_with_its_weights() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=0,
        embed_dim=16,
        num_heads=(1, 2, 2, 4),
        depths=(2, 2, 2, 2),
    ).eval()
    ours = Swin(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), window=7).eval()
    state = {}
    for key, value in theirs.state_dict().items():
        part, _, rest = key.partition(".")
        names = [f"patch_embed.{m}.{rest}" for m in ours.modalities] if part == "patch_embed" else [key]
        state.update(dict.fromkeys(names, value))
    ours.load_state_dict(state)
    images = torch.randn(1, 3, 224, 224)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(ours(images, "sar"), expected.flatten(1, 2))
    torch.testing.assert_close(ours.pooled(images, "sar"), theirs(images))


def test_sizes() -> None:
    base = create_encoder("swin_base")
    # 86.7 M of the published Swin-B without its classifier, and a second patch embedding
    assert sum(p.numel() for p in base.parameters()) == 86_743_224 + 128 * 48 + 3 * 128
    assert base.embed_dim == 1024 and base.patch_size == 32
    assert sum(p.numel() for p in create_encoder("swin_tiny").parameters()) < 6e6


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 160), (48, 80)])
def test_pyramid_has_the_strides_and_widths_it_states(size: tuple[int, int]) -> None:
    encoder = small()
    images = torch.randn(2, 1, *size)
    maps = encoder.pyramid(images, "sar")
    for level, (features, width) in enumerate(zip(maps, encoder.pyramid_dims, strict=True)):
        stride = 4 * 2**level
        assert features.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), encoder(images, "sar"))


@torch.no_grad()
def test_checkpointed_activations_give_the_same_tokens_and_gradients() -> None:
    images = torch.randn(1, 3, 64, 64)
    results = []
    for recompute in (False, True):
        encoder = small(checkpoint_activations=recompute).train()
        with torch.enable_grad():
            tokens = encoder(images, "optical")
            tokens.square().mean().backward()
        results.append((tokens, encoder.layers[0].blocks[0].attn.qkv.weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_layers_are_numbered_from_the_image_to_the_norm() -> None:
    ids = small().layer_ids()
    assert ids["patch_embed.sar.proj.weight"] == 0
    assert ids["layers.0.blocks.0.norm1.weight"] == 1
    assert ids["layers.0.blocks.1.mlp.fc1.bias"] == 2
    assert ids["layers.1.downsample.reduction.weight"] == 3
    assert ids["layers.1.blocks.0.attn.relative_position_bias_table"] == 4
    assert ids["layers.3.blocks.1.norm2.weight"] == 11
    assert ids["norm.weight"] == 12
    assert set(ids) == {name for name, _ in small().named_parameters()}


@torch.no_grad()
def test_saved_encoder_loads_with_equal_tokens_at_another_size_and_with_other_channels(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(arch="swin_tiny", img_size=64)).eval()
    metadata = EncoderMetadata(
        arch=encoder.arch,
        arch_kwargs=encoder.arch_kwargs,
        inputs={"optical": INPUT, "sar": INPUT},
        method="cmid",
        steps=1,
    )
    save_encoder(tmp_path / "encoder.safetensors", encoder, metadata)
    images = torch.randn(1, 3, 96, 96)
    loaded = load_encoder(tmp_path / "encoder.safetensors", img_size=96)
    assert torch.equal(loaded(images, "optical"), encoder(images, "optical"))
    gray = load_encoder(tmp_path / "encoder.safetensors", channels={"sar": 1})
    torch.testing.assert_close(
        gray(images[:, :1], "sar"), encoder(images[:, :1], "sar"), atol=1e-4, rtol=1e-4
    )


def test_what_it_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        small()(torch.zeros(1, 3, 62, 64), "optical")
    with pytest.raises(KeyError, match="knows optical, sar, not 'radar'"):
        small()(torch.zeros(1, 3, 64, 64), "radar")
