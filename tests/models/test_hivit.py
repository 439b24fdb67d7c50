import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codemae.models.factory import ENCODERS, create_encoder, load_encoder
from codemae.models.hivit import HiViT
from codemae.models.itpn import ITPN

TINY = {"img_size": 64, "embed_dim": 32, "depths": (1, 1, 2), "num_heads": 2}


def tiny(cls: type[HiViT] = ITPN, **kwargs: object) -> HiViT:
    torch.manual_seed(0)
    extra = {"fpn_dim": 16} if cls is ITPN else {}
    return cls(**TINY, **extra, **kwargs).eval()  # type: ignore[arg-type]


def count(name: str, **kwargs: object) -> float:
    with torch.device("meta"):
        encoder = ENCODERS.get(name)(**kwargs)
    return sum(p.numel() for p in encoder.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "pyramid", "millions"),
    # 77.9 and 81.6 were counted on the published iTPN-B; small and large follow from the published widths and
    # depths, worked by hand: 12 D^2 + 13 D for an attention block and so on.
    [
        ("hivit_base", False, 77.9),
        ("hivit_base", True, 81.6),
        ("hivit_small", False, 37.1),
        ("hivit_large", False, 287.4),
    ],
)
def test_published_sizes(name: str, pyramid: bool, millions: float) -> None:
    assert count(name, pyramid=pyramid) == pytest.approx(millions, abs=0.05)


def slow_forward(encoder: HiViT, image: Tensor, modality: str) -> Tensor:
    """One image, patch by patch and cell by cell, with dense attention written out."""
    embed = encoder.patch_embed[modality]
    tokens = []
    for top in range(0, image.shape[1], 16):
        for left in range(0, image.shape[2], 16):
            cells = torch.zeros(4, 4, encoder.embed_dim // 4)
            for i in range(4):
                for j in range(4):
                    pixels = image[:, top + 4 * i : top + 4 * i + 4, left + 4 * j : left + 4 * j + 4]
                    value = torch.einsum("dcij,cij->d", embed.proj.weight, pixels) + embed.proj.bias
                    cells[i, j] = F.layer_norm(
                        value, value.shape, embed.norm.weight, embed.norm.bias, eps=1e-6
                    )
            tokens.append(cells)
    x = torch.stack(tokens)
    for block in encoder.blocks[: -encoder.num_attention_blocks]:
        if hasattr(block, "reduction"):
            quarters = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
            x = block.reduction(block.norm(torch.cat(quarters, dim=-1)))
        else:
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    x = x[:, 0, 0] + encoder.absolute_pos_embed[0]
    for block in encoder.blocks[-encoder.num_attention_blocks :]:
        normed = block.norm1(x)
        q, k, v = (
            normed @ w.T + b
            for w, b in zip(block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3), strict=True)
        )
        heads = []
        for h in range(block.attn.num_heads):
            d = encoder.embed_dim // block.attn.num_heads
            part = slice(h * d, (h + 1) * d)
            weights = torch.softmax(q[:, part] @ k[:, part].T / d**0.5, dim=-1)
            heads.append(weights @ v[:, part])
        x = x + block.attn.proj(torch.cat(heads, dim=1))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return x


