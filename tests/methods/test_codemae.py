import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.degradation import degraded_patches
from codemae.losses.reconstruction import patchify
from codemae.methods.base import Progress
from codemae.methods.codemae import CoDeMAE, CoDeMAEConfig, box_mean
from codemae.models.factory import ENCODERS, EncoderConfig
from codemae.models.itpn import ITPN
from codemae.models.masking import random_masking

PROGRESS = Progress(step=0, total_steps=10, epoch=0)
MakeBatch = Callable[..., Batch]


@ENCODERS.register("hivit_test")
def hivit_test(**kwargs: Any) -> ITPN:
    kwargs.pop("pyramid", None)
    return ITPN(arch="hivit_test", embed_dim=32, depths=(1, 1, 3), num_heads=2, fpn_dim=16, **kwargs)


class WordTeacher(nn.Module):
    """A stand-in teacher whose tokens are the patch means, so an oracle can compute them."""

    dim, licence_notes = 3, ["test terms"]

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def tokens(self, batch: Batch, view: str, grid: tuple[int, int]) -> Tensor:
        return F.adaptive_avg_pool2d(batch.unit(view), grid).flatten(2).transpose(1, 2) * self.weight


def paper() -> CoDeMAEConfig:
    config = CoDeMAEConfig(encoder=EncoderConfig(arch="hivit_test", img_size=64))
    config.decoder.dim, config.decoder.depth, config.decoder.num_heads = 32, 2, 4
    config.okd.auxiliary_block = 1
    return config


def official() -> CoDeMAEConfig:
    config = paper()
    config.modality_reduction = "mean"
    config.okd.loss, config.okd.branches = "smooth_l1", "fused_and_auxiliary"
    config.ccl.input, config.ccl.num_heads = "decoder_embed", 4
    config.ccl.pre_norm = config.ccl.output_projection = True
    config.ccl.gather_gradient = False
    config.cdr.computed_from, config.cdr.norm_target = "standardised", True
    return config


def build(config: CoDeMAEConfig, monkeypatch: pytest.MonkeyPatch) -> CoDeMAE:
    monkeypatch.setattr("codemae.methods.codemae.build_teacher", lambda _: WordTeacher())
    torch.manual_seed(0)
    return CoDeMAE(config)


def kept_and_removed(batch: Batch, sample: int) -> tuple[list[int], list[int]]:
    order = np.argsort(batch.mask_noise[sample].numpy(), kind="stable").tolist()
    return order[:4], order[4:]


def standardised(patch: np.ndarray) -> np.ndarray:
    return (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)


