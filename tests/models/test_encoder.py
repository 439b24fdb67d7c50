from pathlib import Path
from typing import Any

import pytest
import torch
from small_encoders import SMALL

from codemae.checkpoint import EncoderMetadata, WeightsError, is_encoder_file, save_encoder, save_weights
from codemae.models.encoder import Encoder
from codemae.models.factory import EncoderConfig, build_encoder, create_encoder, load_encoder, takes
from codemae.models.layer_decay import parameter_groups

RESNET, VIT = SMALL["resnet50"], SMALL["vit_small"]


def saved(path: Path, arch: str, **options: Any) -> Encoder:
    encoder = create_encoder(arch, img_size=32, channels={"sar": 1}, **options)
    metadata = EncoderMetadata(arch=arch, arch_kwargs=encoder.arch_kwargs, inputs={}, method="decur", steps=1)
    save_encoder(path, encoder, metadata)
    return encoder


def test_options_are_passed_to_those_who_take_them_and_refused_for_others() -> None:
    assert takes("hivit_tiny", "center") and takes("vit_small", "drop_path")
    assert not takes("resnet50", "pyramid")
    encoder = build_encoder(EncoderConfig(arch=RESNET, img_size=32, channels={"sar": 2}))
    assert encoder.arch == RESNET
    assert encoder.arch_kwargs == {"img_size": 32, "channels": {"sar": 2}}
    with pytest.raises(ValueError, match=r"encoder\.checkpoint_activations means nothing to resnet_test"):
        build_encoder(EncoderConfig(arch=RESNET, checkpoint_activations=True))


def test_a_run_starts_from_a_file_of_its_own_architecture_alone(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder = saved(path, VIT)
    started = build_encoder(EncoderConfig(arch=VIT, img_size=32, channels={"sar": 1}, init=str(path)))
    for name, value in encoder.state_dict().items():
        assert torch.equal(started.state_dict()[name], value)
    with pytest.raises(WeightsError, match=r"is a vit_test; method\.encoder\.arch is resnet_test"):
        build_encoder(EncoderConfig(arch=RESNET, img_size=32, channels={"sar": 1}, init=str(path)))


@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_task_may_ask_for_brightness_where_pretraining_took_it_away(tmp_path: Path, prefix: str) -> None:
    path, images = tmp_path / "encoder.safetensors", torch.rand(2, 1, 32, 32)
    saved(path, "hivit_tiny", center=["sar"])
    for center, same in ((None, True), ([], False)):
        encoder: Any = load_encoder(f"{prefix}{path}", center=center)
        assert torch.allclose(encoder(images, "sar"), encoder(images + 1, "sar"), atol=1e-5) is same
        assert encoder.arch_kwargs["center"] == ["sar"][:same]


def test_centering_is_refused_where_an_encoder_cannot(tmp_path: Path) -> None:
    saved(tmp_path / "encoder.safetensors", RESNET)
    for name in (str(tmp_path / "encoder.safetensors"), f"random:{RESNET}", "efficientnet_lite0"):
        with pytest.raises(ValueError, match=r"cannot center sar images; give no center"):
            load_encoder(name, center=["sar"])
    load_encoder(f"random:{RESNET}", center=[])


def test_encoder_files_are_known_by_their_header(tmp_path: Path) -> None:
    saved(tmp_path / "encoder.safetensors", VIT)
    save_weights(tmp_path / "plain.safetensors", {"a": torch.zeros(1)})
    save_weights(tmp_path / "plain.pth", {"a": torch.zeros(1)})
    found = [is_encoder_file(tmp_path / n) for n in ("encoder.safetensors", "plain.safetensors", "plain.pth")]
    assert found == [True, False, False]


def test_what_an_encoder_lacks_is_said_in_words() -> None:
    encoder = create_encoder(VIT, img_size=32, channels={"sar": 1})
    with pytest.raises(TypeError, match="vit_test has no feature maps"):
        encoder.pyramid(torch.rand(1, 1, 32, 32), "sar")


def test_layer_decay_follows_the_encoders_own_depths() -> None:
    encoder = create_encoder(RESNET, img_size=32, channels={"sar": 1})
    groups = parameter_groups(encoder, "", "official", 0.5, 0.1)
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    ids = encoder.layer_ids()
    for name, parameter in encoder.named_parameters():
        assert scales[id(parameter)] == 0.5 ** (4 - ids[name])
