from pathlib import Path

import pytest
import torch

from codemae.checkpoint import EncoderMetadata, load_strictly, save_encoder
from codemae.models.factory import create_encoder, load_encoder
from codemae.models.vit import ViT


def tiny(**kwargs: object) -> ViT:
    torch.manual_seed(0)
    return ViT(**{"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, **kwargs})


def test_tokens_equal_timms_own_forward() -> None:
    from timm.models.vision_transformer import VisionTransformer

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
