import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_files import SIDE, hivit_file, itpn_file
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


@pytest.mark.parametrize(("pyramid", "layout"), [(True, itpn_file), (False, itpn_file), (False, hivit_file)])
def test_a_run_starts_from_an_itpn_or_hivit_file(tmp_path: Path, pyramid: bool, layout: Callable) -> None:
    path, state = tmp_path / "published.pth", layout()
    torch.save({"model": state}, path)
    config = EncoderConfig(arch="hivit_tiny", img_size=SIDE, pyramid=pyramid, init=str(path))
    started = build_encoder(config).state_dict()
    patch = {f"patch_embed.{name}.": "patch_embed." for name in ("optical", "sar")}
    for name, value in started.items():
        prefix = next((mine for mine in patch if name.startswith(mine)), "")
        theirs = patch.get(prefix, "") + name.removeprefix(prefix)
        torch.testing.assert_close(value, state[theirs], rtol=0, atol=0, msg=name)
    assert any(name.startswith("fpn_modules.") for name in started) == pyramid


def test_positions_of_an_itpn_file_are_fitted_to_the_image_size(tmp_path: Path) -> None:
    state = itpn_file()
    # Interpolation of a constant field is that constant.
    state["absolute_pos_embed"] = torch.full_like(state["absolute_pos_embed"], 0.25)
    torch.save({"model": state}, tmp_path / "itpn.pth")
    config = EncoderConfig(arch="hivit_tiny", img_size=2 * SIDE, init=str(tmp_path / "itpn.pth"))
    positions = build_encoder(config).state_dict()["absolute_pos_embed"]
    assert positions.shape[1] == 4 * state["absolute_pos_embed"].shape[1]
    torch.testing.assert_close(positions, torch.full_like(positions, 0.25))


@pytest.mark.parametrize(
    ("arch", "init", "said"),
    [
        ("hivit_tiny", "itpn_base_pixel", "is a hivit_base, method.encoder.arch is hivit_tiny"),
        ("hivit_base", "itpn_base_pixel", "CODEMAE_MIRROR is not set"),
        ("hivit_base", "nowhere.pth", "'nowhere.pth' is neither a file nor released weights"),
    ],
)
def test_initial_weights_that_cannot_be_had_are_refused_with_the_ways_out(
    arch: str, init: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CODEMAE_MIRROR", raising=False)
    monkeypatch.setenv("CODEMAE_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=re.escape(said)) as refused:
        build_encoder(EncoderConfig(arch=arch, init=init))
    assert "--method.encoder.init FILE names a local file" in str(refused.value)
    assert "--method.encoder.init '' starts from random weights" in str(refused.value)


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
