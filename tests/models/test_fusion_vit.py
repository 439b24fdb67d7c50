"""The encoders and blocks of Fus-MAE against loops written from its equations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemae.checkpoint import EncoderMetadata, save_encoder
from codemae.models.cross_fusion import CrossAttentionConfig, FusionConfig, XAttnDecoder, XAttnEncoder
from codemae.models.encoder import Encoder
from codemae.models.factory import create_encoder, load_encoder
from codemae.models.fusion_decoder import QueryDecoder
from codemae.models.fusion_hivit import FusionHiViT
from codemae.models.fusion_vit import FusionViT
from codemae.models.masking import random_masking

CHANNELS = {"optical": 5, "sar": 2}
RICH = {"attention": {"num_heads": 2, "pre_norm": True, "output_projection": True}}


def tiny_vit(**kwargs: Any) -> FusionViT:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return FusionViT(**{**sizes, "channels": CHANNELS, **kwargs}).eval()


def pair(height: int = 32, width: int = 32, count: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {n: torch.randn(count, c, height, width, generator=generator) for n, c in CHANNELS.items()}


def weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    """LayerNorm of a vector; nothing where there is no such layer."""
    if f"{name}.weight" not in w:
        return x
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x if f"{name}.weight" not in w else w[f"{name}.weight"] @ x + w[f"{name}.bias"]


def mlp(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    hidden = linear(x, w, "mlp.fc1")
    gelu = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden])
    return linear(gelu, w, "mlp.fc2")


def slow_block(x: np.ndarray, y: np.ndarray, w: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """Eq. 10, 11 (and 2, 3 for one of the two streams), a token and a head at a time."""
    keys = [linear(layer_norm(t, w, "cross.n_kv"), w, "cross.kv") for t in y]
    out = []
    for token in x:
        query = linear(layer_norm(token, w, "cross.n_q"), w, "cross.q")
        D = len(token)
        answer, d = np.zeros(D), D // heads
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            scores = [math.exp(query[part] @ kv[:D][part] / math.sqrt(d)) for kv in keys]
            for score, kv in zip(scores, keys, strict=True):
                answer[part] += score / sum(scores) * kv[D:][part]
        z = token + linear(answer, w, "cross.proj")
        out.append(z + mlp(layer_norm(z, w, "norm"), w))
    return np.array(out)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, RICH])
def test_xattn_encoder_equals_the_equations(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    fusion = FusionConfig.of({**options, "alone": "self"})
    block, x, y = XAttnEncoder(8, fusion), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    for parameter in block.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    fused, w, heads = block(torch.cat([x, y]), 2), weights(block), fusion.attention.num_heads
    for i in range(2):
        a, b = x[i].double().numpy(), y[i].double().numpy()
        np.testing.assert_allclose(fused[i].numpy(), slow_block(a, b, w, heads), atol=1e-5)
        np.testing.assert_allclose(fused[2 + i].numpy(), slow_block(b, a, w, heads), atol=1e-5)
        np.testing.assert_allclose(block(x, 1)[i].numpy(), slow_block(a, a, w, heads), atol=1e-5)
    skipping = XAttnEncoder(8, FusionConfig(attention=fusion.attention))
    skipping.load_state_dict(block.state_dict())
    token = x[0, 0].double().numpy()
    expected = token + mlp(layer_norm(token, w, "norm"), w)
    np.testing.assert_allclose(skipping(x, 1)[0, 0].numpy(), expected, atol=1e-5)
    with pytest.raises(ValueError, match="two modalities, got 3"):
        block(x.repeat(3, 1, 1), 3)


@torch.no_grad()
def test_xattn_decoder_equals_the_equations_for_streams_of_different_length() -> None:
    torch.manual_seed(0)
    block, x, y = XAttnDecoder(8, CrossAttentionConfig()), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    expected = slow_block(x[0].double().numpy(), y[0].double().numpy(), weights(block), 1)
    np.testing.assert_allclose(block(x, y)[0].numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_projection_and_fusion_equal_a_convolution_and_loops() -> None:
    """Eq. 1 to 6: Conv2d of whole images, positions, both streams through the block, then self-attention."""
    encoder: Any = tiny_vit()
    images = pair()
    keep = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i))[:4] for i in range(4)])
    tokens: list[list[np.ndarray]] = []
    for place, (name, image) in enumerate(images.items()):
        convolved = encoder.patch_embed[name].proj(image)
        tokens.append([])
        for i in range(2):
            rows = [
                convolved[i, :, k // 4, k % 4] + encoder.absolute_pos_embed[0, k]
                for k in keep[2 * place + i].tolist()
            ]
            tokens[place].append(torch.stack(rows).double().numpy())
    w = weights(encoder.blocks[0])
    found = encoder.encode(images, keep).tokens
    for i in range(2):
        fused = [slow_block(tokens[v][i], tokens[1 - v][i], w, 1) for v in range(2)]
        x = torch.tensor(np.concatenate([*fused, encoder.cls_token[0].numpy()]), dtype=torch.float32)[None]
        for block in encoder.blocks[1:]:
            x = block(x)
        x = encoder.norm(x)[0]
        torch.testing.assert_close(found[i], x[:4], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[2 + i], x[4:8], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_query_decoder_equals_the_equations() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"level_dims": [6], "dim": 8, "depth": 1, "num_heads": 2, "out_dim": 5}
    decoder: Any = QueryDecoder(CrossAttentionConfig(num_heads=2, pre_norm=True), grid=(2, 2), **sizes).eval()
    own, other = torch.randn(1, 2, 1, 1, 6), torch.randn(1, 2, 1, 1, 6)
    mine, theirs = (random_masking(torch.rand(1, 4), 0.5) for _ in range(2))
    positions = decoder.decoder.positions[0]

    def embedded(levels: Tensor, ids: Tensor) -> list[Tensor]:
        norm, project = decoder.embed.levels[0]
        pairs = zip(levels[0, :, 0, 0], ids[0].tolist(), strict=True)
        return [project(norm(token)) + positions[i] for token, i in pairs]

    seen, theirs_seen = embedded(own, mine.ids_keep), embedded(other, theirs.ids_keep)
    mask = decoder.decoder.mask_token[0, 0]
    queries = torch.stack([*seen, *(mask + positions[i] for i in mine.ids_removed[0].tolist())])
    context = torch.stack(
        [*(t + decoder.own_embedding[0, 0] for t in seen)]
        + [*(t + decoder.other_embedding[0, 0] for t in theirs_seen)]
    )
    w = weights(decoder.xattn)
    for length, extra in ((4, (theirs.ids_keep,)), (2, (None,))):
        mixed = slow_block(queries.double().numpy(), context[:length].double().numpy(), w, 2)
        x = decoder.decoder.blocks[0](torch.tensor(mixed, dtype=torch.float32)[None])
        expected = decoder.decoder.pred(decoder.decoder.norm(x[:, 2:]))
        found = decoder([own], mine, [other] if extra[0] is not None else None, *extra)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def hivit(**kwargs: Any) -> Encoder:
    return create_encoder("hivit_tiny", img_size=64, channels=CHANNELS, **{"fusion": {}, **kwargs}).eval()


@torch.no_grad()
@pytest.mark.parametrize("build", [lambda **k: tiny_vit(img_size=64, patch_size=16, **k), hivit])
def test_modalities_meet_only_when_given_together(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    encoder, images = build(), pair(64, 64)
    changed = {**images, "sar": images["sar"].flip(3)}
    before, after = encoder.pooled_together(images), encoder.pooled_together(changed)
    assert (before["optical"] - after["optical"]).abs().max() > 1e-4
    alone = encoder.pooled(images["optical"], "optical")
    assert (before["optical"] - alone).abs().max() > 1e-4
    torch.testing.assert_close(encoder.pooled_together({"optical": images["optical"]})["optical"], alone)
    # Samples do not see each other: the second pair alone answers as in the batch.
    second = encoder.pooled_together({name: image[1:] for name, image in images.items()})
    for name in images:
        torch.testing.assert_close(second[name], before[name][1:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("build", [lambda **k: tiny_vit(img_size=64, patch_size=16, **k), hivit])
def test_keeping_every_patch_in_any_order_is_the_plain_forward(
    build: Callable[..., Any], early: bool
) -> None:
    torch.manual_seed(0)
    encoder, images = build(fusion={"early": early}), pair(64, 64)
    order = torch.stack([torch.randperm(16) for _ in range(4)])
    plain, shuffled = encoder.encode(images).tokens, encoder.encode(images, order).tokens
    back = shuffled.gather(1, order.argsort(1)[:, :, None].expand_as(shuffled))
    torch.testing.assert_close(back, plain, rtol=1e-4, atol=1e-5)
    masked = encoder.forward_masked(images["sar"], "sar", order[2:])
    back = masked.gather(1, order[2:].argsort(1)[:, :, None].expand_as(masked))
    torch.testing.assert_close(back, encoder(images["sar"], "sar"), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_early_fusion_a_single_modality_is_a_plain_hivit() -> None:
    torch.manual_seed(0)
    fusing = hivit(fusion={"early": False})
    plain = create_encoder("hivit_tiny", img_size=64, channels=CHANNELS).eval()
    plain.load_state_dict(fusing.state_dict())
    images = pair(64, 64)
    for name, image in images.items():
        assert torch.equal(fusing(image, name), plain(image, name))
    assert isinstance(fusing, FusionHiViT) and not isinstance(plain, FusionHiViT)
    together = fusing.encode(images).tokens.mean(1).chunk(2)[0]
    assert (together - plain.pooled(images["optical"], "optical")).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("shape", [(32, 32), (24, 40), (64, 48)])
def test_shapes_and_pyramid_at_any_size(shape: tuple[int, int]) -> None:
    encoder = tiny_vit()
    height, width = shape
    images = pair(height, width)
    tokens = encoder(images["sar"], "sar")
    assert tokens.shape == (2, height * width // 64, 16)
    maps = encoder.pyramid(images["sar"], "sar")
    assert [tuple(m.shape) for m in maps] == [
        (2, 16, -(-height // s), -(-width // s)) for s in (4, 8, 16, 32)
    ]
    torch.testing.assert_close(maps[1].flatten(2).transpose(1, 2), tokens)
    finer = F.interpolate(maps[1], size=maps[0].shape[-2:], mode="bilinear")
    torch.testing.assert_close(maps[0], finer)


def test_wrong_images_and_sizes_are_refused() -> None:
    encoder, images = tiny_vit(), pair()
    with pytest.raises(ValueError, match="30 x 32 px.*multiples of 8"):
        encoder(images["sar"][:, :, :30], "sar")
    with pytest.raises(ValueError, match="3 channels, this patch projection takes 5"):
        encoder(images["optical"][:, :3], "optical")
    with pytest.raises(KeyError, match="optical, sar, not 'thermal'"):
        encoder(images["sar"], "thermal")
    with pytest.raises(ValueError, match="depth 1"):
        tiny_vit(depth=1)
    with pytest.raises(ValueError, match="center names thermal"):
        tiny_vit(center=["thermal"])


@torch.no_grad()
def test_centred_images_forget_their_brightness() -> None:
    images = pair()
    for center, same in ((["sar"], True), ([], False)):
        encoder = tiny_vit(center=center)
        moved = encoder.pooled(images["sar"] + 3, "sar")
        assert torch.allclose(moved, encoder.pooled(images["sar"], "sar"), atol=1e-5) is same


@pytest.mark.parametrize("early", [True, False])
def test_recomputing_activations_changes_no_gradient(early: bool) -> None:
    images, gradients = pair(), []
    for recompute in (False, True):
        encoder = tiny_vit(checkpoint_activations=recompute, fusion={"early": early}).train()
        encoder.encode(images).tokens.square().sum().backward()
        trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.values())
        gradients.append([p.grad for p in trained.values()])
    torch.testing.assert_close(*gradients)


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("fusmae_vit_tiny", {"fusion": FusionConfig.of({**RICH, "alone": "self"})}),
        ("hivit_tiny", {"fusion": {}}),
    ],
)
def test_encoder_file_answers_bit_for_bit(arch: str, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder: Any = create_encoder(arch, img_size=32, channels=CHANNELS, center=["sar"], **options).eval()
    metadata = EncoderMetadata(
        arch=encoder.arch, arch_kwargs=encoder.arch_kwargs, inputs={}, method="fusmae", steps=3
    )
    save_encoder(tmp_path / "encoder.safetensors", encoder, metadata)
    loaded: Any = load_encoder(tmp_path / "encoder.safetensors")
    assert loaded.fusion == encoder.fusion
    images = pair()
    for name, image in images.items():
        assert torch.equal(loaded.pooled(image, name), encoder.pooled(image, name))
        assert torch.equal(loaded.pooled_together(images)[name], encoder.pooled_together(images)[name])
    # Another size and other channels than the file's: positions and projections are fitted by name.
    other: Any = load_encoder(tmp_path / "encoder.safetensors", img_size=64, channels={"optical": 13})
    assert other.pooled(torch.randn(1, 13, 64, 64), "optical").shape == (1, 192)
    fresh: Any = load_encoder(f"random:{tmp_path / 'encoder.safetensors'}", seed=1)
    assert fresh.fusion == encoder.fusion and fresh.center == ("sar",)


def test_layers_are_numbered_from_the_image_on() -> None:
    encoder = tiny_vit()
    ids = encoder.layer_ids()
    assert set(ids) == {name for name, _ in encoder.named_parameters()}
    assert ids["patch_embed.sar.proj.weight"] == ids["cls_token"] == ids["absolute_pos_embed"] == 0
    assert ids["blocks.0.cross.q.weight"] == 1 and ids["blocks.2.mlp.fc1.bias"] == 3
    assert ids["norm.weight"] == 4
