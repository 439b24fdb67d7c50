import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from ddp_helpers import run_on_ranks
from torch.nn.parallel import DistributedDataParallel

from codemae.config import build_config, diff_configs, read_yaml, to_dict
from codemae.data.batch import Batch
from codemae.data.index import open_index
from codemae.distributed import rank
from codemae.engine.export import export_encoders
from codemae.engine.settings import PretrainConfig
from codemae.methods.base import METHODS, Progress
from codemae.methods.fusmae import FusingEncoderConfig, FusMAE, FusMAEConfig
from codemae.models.cross_fusion import CrossAttentionConfig
from codemae.models.factory import load_encoder
from codemae.models.fusion_vit import FusionViT
from codemae.models.masking import Masking

PROGRESS = Progress(step=0, total_steps=10, epoch=0)
PAIR = ("optical", "sar")
CHANNELS = {"optical": 3, "sar": 1}
MakeBatch = Callable[..., Batch]


def paper(arch: str = "fusmae_vit_tiny") -> FusMAEConfig:
    encoder = FusingEncoderConfig(arch=arch, img_size=64, channels=dict(CHANNELS))
    config = FusMAEConfig(encoder=encoder)
    config.decoder.dim, config.decoder.depth, config.decoder.num_heads = 32, 1, 2
    return config


def multimae(arch: str = "fusmae_vit_tiny") -> FusMAEConfig:
    config = paper(arch)
    config.encoder.fusion.attention = CrossAttentionConfig(num_heads=3, pre_norm=True, output_projection=True)
    config.decoder.fusion = "queries"
    config.decoder.attention = CrossAttentionConfig(num_heads=2, pre_norm=True, output_projection=True)
    return config


def standardised_multilook() -> FusMAEConfig:
    config = paper()
    config.masking = "consistent"
    config.target.norm_target, config.target.sar_target, config.target.sar_window = True, "multilook", 3
    return config


def build(config: FusMAEConfig) -> FusMAE:
    torch.manual_seed(0)
    method = FusMAE(config)
    if isinstance(method.encoder, FusionViT):
        method.encoder.blocks = method.encoder.blocks[:2]  # the loops of these tests need no depth
    return method


def batch_of(make_batch: MakeBatch, count: int, *, own_masks: bool = True, **options: Any) -> Batch:
    batch = make_batch(count, **options)
    if own_masks:
        noise = torch.rand(count, 16, generator=torch.Generator().manual_seed(7))
        batch.mask_noise = torch.cat([batch.mask_noise, noise], dim=1)
    return batch


def kept_and_removed(batch: Batch, sample: int) -> dict[str, tuple[list[int], list[int]]]:
    """Each modality's 4 patches of least noise out of 16, and the others; the same ones if the noise is."""
    noise = batch.mask_noise[sample].numpy()
    parts = {"optical": noise[:16], "sar": noise[-16:]}
    orders = {name: np.argsort(part, kind="stable").tolist() for name, part in parts.items()}
    return {name: (order[:4], order[4:]) for name, order in orders.items()}


