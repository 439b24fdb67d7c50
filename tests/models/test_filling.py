import numpy as np
import pytest
import torch

from codemae.models.encoder import Encoder
from codemae.models.factory import create_encoder
from codemae.models.filling import block_mask, fill_removed, resize_mask
from codemae.models.hivit import HiViT
from codemae.models.resnet import ResNet
from codemae.models.swin import Swin


def small(kind: str) -> Encoder:
    torch.manual_seed(0)
    if kind == "hivit":
        return HiViT(img_size=64, embed_dim=32, depths=(1, 1, 2), num_heads=2).eval()
    if kind == "swin":
        return Swin(img_size=64, embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2), window=2).eval()
    return ResNet(img_size=64, layers=(1, 1, 1, 1), widths=(8, 8, 8, 8)).eval()


def test_blocks_with_the_largest_noise_are_removed() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.8, 0.7, 0.1]])
    mask = block_mask(noise, (2, 2), 0.5)
    assert mask.tolist() == [[[[1, 0], [1, 0]]], [[[0, 1], [1, 0]]]]


def test_removed_blocks_get_the_mean_of_their_image_and_channel() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, 8, 12)).astype(np.float32)
    mask = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]]], [[[0.0, 0, 1], [1, 1, 0]]]])
    filled = fill_removed(torch.tensor(images), mask).numpy()
    for b in range(2):
        for c in range(3):
            for y in range(8):
                for x in range(12):
                    removed = mask[b, 0, y // 4, x // 4] == 1
                    expected = images[b, c].mean() if removed else images[b, c, y, x]
                    assert filled[b, c, y, x] == pytest.approx(expected, abs=1e-6)


def test_resized_mask_repeats_each_block() -> None:
    mask = torch.tensor([[[[1.0, 0.0]]]])
    assert resize_mask(mask, (2, 4)).tolist() == [[[[1, 1, 0, 0], [1, 1, 0, 0]]]]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hivit", "swin", "resnet"])
def test_without_a_mask_the_maps_are_the_tokens_of_each_modality(kind: str) -> None:
    encoder = small(kind)
    images = {"optical": torch.randn(2, 3, 64, 96), "sar": torch.randn(2, 1, 64, 96)}
    maps = encoder.encode_filled(images)
    stride = encoder.patch_size
    assert maps.shape == (4, encoder.embed_dim, 64 // stride, 96 // stride)
    for name, part in zip(images, maps.chunk(2), strict=True):
        torch.testing.assert_close(part.flatten(2).transpose(1, 2), encoder(images[name], name))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hivit", "swin", "resnet"])
def test_mask_token_changes_what_lies_under_the_mask(kind: str) -> None:
    encoder = small(kind)
    image = {"optical": torch.randn(1, 3, 64, 64)}
    plain = encoder.encode_filled(image)
    nothing = torch.zeros(1, 1, 2, 2)
    corner = nothing.clone()
    corner[0, 0, 0, 0] = 1
    token = torch.randn(encoder.stem_dim)
    assert torch.equal(encoder.encode_filled(image, nothing, token), plain)
    assert torch.equal(encoder.encode_filled(image, corner, torch.zeros(encoder.stem_dim)), plain)
    assert not torch.allclose(encoder.encode_filled(image, corner, token), plain)


@torch.no_grad()
def test_mask_token_reaches_the_removed_patches_of_a_hivit_alone() -> None:
    # before attention no patch sees another, so the stem's outputs tell where the token was added
    encoder = small("hivit")
    assert isinstance(encoder, HiViT)
    image, token = torch.randn(1, 3, 64, 64), torch.randn(encoder.stem_dim)
    corner = torch.zeros(1, 1, 2, 2)
    corner[0, 0, 1, 0] = 1
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder.encode_filled({"optical": image})
    encoder.encode_filled({"optical": image}, corner, token)
    added = seen[1] - seen[0]
    removed = [8, 9, 12, 13]
    torch.testing.assert_close(added[0, removed], token.expand(4, 4, 4, -1), atol=1e-5, rtol=1e-4)
    assert not added[0, [i for i in range(16) if i not in removed]].any()


def test_an_encoder_without_the_hook_says_so() -> None:
    encoder = Encoder()
    encoder.arch = "plain"
    with pytest.raises(TypeError, match="plain has no encode_filled"):
        encoder.encode_filled({"optical": torch.zeros(1, 3, 4, 4)})
    assert create_encoder("swin_tiny").stem_dim == 48
