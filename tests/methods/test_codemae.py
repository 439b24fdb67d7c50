import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import codemae.weights as weights
from codemae.config import read_yaml
from codemae.data.batch import Batch
from codemae.data.degradation import degraded_patches
from codemae.data.index import open_index
from codemae.losses.reconstruction import patchify, standardise_patches
from codemae.methods.base import Progress
from codemae.methods.codemae import CoDeMAE, CoDeMAEConfig, box_mean
from codemae.models.factory import ENCODERS, EncoderConfig
from codemae.models.itpn import ITPN

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


def _stacked(targets: Tensor | dict[str, Tensor]) -> Tensor:
    return targets if isinstance(targets, Tensor) else torch.cat(list(targets.values()))


def with_bands(batch: Batch, bands: dict[str, int]) -> Batch:
    """The same batch, but for random images with so many bands."""
    generator = torch.Generator().manual_seed(7)

    def uniform(name: str, *shape: int) -> Tensor:
        return torch.rand(len(batch), bands[name], *shape, generator=generator)

    return dataclasses.replace(
        batch,
        images={name: (uniform(name, 64, 64) * 256).to(torch.uint8) for name in bands},
        mean={name: 0.3 + 0.2 * uniform(name) for name in bands},
        std={name: 0.2 + 0.2 * uniform(name) for name in bands},
    )


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
        before, after = (_stacked(function(*seen)) for seen in ((images, batch), (altered, changed)))
        assert torch.equal(before[:, removed], after[:, removed])
        assert not torch.equal(before[:, keep], after[:, keep])

    fused = torch.randn(2, 4, 32)
    masking = method.masking(batch)
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


BANDS = [(3, 2), (13, 2), (4, 13), (1, 1), (3, 1)]


def banded(optical: int, sar: int) -> CoDeMAEConfig:
    config = paper()
    config.encoder.channels = {"optical": optical, "sar": sar}
    config.okd.enabled = optical in (1, 3)
    return config


