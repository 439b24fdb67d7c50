import pytest
import torch
import torch.nn.functional as F

from codemae.models.damage import DamageHead, DamageModel, damage_probabilities
from codemae.models.factory import create_encoder

HEADS: tuple[DamageHead, ...] = ("damageformer", "upernet", "difference")


def model(head: DamageHead = "damageformer", **more: object) -> DamageModel:
    torch.manual_seed(0)
    encoder = create_encoder("hivit_tiny", img_size=32)
    return DamageModel(encoder, 4, head=head, width=8, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", HEADS)
def test_logits_have_the_size_of_the_images_and_every_parameter_learns(head: DamageHead) -> None:
    network = model(head)
    out = network(torch.randn(2, 3, 32, 64), torch.randn(2, 1, 32, 64))
    assert out.localisation.shape == (2, 2, 32, 64) and out.damage.shape == (2, 4, 32, 64)
    assert out.post_localisation is None
    (out.localisation.square().mean() + out.damage.square().mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_encoder_sees_both_dates_through_their_own_embeddings() -> None:
    network = model().eval()
    pre, post = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    before = network(pre, post).damage
    with torch.no_grad():
        network.encoder.patch_embed["sar"].proj.bias += torch.randn(48)
    after = network(pre, post)
    assert not torch.allclose(before, after.damage)
    assert torch.equal(network(pre, None).localisation, after.localisation)
    assert sum(name.startswith("encoder.blocks.0.") for name, _ in network.named_parameters()) > 0
    assert len([m for m in network.modules() if type(m) is type(network.encoder)]) == 1


def test_the_coarsest_level_is_the_maximum_over_the_one_before() -> None:
    network = model()
    levels = network.levels(torch.randn(1, 3, 64, 96), "optical")
    assert [tuple(level.shape[-2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert torch.equal(levels[3], F.max_pool2d(levels[2], 2))


@pytest.mark.parametrize("norm_levels", [True, False])
def test_normalised_levels_make_the_size_of_the_encoders_maps_irrelevant(
    norm_levels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = model(norm_levels=norm_levels).eval()
    pre, post = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    before = network(pre, post).damage
    pyramid = network.encoder.pyramid
    monkeypatch.setattr(network.encoder, "pyramid", lambda *given: [30 * m for m in pyramid(*given)])
    assert torch.allclose(network(pre, post).damage, before, atol=1e-3) is norm_levels


def test_one_date_alone_defines_localisation_only() -> None:
    network = model(post_localisation=True).eval()
    pre, post = torch.randn(1, 3, 32, 32), torch.randn(1, 1, 32, 32)
    assert network.answers == ("both", "pre", "post")
    both, first, second = network(pre, post), network(pre, None), network(None, post)
    assert first.damage is None and second.damage is None and second.localisation is None
    assert torch.equal(first.localisation, both.localisation)
    assert torch.equal(second.post_localisation, both.post_localisation)
    assert set(damage_probabilities(second)) == {"building"}
    shares = damage_probabilities(both)
    torch.testing.assert_close(shares["damage"].sum(1), torch.ones(1, 32, 32))


@pytest.mark.parametrize("head", HEADS)
def test_a_date_the_model_was_not_trained_for_is_refused(head: DamageHead) -> None:
    with pytest.raises(ValueError, match="not with post alone"):
        model(head)(None, torch.randn(1, 1, 32, 32))
    with pytest.raises(ValueError, match="neither"):
        model(head)(None, None)


def test_the_head_is_a_function_of_its_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    encoder = create_encoder("hivit_tiny", img_size=32)
    torch.manual_seed(3)
    first, second, other = (DamageModel(encoder, 4, width=8, seed=seed).head for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weights = [head.state_dict()["assess.weight"] for head in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