def pixel_patch(image: np.ndarray, patch: int) -> np.ndarray:
    top, left = 16 * (patch // 4), 16 * (patch % 4)
    return image[:, top : top + 16, left : left + 16].transpose(1, 2, 0).reshape(-1)


@torch.no_grad()
@pytest.mark.parametrize("preset", [paper, official])
def test_losses_equal_a_slow_transcription(
    preset: Callable[[], CoDeMAEConfig], make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = build(preset(), monkeypatch).eval(), make_batch(3)
    config = method.config
    encoder, losses = method.encoder, method(batch, PROGRESS)

    unit, normal = {}, {}
    for name in ("optical", "sar"):
        values = batch.images[name].numpy() / 255.0
        unit[name] = values
        normal[name] = (values - batch.mean[name].numpy()[:, :, None, None]) / batch.std[name].numpy()[
            :, :, None, None
        ]
    self_error, cross_error, okd, conditioned = [], [], [], {"optical": [], "sar": []}
    for i in range(3):
        keep, removed = kept_and_removed(batch, i)
        ids = torch.tensor([keep])
        masking = (ids, torch.tensor([removed]), None)
        tokens, fused = {}, {}
        for name in ("optical", "sar"):
            image = torch.tensor(normal[name][i : i + 1], dtype=torch.float32)
            features = encoder.encode({name: image}, ids, taps=(1,))
            tokens[name] = features
            fused[name] = method.decoder_embed(encoder.level_features(features))
        for name, other in (("optical", "sar"), ("sar", "optical")):
            guess = method.decoders[0](
                fused[name], type("M", (), {"ids_keep": ids, "ids_removed": masking[1]})
            )[0].numpy()
            own = normal[name][i] if name == "optical" else normal[name][i].repeat(3, axis=0)
            for row, patch in enumerate(removed):
                self_error.append(np.mean((guess[row] - standardised(pixel_patch(own, patch))) ** 2))
            guess = method.cross_decoder(
                fused[name], type("M", (), {"ids_keep": ids, "ids_removed": masking[1]})
            )[0].numpy()
            source = (unit if config.cdr.computed_from == "image" else normal)[other][i]
            gray = (
                source
                if other == "sar"
                else (0.299 * source[0] + 0.587 * source[1] + 0.114 * source[2])[None]
            )
            for row, patch in enumerate(removed):
                target = pixel_patch(gray, patch)
                target = standardised(target) if config.cdr.norm_target else target
                cross_error.append(np.mean((guess[row] - target) ** 2))
        teacher = [
            [unit["optical"][i, c, 16 * (p // 4) :][:16, 16 * (p % 4) :][:, :16].mean() for c in range(3)]
            for p in keep
        ]
        if config.okd.branches == "encoder":
            okd.append(
                np.abs(method.okd_heads["encoder"](tokens["optical"].tokens)[0].numpy() - teacher).mean()
            )
        else:
            gaps = [
                np.abs(method.okd_heads["fused"](fused["optical"])[0].numpy() - teacher),
                np.abs(method.okd_heads["auxiliary"](tokens["optical"].taps[1])[0].numpy() - teacher),
            ]
            okd.append(sum(np.where(g < 1, g**2 / 2, g - 0.5).mean() for g in gaps))
        x = {
            n: (tokens[n].tokens if config.ccl.input == "encoder" else fused[n])[0]
            for n in ("optical", "sar")
        }
        for name, other in (("optical", "sar"), ("sar", "optical")):
            attention = method.ccl_spaces[name].cattn
            q, kv = attention.q(attention.n_q(x[name])), attention.kv(attention.n_kv(x[other]))
            heads, width = attention.num_heads, q.shape[1] // attention.num_heads
            found = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                k, v = kv[:, :32][:, part], kv[:, 32:][:, part]
                found.append(torch.softmax(q[:, part] @ k.T / width**0.5, -1) @ v)
            mixed = (x[name] + attention.proj(torch.cat(found, 1))).mean(0).numpy()
            conditioned[name].append(mixed / np.linalg.norm(mixed))
    similarity = np.exp(np.array(conditioned["optical"]) @ np.array(conditioned["sar"]).T / 0.07)
    ccl = -0.5 * np.mean(
        [
            np.log(similarity[i, i] / similarity[i].sum()) + np.log(similarity[i, i] / similarity[:, i].sum())
            for i in range(3)
        ]
    )
    factor = 2 if config.modality_reduction == "sum" else 1
    expected = {
        "reconstruction": factor * np.mean(self_error),
        "okd": np.mean(okd),
        "ccl": ccl,
        "cdr": factor * np.mean(cross_error),
    }
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("preset", [paper, official])
@pytest.mark.parametrize("paired", [True, False])
def test_every_parameter_gets_a_gradient_and_the_teacher_none(
    preset: Callable[[], CoDeMAEConfig], paired: bool, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(preset(), monkeypatch)
    losses = method(make_batch(2, paired=paired), PROGRESS)
    assert set(losses) == ({"reconstruction", "okd", "ccl", "cdr"} if paired else {"reconstruction", "okd"})
    sum(losses.values()).backward()  # type: ignore[union-attr]
    trained = dict(method.named_parameters())
    assert trained.pop("teacher.weight").grad is None
    missing = [name for name, p in trained.items() if p.grad is None]
    assert missing == []
    zero = {name for name, p in trained.items() if not p.grad.abs().sum() > 0}  # type: ignore[union-attr]
    cross = {name for name in trained if name.startswith(("ccl_spaces.", "cross_decoder."))}
    assert zero == (set() if paired else cross)


@torch.no_grad()
def test_pixels_of_visible_patches_are_no_target(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = build(official(), monkeypatch).eval(), make_batch(1)
    targets = {"self": method.self_targets, "cross": method.cross_targets}
    images = {name: batch.normalised(name) for name in ("optical", "sar")}
    keep, removed = kept_and_removed(batch, 0)
    changed = copy.deepcopy(batch)
    for patch in keep:
        top, left = 16 * (patch // 4), 16 * (patch % 4)
        for name in changed.images:
            changed.images[name][:, :, top : top + 16, left : left + 16] ^= 255
    altered = {name: changed.normalised(name) for name in ("optical", "sar")}
    for function in targets.values():
        before, after = function(images, batch), function(altered, changed)
        assert torch.equal(before[:, removed], after[:, removed])
        assert not torch.equal(before[:, keep], after[:, keep])

    fused = torch.randn(2, 4, 32)
    masking = random_masking(batch.mask_noise, 0.75)
    for loss in (method._reconstruction, method._cdr):
        assert torch.equal(loss(fused, masking, images, batch), loss(fused, masking, altered, changed))


@torch.no_grad()
def test_removed_pixels_reach_no_token(make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = build(paper(), monkeypatch).eval(), make_batch(1)
    changed = copy.deepcopy(batch)
    for patch in kept_and_removed(batch, 0)[1]:
        top, left = 16 * (patch // 4), 16 * (patch % 4)
        for name in changed.images:
            changed.images[name][:, :, top : top + 16, left : left + 16] ^= 255
    before, after = method(batch, PROGRESS), method(changed, PROGRESS)
    assert before["ccl"].item() == after["ccl"].item()
    assert before["reconstruction"].item() != after["reconstruction"].item()


def test_unpaired_batches_do_not_run_the_cross_modules(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(paper(), monkeypatch)

    def refuse(*_: Any) -> None:
        raise AssertionError("a cross-modal module ran")

    for module in (*method.ccl_spaces.values(), method.cross_decoder):
        module.register_forward_hook(refuse)
    method(make_batch(2, paired=False), PROGRESS)
    with pytest.raises(AssertionError, match="cross-modal module ran"):
        method(make_batch(2), PROGRESS)


VARIANTS: dict[str, Callable[[CoDeMAEConfig], None]] = {
    "separate decoders": lambda c: setattr(c.decoder, "shared", False),
    "raw": lambda c: setattr(c.ccl, "space", "raw"),
    "linear": lambda c: setattr(c.ccl, "space", "linear"),
    "mlp": lambda c: setattr(c.ccl, "space", "mlp"),
    "self-attention": lambda c: setattr(c.ccl, "self_attention", True),
    "ffn": lambda c: setattr(c.ccl, "ffn", True),
    **{
        f"cdr {kind}": (lambda c, kind=kind: setattr(c.cdr, "target", kind))
        for kind in ("rgb", "median", "avg_pool", "hog", "mgf")
    },  # type: ignore[misc]
    "multilook": lambda c: setattr(c.reconstruction, "sar_target", "multilook"),
    "sar mgf": lambda c: setattr(c.reconstruction, "sar_target", "mgf"),
    "no okd": lambda c: setattr(c.okd, "enabled", False),
    "no ccl": lambda c: setattr(c.ccl, "enabled", False),
    "no cdr": lambda c: setattr(c.cdr, "enabled", False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_switch_lowers_its_loss_on_one_batch(
    variant: str, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = official()
    VARIANTS[variant](config)
    method, batch = build(config, monkeypatch), make_batch(2)
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3)
    totals = []
    for _ in range(12):
        losses = method(batch, PROGRESS)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()  # type: ignore[union-attr]
        optimizer.step()
        totals.append({name: loss.item() for name, loss in losses.items()})
    assert all(totals[-1][name] < totals[0][name] for name in totals[0])


@torch.no_grad()
def test_mean_is_half_of_the_sum_and_separate_decoders_see_their_own_modality(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, config = make_batch(2), paper()
    summed = build(config, monkeypatch).eval()(batch, PROGRESS)
    config.modality_reduction = "mean"
    averaged = build(config, monkeypatch).eval()(batch, PROGRESS)
    for name in ("reconstruction", "cdr"):
        assert summed[name].item() == pytest.approx(2 * averaged[name].item())
    config.decoder.shared = False
    separate = build(config, monkeypatch).eval()
    separate.decoders[1].load_state_dict(separate.decoders[0].state_dict())
    same = separate(batch, PROGRESS)["reconstruction"].item()
    separate.decoders[1].pred.bias += 1.0
    assert separate(batch, PROGRESS)["reconstruction"].item() != same


@torch.no_grad()
def test_weights_scale_their_terms(make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, config = make_batch(2), official()
    plain = build(config, monkeypatch).eval()(batch, PROGRESS)
    weights = {"reconstruction": 0.5, "okd": 2.0, "ccl": 0.1, "cdr": 3.0}
    for name, weight in weights.items():
        getattr(config, name).weight = weight
    for name, loss in build(config, monkeypatch).eval()(batch, PROGRESS).items():
        assert loss.item() == pytest.approx(weights[name] * plain[name].item())


@torch.no_grad()
def test_masks_are_shared_or_independent(make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    config, batch = official(), make_batch(3)
    shared = build(config, monkeypatch).eval()
    optical, sar = shared.masking(batch).ids_keep.chunk(2)
    assert torch.equal(optical, sar) and shared.views.num_patches == 16

    config = copy.deepcopy(config)
    config.share_mask = False
    independent = build(config, monkeypatch).eval()
    assert independent.views.num_patches == 32
    own = copy.deepcopy(batch)
    own.mask_noise = torch.cat([batch.mask_noise, batch.mask_noise], dim=1)
    for name, loss in shared(batch, PROGRESS).items():
        assert independent(own, PROGRESS)[name].item() == loss.item()

    own.mask_noise = torch.cat([batch.mask_noise, batch.mask_noise.flip(1)], dim=1)
    masking = independent.masking(own)
    assert torch.equal(masking.ids_keep[:3], batch.mask_noise.argsort(1)[:, :4])
    assert torch.equal(masking.ids_keep[3:], batch.mask_noise.flip(1).argsort(1)[:, :4])
    images = {name: own.normalised(name) for name in ("optical", "sar")}
    both = independent.encoder.encode(images, masking.ids_keep).tokens
    alone = independent.encoder.forward_masked(images["sar"], "sar", masking.ids_keep[3:])
    torch.testing.assert_close(both[3:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_distilling_both_modalities_is_the_mean_of_each(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, terms = make_batch(2), []
    for modalities in (["optical"], ["sar"], ["optical", "sar"]):
        config = official()
        config.okd.modalities = modalities
        terms.append(build(config, monkeypatch).eval()(batch, PROGRESS)["okd"].item())
    assert terms[0] != terms[1]
    assert terms[2] == pytest.approx((terms[0] + terms[1]) / 2)
    config.okd.modalities = ["thermal"]
    with pytest.raises(ValueError, match="optical, sar or both"):
        build(config, monkeypatch)


@torch.no_grad()
def test_cross_targets_swap_the_modalities(make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = build(paper(), monkeypatch), make_batch(1)
    images = {name: batch.normalised(name) for name in ("optical", "sar")}
    from_optical, from_sar = method.cross_targets(images, batch).chunk(2)
    torch.testing.assert_close(from_optical, patchify(batch.unit("sar"), 16))
    torch.testing.assert_close(from_sar, degraded_patches(batch.unit("optical"), "gray", 16))


@torch.no_grad()
def test_multilook_averages_windows() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 9, 9)
    smooth = box_mean(image, 3)
    assert smooth[0, 0, 4, 4].item() == pytest.approx(image[0, 0, 3:6, 3:6].mean().item())
    assert smooth[0, 0, 0, 0].item() == pytest.approx(image[0, 0, :2, :2].mean().item())


@torch.no_grad()
def test_pictures_keep_visible_patches_and_stay_in_range(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, batch = build(official(), monkeypatch).eval(), make_batch(2)
    pictures = method.reconstruct(batch)
    assert {
        "optical_masked",
        "optical_from_optical",
        "sar_from_sar",
        "sar_from_optical",
        "optical_from_sar",
    } <= set(pictures)
    keep, _ = kept_and_removed(batch, 0)
    for picture in pictures.values():
        assert picture.shape == (2, 3, 64, 64) and picture.min() >= 0 and picture.max() <= 1
    for patch in keep:
        window = (
            0,
            slice(None),
            slice(16 * (patch // 4), 16 * (patch // 4) + 16),
            slice(16 * (patch % 4), 16 * (patch % 4) + 16),
        )
        torch.testing.assert_close(pictures["optical_from_optical"][window], batch.unit("optical")[window])


def test_auxiliary_block_beyond_the_encoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = official()
    config.okd.auxiliary_block = 18
    with pytest.raises(ValueError, match="auxiliary_block 18.*0 to 2"):
        build(config, monkeypatch)


def test_teacher_terms_reach_the_licence_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build(paper(), monkeypatch).licence_notes == ["test terms"]
