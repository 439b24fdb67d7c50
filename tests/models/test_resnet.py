from pathlib import Path

import numpy as np
import pytest
import torch
from timm import create_model

from codemae.checkpoint import (
    EncoderMetadata,
    InputSpec,
    WeightsError,
    load_strictly,
    save_encoder,
    save_weights,
)
from codemae.models.factory import EncoderConfig, build_encoder, create_encoder, load_encoder
from codemae.models.resnet import ResNet


def tiny(**kwargs: object) -> ResNet:
    torch.manual_seed(0)
    fields = {"img_size": 64, "layers": (1, 1, 2, 1), "widths": (4, 8, 16, 32), "attention": True}
    encoder = ResNet(**{**fields, **kwargs})
    encoder.arch = "resnet_test"
    return encoder


def test_without_attention_it_is_timms_resnet50() -> None:
    torch.manual_seed(0)
    theirs = create_model("resnet50", num_classes=0).eval()
    ours = create_encoder("resnet50", channels={"optical": 3}, img_size=32).eval()
    state = {f"trunk.{key}": value for key, value in theirs.state_dict().items() if key != "conv1.weight"}
    load_strictly(ours, {**state, "stem.optical.weight": theirs.state_dict()["conv1.weight"]})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.pooled(images, "optical"), theirs(images))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_a_torchvision_file_starts_any_number_of_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = create_model("resnet50", num_classes=10).eval()
    save_weights(tmp_path / "resnet50.pth", theirs.state_dict())
    config = EncoderConfig(
        arch="resnet50_rda", channels={"sar": 6}, init=str(tmp_path / "resnet50.pth"), img_size=64
    )
    ours = build_encoder(config).eval()
    assert torch.equal(ours.state_dict()["trunk.layer4.2.conv3.weight"], theirs.layer4[2].conv3.weight)
    # Six channels that repeat three answer as those three did.
    stem = ours.get_submodule("stem.sar")
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            stem(images.repeat(1, 2, 1, 1)), theirs.conv1(images), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(WeightsError, match="missing"):
        save_weights(tmp_path / "part.pth", {"conv1.weight": theirs.conv1.weight})
        config.init = str(tmp_path / "part.pth")
        build_encoder(config)


def test_pyramid_strides_and_channels_at_any_size() -> None:
    encoder = tiny().eval()
    maps = encoder.pyramid(torch.rand(2, 1, 64, 96), "sar")
    assert [tuple(m.shape) for m in maps] == [
        (2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)
    ]  # fmt: skip
    assert encoder.pyramid_dims == (16, 32, 64, 128)
    tokens = encoder(torch.rand(2, 3, 64, 96), "optical")
    assert tokens.shape == (2, 6, 128) and encoder.embed_dim == 128


def test_pooled_is_the_mean_of_the_last_map() -> None:
    encoder, images = tiny().eval(), torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(
        encoder.pooled(images, "optical"), encoder.pyramid(images, "optical")[-1].mean((2, 3))
    )


def test_attention_stands_after_the_last_two_stages_as_the_paper_says() -> None:
    encoder = create_encoder("resnet50_rda", channels={"sar": 2}, img_size=224)
    found = {
        stage: (
            module.num_heads,
            module.query.in_channels // module.num_heads,
            module.groups,
            module.offsets[0].stride[0],
            module.offsets[0].kernel_size[0],
            tuple(module.bias_table.shape[1:]),
        )
        for stage, module in encoder.attention.items()
    }
    assert found == {"3": (8, 128, 4, 2, 5, (27, 27)), "4": (16, 128, 8, 1, 3, (13, 13))}


def test_every_parameter_learns_and_has_a_depth() -> None:
    encoder = tiny(channels={"sar": 2})
    encoder.pooled(torch.rand(2, 2, 64, 64), "sar").square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
    ids = encoder.layer_ids()
    assert set(ids) == set(dict(encoder.named_parameters()))
    assert ids["stem.sar.weight"] == ids["trunk.bn1.weight"] == 0
    assert ids["trunk.layer1.0.conv1.weight"] == 1
    assert ids["trunk.layer3.1.conv1.weight"] == ids["attention.3.query.weight"] == 4
    assert ids["trunk.layer4.0.conv1.weight"] == ids["attention.4.query.weight"] == 5


def test_a_saved_encoder_answers_the_same_at_its_size_and_loads_at_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = create_encoder("resnet50_rda", channels={"sar": 2}, img_size=64).eval()
    spec = InputSpec(channels=2, mean=[0.1, 0.2], std=[1.0, 2.0], scaling="uint8", size=64)
    metadata = EncoderMetadata(
        arch=encoder.arch, arch_kwargs=encoder.arch_kwargs, inputs={"sar": spec}, method="decur", steps=3
    )
    save_encoder(tmp_path / "encoder.safetensors", encoder, metadata)
    images = torch.rand(1, 2, 64, 64)
    same = load_encoder(tmp_path / "encoder.safetensors")
    with torch.no_grad():
        assert torch.equal(same.pooled(images, "sar"), encoder.pooled(images, "sar"))
    larger = load_encoder(tmp_path / "encoder.safetensors", img_size=128, channels={"sar": 3})
    assert larger.get_submodule("attention.3").bias_table.shape == (8, 15, 15)
    assert larger.pooled(torch.rand(1, 3, 128, 128), "sar").shape == (1, 2048)


def test_unknown_modality_and_meaningless_settings_are_refused() -> None:
    with pytest.raises(KeyError, match="knows sar, not 'optical'"):
        tiny(channels={"sar": 1})(torch.rand(1, 3, 64, 64), "optical")
    with pytest.raises(ValueError, match=r"method\.encoder\.center means nothing to resnet50"):
        build_encoder(EncoderConfig(arch="resnet50", center=["sar"]))


def test_a_gray_image_is_repeated() -> None:
    encoder, gray = tiny().eval(), torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(encoder(gray, "optical"), encoder(gray.expand(-1, 3, -1, -1), "optical"))
    with pytest.raises(ValueError, match="sees 3 channels, the images have 2"):
        encoder(torch.rand(1, 2, 64, 64), "optical")


def test_without_residual_the_map_is_replaced() -> None:
    with_map, without = tiny(), tiny(residual=False)
    images = torch.rand(1, 3, 64, 64)
    load_strictly(without, with_map.state_dict())
    first = with_map.eval().pyramid(images, "optical")[2]
    second = without.eval().pyramid(images, "optical")[2]
    assert not np.allclose(first.detach(), second.detach())