@torch.no_grad()
def test_forward_equals_slow_transcription() -> None:
    encoder = tiny(HiViT)
    image = torch.randn(3, 64, 64)
    for modality in ("optical", "sar"):
        torch.testing.assert_close(
            encoder(image[None], modality)[0], slow_forward(encoder, image, modality), rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_masked_forward_with_all_patches_equals_plain_forward() -> None:
    encoder, images = tiny(), torch.randn(2, 3, 64, 64)
    ids = torch.rand(2, 16).argsort(1)
    plain = encoder(images, "optical").gather(1, ids[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(encoder.forward_masked(images, "optical", ids), plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masked_forward_ignores_removed_pixels() -> None:
    encoder, images = tiny(), torch.randn(1, 3, 64, 64)
    ids = torch.tensor([[0, 5, 10]])
    changed = images.clone()
    changed[:, :, 48:, 48:] += 100.0
    torch.testing.assert_close(
        encoder.forward_masked(images, "sar", ids),
        encoder.forward_masked(changed, "sar", ids),
        rtol=0,
        atol=0,
    )


@torch.no_grad()
@pytest.mark.parametrize("cls", [HiViT, ITPN])
@pytest.mark.parametrize("size", [(64, 64), (96, 32), (48, 80)])
def test_pyramid_strides_and_channels(cls: type[HiViT], size: tuple[int, int]) -> None:
    encoder = tiny(cls)
    maps = encoder.pyramid(torch.randn(1, 3, *size), "optical")
    for level, stride, dim in zip(maps, (4, 8, 16, 32), encoder.pyramid_dims, strict=True):
        assert level.shape == (1, dim, -(-size[0] // stride), -(-size[1] // stride))


@torch.no_grad()
def test_pyramid_cells_lie_where_their_pixels_are() -> None:
    encoder, images = tiny(HiViT), torch.randn(1, 3, 64, 64)
    changed = images.clone()
    changed[:, :, 20:24, 36:40] += 10.0
    moved = (encoder.pyramid(changed, "optical")[0] - encoder.pyramid(images, "optical")[0]).abs().sum(1)[0]
    assert moved.nonzero().tolist() == [[5, 9]]


@torch.no_grad()
def test_one_call_for_both_modalities_equals_two() -> None:
    encoder = tiny()
    images = {"optical": torch.randn(2, 3, 64, 64), "sar": torch.randn(2, 1, 64, 64)}
    both = encoder.encode(images).tokens
    apart = torch.cat([encoder(image, name) for name, image in images.items()])
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_gray_image_is_repeated_and_other_counts_are_refused() -> None:
    encoder, gray = tiny(), torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(
        encoder(gray, "sar"), encoder(gray.repeat(1, 3, 1, 1), "sar"), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="2 channels.*takes 3.*channels="):
        encoder(torch.randn(1, 2, 64, 64), "sar")
    with pytest.raises(ValueError, match="multiples of 16"):
        encoder(torch.randn(1, 3, 60, 64), "sar")
    with pytest.raises(KeyError, match="optical, sar"):
        encoder(gray, "thermal")


@torch.no_grad()
def test_centring_forgets_the_offset_of_its_modality_alone() -> None:
    encoder, image = tiny(center=["sar"]), torch.rand(2, 3, 64, 64)
    centred = image - image.mean((2, 3), keepdim=True)
    torch.testing.assert_close(encoder(image, "sar"), tiny()(centred, "sar"))
    torch.testing.assert_close(encoder(image + 1, "sar"), encoder(image, "sar"), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(encoder(3 * image, "sar"), encoder(image, "sar"))
    torch.testing.assert_close(encoder(image, "optical"), tiny()(image, "optical"))
    with pytest.raises(ValueError, match="thermal"):
        tiny(center=["thermal"])


def test_activation_checkpointing_changes_memory_not_numbers() -> None:
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointed in (False, True):
        encoder = tiny(checkpoint_activations=checkpointed).train()
        encoder.pooled(images, "optical").square().sum().backward()
        gradients.append(encoder.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(*gradients)


def test_drop_path_acts_in_training_only() -> None:
    encoder, images = tiny(drop_path=0.9), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(images, "optical"), encoder(images, "optical"))
    encoder.train()
    assert not torch.allclose(encoder(images, "optical"), encoder(images, "optical"))


def test_every_parameter_gets_a_gradient_through_the_pyramid() -> None:
    encoder = tiny()
    loss = sum(
        m.square().sum()
        for name in encoder.modalities
        for m in encoder.pyramid(torch.randn(1, 3, 64, 64), name)
    )
    loss.backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_layer_ids_of_base_count_merges() -> None:
    with torch.device("meta"):
        ids = create_encoder("hivit_base").layer_ids()
    assert ids["patch_embed.sar.proj.weight"] == ids["absolute_pos_embed"] == 0
    assert ids["blocks.0.mlp.fc1.weight"] == 1
    assert ids["blocks.3.reduction.weight"] == 4
    assert ids["blocks.31.attn.qkv.weight"] == 32
    assert ids["fpn_modules.0.mlp.fc1.weight"] == 33


def test_random_encoder_is_seeded_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = load_encoder("random:hivit_tiny", img_size=64, seed=1)
    torch.testing.assert_close(torch.rand(2), expected)
    second = load_encoder("random:hivit_tiny", img_size=64, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(KeyError, match="did you mean 'hivit_tiny'"):
        load_encoder("random:hivit_tny")
