import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy
from torch import Tensor, nn

from codemae.analysis.attention import attention_received
from codemae.analysis.correspondence import found_in_place, match_patches
from codemae.analysis.dimensions import dimension_alignment, map_dimensions, split_dimensions
from codemae.analysis.run_encoders import EncoderPair, load_run_encoder
from codemae.analysis.saliency import band_importance, grad_cam, integrated_gradients, overlap
from codemae.checkpoint import EncoderMetadata, InputSpec, save_encoder
from codemae.cli import main
from codemae.models.factory import create_encoder, load_encoder


def test_alignment_of_each_dimension_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    optical = rng.normal(size=(200, 4))
    sar = np.stack(
        [optical[:, 0], -optical[:, 1], rng.normal(size=200), optical[:, 3] + rng.normal(size=200)], 1
    )
    found = dimension_alignment(torch.from_numpy(optical), torch.from_numpy(sar))
    expected = [(1 - np.corrcoef(optical[:, d], sar[:, d])[0, 1]) ** 2 for d in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    sets = split_dimensions(torch.from_numpy(optical), torch.from_numpy(sar))
    assert sorted(sets["common"].tolist()) == [0, 3] and sorted(sets["unique"].tolist()) == [1, 2]
    with pytest.raises(ValueError, match="4 of 4 dimensions"):
        split_dimensions(torch.from_numpy(optical), torch.from_numpy(sar), common_share=1.0)


def test_equal_dimensions_lie_together_on_the_map() -> None:
    optical = torch.randn(40, 20, generator=torch.Generator().manual_seed(0))
    plane = map_dimensions(optical, optical.clone())
    partners = np.linalg.norm(plane[:20] - plane[20:], axis=1)
    others = [
        np.linalg.norm(plane[a] - plane[20 + b]) for a, b in itertools.product(range(20), repeat=2) if a != b
    ]
    assert partners.max() < np.median(others) / 2


class Linear(nn.Module):
    """Tokens that are a linear map of non-overlapping 2 x 2 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 5, 2, stride=2)

    def forward(self, images: Tensor, modality: str) -> Tensor:
        return self.map(images).flatten(2).transpose(1, 2)

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        return self(images, modality).mean(1)


def test_grad_cam_is_the_formula() -> None:
    torch.manual_seed(0)
    encoder, images = Linear(), torch.randn(2, 3, 8, 8)
    coefficients = torch.randn(5)
    cam = grad_cam(encoder, images, "optical", lambda features: features @ coefficients)
    tokens = encoder(images, "optical").detach()
    for image, place in itertools.product(range(2), range(16)):
        expected = sum(float(coefficients[d]) / 16 * float(tokens[image, place, d]) for d in range(5))
        assert cam[image, place] == pytest.approx(max(0.0, expected), abs=1e-6)
    assert overlap(cam, cam).tolist() == pytest.approx([1, 1])
    assert overlap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])).tolist() == [0]


def test_integrated_gradients_add_up_and_rank_the_bands() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 4, 4)
    attribution = integrated_gradients(lambda x: (x**3).sum(dim=(1, 2, 3)), images, steps=64)
    torch.testing.assert_close(attribution.sum((1, 2, 3)), (images**3).sum((1, 2, 3)), rtol=1e-3, atol=1e-3)
    encoder = Linear()
    with torch.no_grad():
        encoder.map.weight.zero_()
        encoder.map.weight[:, 1] = 1.0
        encoder.map.weight[:, 2] = 0.5
    shares = band_importance(encoder, images, "optical", lambda features: features.sum(1))
    weights = torch.tensor([0.0, 1.0, 0.5]) * images.abs().sum((2, 3))
    torch.testing.assert_close(shares, weights / weights.sum(1, keepdim=True))


def test_attention_received_is_that_of_the_last_block() -> None:
    torch.manual_seed(0)
    encoder = create_encoder("hivit_tiny", img_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    found = attention_received(encoder, images, "optical")
    assert found.shape == (2, 16) and torch.allclose(found.sum(1), torch.ones(2))
    block = [m for m in encoder.modules() if getattr(m, "attn", None) is not None][-1]
    seen: list[Tensor] = []
    block.attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    encoder(images, "optical")
    x, layer = seen[0], block.attn
    width = x.shape[-1] // layer.num_heads
    mean = torch.zeros(2, 16)
    for image, head in itertools.product(range(2), range(layer.num_heads)):
        q, k = (
            (x[image] @ layer.qkv.weight[part : part + width].T + layer.qkv.bias[part : part + width])
            for part in (head * width, x.shape[-1] + head * width)
        )
        mean[image] += (q @ k.T / math.sqrt(width)).softmax(1).mean(0) / layer.num_heads
    torch.testing.assert_close(found, mean.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs a ViT or HiViT"):
        attention_received(load_encoder("random:resnet50", img_size=64), images, "optical")


def test_patches_find_their_own_place_and_matches_are_mutual() -> None:
    tokens = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))
    found, chance = found_in_place(tokens, tokens)
    assert found == 1.0
    near = [sum(abs(a // 3 - b // 3) <= 1 and abs(a % 3 - b % 3) <= 1 for b in range(9)) for a in range(9)]
    assert chance == pytest.approx(sum(near) / 81)
    order = torch.tensor([3, 0, 1, 2])
    matches = match_patches(tokens[0, :4], tokens[0, :4][order], count=3)
    assert all(order[second] == first for first, second in zip(matches.first, matches.second, strict=True))
    assert len(matches.first) == 3
    far = found_in_place(tokens, tokens[:, [8, 7, 6, 5, 4, 3, 2, 1, 0]])[0]
    assert far == pytest.approx(1 / 9)  # only the middle one


def test_a_run_with_a_file_a_modality_is_one_encoder(tmp_path: Path) -> None:
    for modality, channels in (("optical", 3), ("sar", 1)):
        encoder = create_encoder("hivit_tiny", img_size=32, channels={modality: channels})
        spec = InputSpec(
            channels=channels, mean=[0.0] * channels, std=[1.0] * channels, scaling="uint8", size=32
        )
        described = EncoderMetadata(
            arch="hivit_tiny", arch_kwargs=encoder.arch_kwargs, inputs={modality: spec}, method="x", steps=1
        )
        save_encoder(tmp_path / f"{modality}.safetensors", encoder, described)
    pair = load_run_encoder(tmp_path)
    assert isinstance(pair, EncoderPair) and pair.modalities == ("optical", "sar")
    single = load_encoder(tmp_path / "sar.safetensors")
    images = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(pair(images, "sar"), single(images, "sar"))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="pretrain first"):
        load_run_encoder(empty)


def test_analyze_explains_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = toy.make_index(tmp_path / "index")
    words = ["analyze", "random:hivit_tiny", "--data.index", str(index), "--size", "32", "--count", "6"]
    assert main([*words, "--no-map", "--explain", "all", "--out", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    for heading in ("Dimensions one by one", "Where the features come from", "Feature correspondence"):
        assert heading in page
    assert "Which bands" in page and "What the last layer attends to" in page
    assert main([*words, "--no-map", "--explain", "bands", "--out", str(tmp_path / "few")]) == 0
    assert "Feature correspondence" not in (tmp_path / "few" / "report.html").read_text()
    words[1], words[words.index("32")] = "random:resnet50", "96"
    assert main([*words, "--no-map", "--explain", "attention", "--out", str(tmp_path / "none")]) == 1
    assert "needs a ViT or HiViT" in capsys.readouterr().err