@torch.no_grad()
@pytest.mark.parametrize(("optical", "sar"), BANDS)
@pytest.mark.parametrize("shared", [True, False])
def test_targets_have_the_bands_of_their_modality(
    optical: int, sar: int, shared: bool, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = banded(optical, sar)
    config.decoder.shared, config.cdr.computed_from = shared, "standardised"
    method = build(config, monkeypatch).eval()
    batch = with_bands(make_batch(2), {"optical": optical, "sar": sar})
    losses = method(batch, PROGRESS)

    bands = {name: 3 if count == 1 else count for name, count in (("optical", optical), ("sar", sar))}
    widths = [max(bands.values())] if shared else list(bands.values())
    assert [decoder.pred.out_features for decoder in method.decoders] == [256 * width for width in widths]
    masking = method.masking(batch)
    images = {name: batch.normalised(name) for name in ("optical", "sar")}
    fused = method.fused_tokens(method.encoder.encode(images, masking.ids_keep))
    cross = method.cross_decoder(fused, masking).numpy()
    own_errors, cross_errors = [], []
    for side, (name, other) in enumerate((("optical", "sar"), ("sar", "optical"))):
        half = slice(2 * side, 2 * side + 2)
        decoder = method.decoders[0 if shared else side]
        own = decoder(fused[half], type(masking)(*(part[half] for part in masking))).numpy()
        for i in range(2):
            image = images[name][i].numpy()
            image = image.repeat(3, axis=0) if len(image) == 1 else image
            there = images[other][i].numpy()
            gray = np.tensordot((0.299, 0.587, 0.114), there, 1) if len(there) == 3 else there.mean(0)
            for row, patch in enumerate(kept_and_removed(batch, i)[1]):
                guess = own[i, row].reshape(256, -1)[:, : bands[name]].reshape(-1)
                own_errors.append(np.mean((guess - standardised(pixel_patch(image, patch))) ** 2))
                cross_errors.append(np.mean((cross[2 * side + i, row] - pixel_patch(gray[None], patch)) ** 2))
    assert losses["reconstruction"].item() == pytest.approx(2 * np.mean(own_errors), rel=1e-4)
    assert losses["cdr"].item() == pytest.approx(2 * np.mean(cross_errors), rel=1e-4)


@pytest.mark.parametrize(("optical", "sar"), BANDS)
def test_images_of_any_bands_train_and_are_shown(
    optical: int, sar: int, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = banded(optical, sar)
    config.cdr.computed_from, config.reconstruction.sar_target = "standardised", "multilook"
    method = build(config, monkeypatch)
    for bands in ({"optical": optical, "sar": sar}, {"optical": 1, "sar": 1}):
        batch = with_bands(make_batch(2), bands)
        for picture in method.reconstruct(batch).values():
            assert picture.shape == (2, 3, 64, 64) and picture.min() >= 0 and picture.max() <= 1
        method.zero_grad()
        sum(method(batch, PROGRESS).values()).backward()  # type: ignore[union-attr]
        for name, parameter in method.named_parameters():
            assert name.startswith("teacher.") or parameter.grad is not None, name
    config.reconstruction.sar_target = "mgf"
    gradients = build(config, monkeypatch).self_targets(
        {name: batch.normalised(name) for name in ("optical", "sar")}, batch
    )
    assert gradients["sar"].shape == (2, 16, 768)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"encoder.channels": {"optical": 13, "sar": 2}},
            "teacher of method.okd sees images of 1 or 3 channels, and method.encoder.channels.optical is 13",
        ),
        (
            {"encoder.channels": {"optical": 3, "sar": 2}, "okd.modalities": ["optical", "sar"]},
            "take sar out of method.okd.modalities",
        ),
        (
            {"encoder.channels": {"optical": 3, "sar": 2}, "cdr.target": "median"},
            "method.cdr.target median needs images of 1 or 3 channels, and method.encoder.channels.sar is 2",
        ),
        ({"encoder.channels": {"optical": 3}}, "method.encoder.channels names no sar"),
        ({"cdr.target": "avg_pool", "cdr.pool_size": 5}, "method.cdr.pool_size 5"),
    ],
)
def test_settings_that_the_bands_do_not_allow_are_refused_by_key(
    change: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = paper()
    for key, value in change.items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build(config, monkeypatch)


def test_an_index_with_other_bands_is_refused_by_key(
    toy_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index([str(toy_index)], None)
    build(paper(), monkeypatch).check_index(index)
    config = banded(4, 2)
    with pytest.raises(ValueError, match=r"set --method\.encoder\.channels\.optical 3"):
        build(config, monkeypatch).check_index(index)


def test_gray_and_colour_encoders_have_the_decoders_of_the_published_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = []
    for sar in (1, 3):
        config = paper()
        config.encoder.channels["sar"] = sar
        state = build(config, monkeypatch).state_dict()
        outside = {key: value.shape for key, value in state.items() if not key.startswith("encoder.")}
        shapes.append(outside)
    assert shapes[0] == shapes[1]
    assert shapes[0]["decoders.0.pred.weight"] == (768, 32)
    assert shapes[0]["decoder_embed.levels.0.1.weight"] == (32, 16)
    assert not [key for key in shapes[0] if key.startswith("decoders.1.")]


@torch.no_grad()
def test_separate_decoders_embed_each_modality_for_itself(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, config = make_batch(2), official()
    shared = build(config, monkeypatch).eval()
    config.decoder.shared = False
    separate = build(config, monkeypatch).eval()
    separate.encoder.load_state_dict(shared.encoder.state_dict())
    for name in ("optical", "sar"):
        separate.decoder_embed[name].load_state_dict(shared.decoder_embed.state_dict())
    images = {name: batch.normalised(name) for name in ("optical", "sar")}
    features = separate.encoder.encode(images, separate.masking(batch).ids_keep)
    tokens = shared.fused_tokens(features)
    torch.testing.assert_close(separate.fused_tokens(features), tokens)
    separate.decoder_embed["sar"].levels[0][1].bias += 1.0
    moved = separate.fused_tokens(features) - tokens
    torch.testing.assert_close(moved, torch.tensor([0.0, 0, 1, 1])[:, None, None].expand_as(moved))


def test_separate_decoders_come_back_from_the_published_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    config = official()
    config.decoder.shared, config.cdr.enabled = False, False
    state = build(config, monkeypatch).state_dict()
    state = {key: value for key, value in state.items() if not key.startswith("teacher.")}
    theirs = weights.export(state, "codemae")
    for suffix, number, modality in (("rgb", 0, "optical"), ("sar", 1, "sar")):
        assert torch.equal(theirs[f"mask_token_{suffix}"], state[f"decoders.{number}.mask_token"])
        assert torch.equal(theirs[f"decoder_pred_{suffix}.bias"], state[f"decoders.{number}.pred.bias"])
        for part in ("0.0.weight", "2.1.bias"):
            ours = state[f"decoder_embed.{modality}.levels.{part}"]
            assert torch.equal(theirs[f"decoder_embed_{suffix}.{part}"], ours)
    back, report = weights.to_method(theirs)
    assert set(report.dropped) == {"decoder_pos_embed"} and set(back) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in back.items())
    with pytest.raises(weights.WeightsError, match="cross decoders of their own"):
        weights.to_method(theirs | {"mask_token_cross_rgb": torch.zeros(1, 1, 32)})


@torch.no_grad()
def test_pooling_by_the_patch_leaves_zeros_of_gray_and_the_balance_of_colours(
    make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, batch = official(), make_batch(2)
    config.cdr.target = "avg_pool"
    images = {name: batch.normalised(name) for name in ("optical", "sar")}
    of_sar, of_optical = build(config, monkeypatch).cross_targets(images, batch).chunk(2)
    torch.testing.assert_close(standardise_patches(of_sar), torch.zeros_like(of_sar), atol=1e-3, rtol=0)
    means = images["optical"][0, :, :16, :16].mean((1, 2)).numpy()
    balance = (means - means.mean()) / np.sqrt(means.var() * 768 / 767 + 1e-6)
    first = standardise_patches(of_optical)[0, 0].reshape(256, 3)
    torch.testing.assert_close(first, torch.tensor(balance).expand(256, 3), atol=1e-4, rtol=1e-3)

    config.cdr.pool_size = 4
    of_sar, _ = build(config, monkeypatch).cross_targets(images, batch).chunk(2)
    assert standardise_patches(of_sar).std().item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("stem", ["codemae_hivit_base_official", "codemae_hivit_small_1gpu"])
def test_official_auxiliary_block_stands_at_three_quarters_of_the_depth(stem: str) -> None:
    method = read_yaml(Path(__file__).parents[2] / "pretrain" / "configs" / f"{stem}.yaml")["method"]
    with torch.device("meta"):
        encoder = ENCODERS.get(method["encoder"]["arch"])()
    assert method["okd"]["auxiliary_block"] == int(0.75 * encoder.num_attention_blocks)