def slow_target(batch: Batch, name: str, sample: int, patch: int, window: int) -> np.ndarray:
    """A standardised patch, pixel by pixel, each the mean over those of its window that lie in the image."""
    image = batch.images[name][sample].numpy() / 255.0
    mean, std = batch.mean[name][sample].numpy(), batch.std[name][sample].numpy()
    top, left, reach = 16 * (patch // 4), 16 * (patch % 4), window // 2
    values = []
    for y in range(top, top + 16):
        for x in range(left, left + 16):
            for c in range(len(image)):
                around = image[
                    c, max(0, y - reach) : min(64, y + reach + 1), max(0, x - reach) : min(64, x + reach + 1)
                ]
                values.append((around.mean() - mean[c]) / std[c])
    return np.array(values)


@torch.no_grad()
@pytest.mark.parametrize("preset", [paper, multimae, standardised_multilook])
def test_losses_equal_a_slow_transcription(preset: Callable[[], FusMAEConfig], make_batch: MakeBatch) -> None:
    config = preset()
    method = build(config).eval()
    batch = batch_of(make_batch, 2, own_masks=config.masking == "independent")
    losses, encoder = method(batch, PROGRESS), method.encoder
    errors: dict[str, list[float]] = {name: [] for name in PAIR}
    context: tuple[Any, Any]
    for i in range(2):
        split = kept_and_removed(batch, i)
        keep = {name: torch.tensor([split[name][0]]) for name in PAIR}
        images = {name: batch.normalised(name)[i : i + 1] for name in PAIR}
        tokens = encoder.encode(images, torch.cat([keep["optical"], keep["sar"]])).tokens
        latents = dict(zip(PAIR, tokens.split(1), strict=True))
        for name, other in (("optical", "sar"), ("sar", "optical")):
            masking = Masking(keep[name], torch.tensor([split[name][1]]), torch.empty(0))
            if config.decoder.fusion == "latents":
                own, context = method.xattn[name](latents[name], latents[other]), (None, None)
            else:
                own, context = latents[name], ([latents[other][:, :, None, None]], keep[other])
            guesses = method.decoders[name]([own[:, :, None, None]], masking, *context)[0].numpy()
            window = 3 if name == "sar" and config.target.sar_target == "multilook" else 1
            for guess, patch in zip(guesses, split[name][1], strict=True):
                target = slow_target(batch, name, i, patch, window)
                if config.target.norm_target:
                    target = (target - target.mean()) / np.sqrt(target.var(ddof=1) + 1e-6)
                errors[name].append(float(np.mean((guess - target) ** 2)))
    assert set(losses) == {"reconstruction_optical", "reconstruction_sar"}
    for name in PAIR:
        assert losses[f"reconstruction_{name}"].item() == pytest.approx(np.mean(errors[name]), rel=1e-4)


@torch.no_grad()
def test_masks_are_the_same_or_each_its_own(make_batch: MakeBatch) -> None:
    consistent = paper()
    consistent.masking = "consistent"
    method, batch = build(consistent), make_batch(3)
    assert method.views.num_patches == 16
    masks = method.maskings(batch)
    assert torch.equal(masks["optical"].ids_keep, masks["sar"].ids_keep)
    method, batch = build(paper()), batch_of(make_batch, 3)
    assert method.views.num_patches == 32
    masks = method.maskings(batch)
    for i in range(3):
        split = kept_and_removed(batch, i)
        for name in PAIR:
            assert masks[name].ids_keep[i].tolist() == split[name][0]
    assert not torch.equal(masks["optical"].ids_keep, masks["sar"].ids_keep)
    assert masks["optical"].ids_keep.shape == masks["sar"].ids_keep.shape == (3, 4)


@torch.no_grad()
def test_visible_pixels_are_no_target_and_removed_ones_reach_no_guess(make_batch: MakeBatch) -> None:
    method, batch = build(paper()).eval(), batch_of(make_batch, 1)
    split, keep_maps = kept_and_removed(batch, 0), method.maskings(batch)
    for part, same_targets in ((0, True), (1, False)):
        changed = copy.deepcopy(batch)
        for name in PAIR:
            for patch in split[name][part]:
                top, left = 16 * (patch // 4), 16 * (patch % 4)
                changed.images[name][:, :, top : top + 16, left : left + 16] ^= 255
        images, altered = ({n: b.normalised(n) for n in PAIR} for b in (batch, changed))
        before, after = method.targets(images), method.targets(altered)
        guessed, guessed_after = (method._predictions(x, keep_maps, True) for x in (images, altered))
        for name in PAIR:
            kept, removed = split[name]
            assert torch.equal(before[name][:, removed], after[name][:, removed]) is same_targets
            assert torch.equal(before[name][:, kept], after[name][:, kept]) is not same_targets
            assert torch.equal(guessed[name], guessed_after[name]) is not same_targets


VARIANTS: dict[str, Callable[[], FusMAEConfig]] = {
    "paper": paper,
    "multimae": multimae,
    "hivit paper": lambda: paper("hivit_tiny"),
    "hivit multimae": lambda: multimae("hivit_tiny"),
    "hivit without pyramid": lambda: changed(paper("hivit_tiny"), "encoder", pyramid=False),
    "late fusion": lambda: fused(paper(), early=False),
    "self": lambda: fused(paper(), alone="self"),
    "plain decoders": lambda: changed(paper(), "decoder", fusion="none"),
}


def changed(config: FusMAEConfig, part: str, **values: Any) -> FusMAEConfig:
    for key, value in values.items():
        setattr(getattr(config, part), key, value)
    return config


def fused(config: FusMAEConfig, **values: Any) -> FusMAEConfig:
    for key, value in values.items():
        setattr(config.encoder.fusion, key, value)
    return config


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("paired", [True, False])
def test_every_parameter_gets_a_gradient(variant: str, paired: bool, make_batch: MakeBatch) -> None:
    config = VARIANTS[variant]()
    method = build(config)
    losses = method(batch_of(make_batch, 2, paired=paired), PROGRESS)
    sum(losses.values()).backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert {n for n, _ in method.named_parameters()} - set(trained) <= {"encoder.absolute_pos_embed"}
    assert [name for name, p in trained.items() if p.grad is None] == []
    zero = {name for name, p in trained.items() if not p.grad.abs().sum() > 0}  # type: ignore[union-attr]
    unused: set[str] = set()
    if not paired:
        unused = {n for n in trained if n.startswith("xattn.") and ".cross." in n or "other_embedding" in n}
        if config.encoder.fusion.alone == "skip":
            unused |= {n for n in trained if n.startswith("encoder.") and ".cross." in n}
    assert zero == unused


@torch.no_grad()
def test_without_its_pair_an_image_is_reconstructed_alone(make_batch: MakeBatch) -> None:
    for config in (paper(), multimae(), paper("hivit_tiny")):
        method, batch = build(config).eval(), batch_of(make_batch, 2, paired=False)
        other = copy.deepcopy(batch)
        other.images["sar"] = other.images["sar"].flip(0)
        first, second = method(batch, PROGRESS), method(other, PROGRESS)
        assert first["reconstruction_optical"].item() == second["reconstruction_optical"].item()
        assert first["reconstruction_sar"].item() != second["reconstruction_sar"].item()
        batch.paired = other.paired = True
        first, second = method(batch, PROGRESS), method(other, PROGRESS)
        assert first["reconstruction_optical"].item() != second["reconstruction_optical"].item()


@pytest.mark.parametrize("variant", ["paper", "multimae", "hivit paper", "late fusion"])
def test_terms_fall_on_one_batch(variant: str, make_batch: MakeBatch) -> None:
    method, batch = build(VARIANTS[variant]()), batch_of(make_batch, 2)
    optimizer, totals = torch.optim.AdamW(method.parameters(), lr=2e-3), []
    for _ in range(12):
        losses = method(batch, PROGRESS)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        totals.append({name: loss.item() for name, loss in losses.items()})
    assert all(totals[-1][name] < 0.97 * totals[0][name] for name in totals[0])


@torch.no_grad()
@pytest.mark.parametrize("arch", ["fusmae_vit_tiny", "hivit_tiny"])
def test_exported_encoder_answers_as_the_method_does(
    arch: str, make_batch: MakeBatch, toy_index: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    method = FusMAE(paper(arch)).eval()
    index = open_index([str(toy_index)], None)
    method.check_index(index)
    export_encoders(tmp_path, method, index, method_name="fusmae", steps=1)
    loaded: Any = load_encoder(tmp_path / "encoder.safetensors")
    assert loaded.metadata.method == "fusmae" and loaded.inputs["sar"].channels == 1
    batch = make_batch(2)
    for name, features in method.probe_features(batch).items():
        assert torch.equal(loaded.pooled(batch.normalised(name), name), features)
    images = {name: batch.normalised(name) for name in PAIR}
    together, expected = loaded.pooled_together(images), method.encoder.pooled_together(images)
    assert all(torch.equal(together[name], expected[name]) for name in PAIR)


def test_what_cannot_be_trained_is_refused_in_a_sentence(toy_index: Path, tmp_path: Path) -> None:
    method = build(paper())
    alone = toy.make_index(tmp_path / "alone", paired=0)
    with pytest.raises(ValueError, match="no row has both.*prepare.py pairs"):
        method.check_index(open_index([str(alone)], None))
    config = paper()
    config.encoder.channels = {"optical": 12, "sar": 2}
    with pytest.raises(ValueError, match="3 channels, the encoder takes 12; .*channels.optical 3"):
        build(config).check_index(open_index([str(toy_index)], None))
    config.encoder.channels = {"optical": 3}
    with pytest.raises(ValueError, match="channels lacks sar"):
        build(config)
    config = paper()
    config.encoder.pyramid = False
    with pytest.raises(ValueError, match="pyramid means nothing to fusmae_vit_tiny"):
        build(config)


@torch.no_grad()
def test_multispectral_and_polarimetric_images(make_batch: MakeBatch) -> None:
    config = paper()
    config.encoder.channels = {"optical": 13, "sar": 2}
    method, batch = build(config).eval(), batch_of(make_batch, 2)
    for name, count in config.encoder.channels.items():
        batch.images[name] = batch.images[name][:, :1].repeat(1, count, 1, 1)
        batch.mean[name] = batch.mean[name][:, :1].repeat(1, count)
        batch.std[name] = batch.std[name][:, :1].repeat(1, count)
    losses = method(batch, PROGRESS)
    assert all(loss.isfinite() for loss in losses.values())
    images = {name: batch.normalised(name) for name in PAIR}
    sizes = {name: patches.shape for name, patches in method.targets(images).items()}
    assert sizes == {"optical": (2, 16, 13 * 256), "sar": (2, 16, 2 * 256)}
    guesses = method._predictions(images, method.maskings(batch), True)
    assert {name: guess.shape for name, guess in guesses.items()} == {
        "optical": (2, 12, 13 * 256),
        "sar": (2, 12, 2 * 256),
    }
    assert all(picture.shape == (2, 3, 64, 64) for picture in method.reconstruct(batch).values())


@torch.no_grad()
def test_pictures_keep_visible_patches(make_batch: MakeBatch) -> None:
    method, batch = build(paper()).eval(), batch_of(make_batch, 1)
    pictures, split = method.reconstruct(batch), kept_and_removed(batch, 0)
    assert set(pictures) == {f"{n}{end}" for n in PAIR for end in ("", "_masked", f"_from_{n}")}
    for name in PAIR:
        truth = batch.unit(name).expand(-1, 3, -1, -1)
        torch.testing.assert_close(pictures[name], truth)
        for patch in range(16):
            top, left = 16 * (patch // 4), 16 * (patch % 4)
            window = (..., slice(top, top + 16), slice(left, left + 16))
            kept = patch in split[name][0]
            for key in (f"{name}_masked", f"{name}_from_{name}"):
                assert torch.allclose(pictures[key][window], truth[window], atol=1e-5) is kept


def ddp_losses_and_gradient(batch: Batch, paired: list[bool]) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    method = build(multimae())
    model = DistributedDataParallel(method)
    half, losses = slice(2 * rank(), 2 * rank() + 2), []
    mine = copy.deepcopy(batch)
    mine.images = {name: image[half] for name, image in batch.images.items()}
    mine.mean = {name: value[half] for name, value in batch.mean.items()}
    mine.std = {name: value[half] for name, value in batch.std.items()}
    mine.mask_noise = batch.mask_noise[half]
    for is_paired in paired:
        mine.paired = is_paired
        method.zero_grad()
        terms = model(mine, PROGRESS)
        sum(terms.values()).backward()
        losses.append(sum(term.item() for term in terms.values()))
    return losses, {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}


@pytest.mark.ddp
def test_two_processes_give_the_loss_and_gradient_of_one(make_batch: MakeBatch) -> None:
    batch, paired = batch_of(make_batch, 4), [True, False, True]
    method, losses = build(multimae()), []
    for is_paired in paired:
        batch.paired = is_paired
        method.zero_grad()
        terms = method(batch, PROGRESS)
        sum(terms.values()).backward()
        losses.append(sum(term.item() for term in terms.values()))
    results = run_on_ranks(ddp_losses_and_gradient, batch, paired)
    np.testing.assert_allclose(np.mean([found for found, _ in results], axis=0), losses, rtol=1e-5)
    for _, gradients in results:
        for name, parameter in method.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def shipped(name: str) -> PretrainConfig:
    path = Path(__file__).parents[2] / "pretrain" / "configs" / f"fusmae_{name}.yaml"
    sources = [(name, read_yaml(path)), ("test", {"output_dir": "x"})]
    return build_config(PretrainConfig, sources, variants={"method": METHODS.config})


def test_shipped_presets_are_the_papers_and_differ_where_they_say() -> None:
    paper_preset = shipped("vit_base_paper")
    assert diff_configs(to_dict(paper_preset.method), to_dict(FusMAEConfig())) == []
    optim = paper_preset.optim
    assert (optim.lr, optim.epochs, optim.warmup_epochs) == (2e-4 * 200 / 256, 100, 10)
    assert optim.batch_per_gpu * 2 == 200  # two GPUs

    def differing(name: str) -> dict[str, tuple[Any, Any]]:
        return {key: (a, b) for key, a, b in diff_configs(to_dict(paper_preset), to_dict(shipped(name)))}

    assert differing("vit_base_xad") == {"method.encoder.fusion.early": (True, False)}
    assert differing("vit_base_consistent") == {"method.masking": ("independent", "consistent")}
    attention = {"num_heads": (1, 12), "pre_norm": (False, True), "output_projection": (False, True)}
    assert differing("vit_base_multimae") == {
        **{f"method.encoder.fusion.attention.{key}": pair for key, pair in attention.items()},
        **{
            f"method.decoder.attention.{key}": pair
            for key, pair in (attention | {"num_heads": (1, 8)}).items()
        },
        "method.decoder.fusion": ("latents", "queries"),
        "method.crop.scale": ([1.0, 1.0], [0.2, 1.0]),
        "method.crop.ratio": ([1.0, 1.0], [0.75, 4 / 3]),
        "method.crop.horizontal_flip": (0.0, 0.5),
    }
