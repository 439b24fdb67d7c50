from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_encoders import SMALL
from timm.models.vision_transformer import VisionTransformer

from codemae.checkpoint import EncoderMetadata, WeightsError, load_strictly, save_encoder, save_weights
from codemae.models.factory import EncoderConfig, build_encoder, create_encoder, load_encoder
from codemae.models.vit import ViT


def tiny(**kwargs: object) -> ViT:
    torch.manual_seed(0)
    return ViT(**{"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, **kwargs})


def test_tokens_equal_timms_own_forward() -> None:
    ours = tiny(channels={"optical": 3}).eval()
    theirs = VisionTransformer(
        img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=0, class_token=False, global_pool=""
    ).eval()
    renamed = {
        key.removeprefix("trunk.").replace("patch_embed.optical", "patch_embed"): value
        for key, value in ours.state_dict().items()
    }
    load_strictly(theirs, renamed)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(images, "optical"), theirs(images))
        torch.testing.assert_close(ours.pooled(images, "optical"), theirs(images).mean(1))


def test_other_sizes_and_depths() -> None:
    encoder = tiny()
    assert encoder(torch.rand(1, 1, 48, 64), "sar").shape == (1, 12, 16)
    with pytest.raises(ValueError, match="multiples of 16"):
        encoder(torch.rand(1, 1, 40, 64), "sar")
    ids = encoder.layer_ids()
    assert set(ids) == set(dict(encoder.named_parameters()))
    assert (ids["patch_embed.sar.proj.weight"], ids["trunk.pos_embed"]) == (0, 0)
    assert (ids["trunk.blocks.1.attn.qkv.weight"], ids["trunk.norm.weight"]) == (2, 3)


def test_every_parameter_gets_a_gradient_with_and_without_recomputation() -> None:
    gradients = []
    for recompute in (False, True):
        encoder = tiny(channels={"sar": 1}, checkpoint_activations=recompute).train()
        encoder.pooled(torch.ones(2, 1, 32, 32), "sar")[:, 0].sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None and second is not None
        torch.testing.assert_close(first, second)


def test_a_file_loads_at_another_size(tmp_path: Path) -> None:
    encoder = create_encoder("vit_small", img_size=32, channels={"sar": 2}).eval()
    metadata = EncoderMetadata(
        arch="vit_small", arch_kwargs=encoder.arch_kwargs, inputs={}, method="decur", steps=1
    )
    save_encoder(tmp_path / "encoder.safetensors", encoder, metadata)
    same, larger = (load_encoder(tmp_path / "encoder.safetensors", img_size=size) for size in (None, 48))
    images = torch.rand(1, 2, 32, 32)
    with torch.no_grad():
        assert torch.equal(same(images, "sar"), encoder(images, "sar"))
        torch.testing.assert_close(larger(images, "sar"), encoder(images, "sar"), rtol=0.5, atol=0.5)
    assert larger.state_dict()["trunk.pos_embed"].shape == (1, 9, 384)


def published(**kwargs: object) -> VisionTransformer:
    """timm's model of ``vit_test``'s size, with class token and classifier."""
    torch.manual_seed(1)
    fields = {"img_size": 48, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    model = VisionTransformer(**{**fields, **kwargs}).eval()
    torch.nn.init.normal_(model.pos_embed)
    return model


def started(file: Path, img_size: int = 48, **channels: int) -> ViT:
    config = EncoderConfig(
        arch=SMALL["vit_small"], img_size=img_size, channels=channels or {"sar": 3}, init=str(file)
    )
    encoder = build_encoder(config).eval()
    assert isinstance(encoder, ViT)
    return encoder


@pytest.mark.parametrize("name", ["vit.safetensors", "vit.pth"])
def test_a_timm_file_starts_every_modality(name: str, tmp_path: Path) -> None:
    theirs = published()
    if name.endswith(".pth"):
        save_weights(tmp_path / name, theirs.state_dict())
    else:
        save_file(theirs.state_dict(), tmp_path / name)
    ours = started(tmp_path / name, optical=6, sar=3)
    state, given = ours.state_dict(), theirs.state_dict()
    blocks = [key for key in given if key.startswith(("blocks.", "norm."))]
    assert len(blocks) == 12 + 2
    for key in blocks:
        assert torch.equal(state[f"trunk.{key}"], given[key]), key
    assert torch.equal(state["trunk.pos_embed"], given["pos_embed"][:, 1:])
    assert torch.equal(state["patch_embed.sar.proj.weight"], given["patch_embed.proj.weight"])
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        # Six channels that repeat three answer as those three did.
        torch.testing.assert_close(ours(images.repeat(1, 2, 1, 1), "optical"), ours(images, "sar"))
    smaller = started(tmp_path / name, img_size=32).state_dict()["trunk.pos_embed"]
    assert smaller.shape == (1, 4, 16)


def test_a_timm_file_without_class_token_answers_as_it_did(tmp_path: Path) -> None:
    theirs = published(class_token=False, global_pool="avg", fc_norm=False)
    save_weights(tmp_path / "vit.pth", theirs.state_dict())
    ours, images = started(tmp_path / "vit.pth"), torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours(images, "sar"), theirs.forward_features(images))
    theirs = published(no_embed_class=True)
    save_weights(tmp_path / "vit.pth", theirs.state_dict())
    assert torch.equal(started(tmp_path / "vit.pth").state_dict()["trunk.pos_embed"], theirs.pos_embed)


def test_one_of_our_files_starts_a_run(tmp_path: Path) -> None:
    encoder = create_encoder(SMALL["vit_small"], img_size=48, channels={"sar": 3})
    metadata = EncoderMetadata(
        arch=encoder.arch, arch_kwargs=encoder.arch_kwargs, inputs={}, method="decur", steps=1
    )
    save_encoder(tmp_path / "encoder.safetensors", encoder, metadata)
    state = started(tmp_path / "encoder.safetensors").state_dict()
    assert all(torch.equal(state[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"embed_dim": 32}, "shape: trunk.blocks.0.norm1.weight"),
        ({"depth": 2}, "unexpected: trunk.blocks.1"),
        ({"init_values": 1e-5}, "unexpected: trunk.blocks.0.ls1.gamma"),
        ({"patch_size": 8}, "shape: patch_embed.sar.proj.weight"),
    ],
)
def test_a_file_of_another_transformer_is_refused(
    wrong: dict[str, object], message: str, tmp_path: Path
) -> None:
    save_weights(tmp_path / "vit.pth", published(**wrong).state_dict())
    with pytest.raises(WeightsError, match=message):
        started(tmp_path / "vit.pth")


def test_a_file_of_no_transformer_is_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "other.pth", {"conv1.weight": torch.zeros(4, 3, 7, 7)})
    with pytest.raises(WeightsError, match="missing: trunk.pos_embed"):
        started(tmp_path / "other.pth")
