import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_makers import make_index
from ddp_helpers import run_on_ranks
from small_encoders import SMALL
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.data.batch import Batch
from codemae.data.dataset import PairDataset
from codemae.data.index import open_index
from codemae.data.photometric import NUM_DRAWS, PhotometricConfig
from codemae.data.sampler import PretrainSampler
from codemae.engine.export import export_encoders
from codemae.methods.base import Progress
from codemae.methods.codemae import PAIR
from codemae.methods.decur import DeCUR, DeCURConfig
from codemae.models.factory import EncoderConfig, load_encoder

PROGRESS = Progress(step=0, total_steps=10, epoch=0)
SIZE, DIMS, LAMBDA = 32, 8, 0.0051


def config(**fields: Any) -> DeCURConfig:
    made = DeCURConfig(
        encoder=EncoderConfig(arch=SMALL["resnet50_rda"], img_size=SIZE, channels={"optical": 3, "sar": 2}),
        **fields,
    )
    made.projector.dims = [12, 12, DIMS]
    return made


def build(wanted: DeCURConfig) -> DeCUR:
    torch.manual_seed(0)
    return DeCUR(wanted)


def make_batch(views: Any, count: int = 6, *, paired: bool = True, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    channels = {"optical": 3, "sar": 2}
    return Batch(
        images={
            name: uniform(count, channels[view.modality], view.size, view.size)
            for name, view in views.items()
        },
        mean={name: 0.3 + 0.2 * uniform(count, c) for name, c in channels.items()},
        std={name: 0.2 + 0.2 * uniform(count, c) for name, c in channels.items()},
        paired=paired,
        rows={name: torch.arange(count) for name in channels},
        epoch=0,
        mask_noise=uniform(count, views.num_patches),
        crops={name: torch.zeros(count, 5) for name in views},
        source_sizes={name: torch.full((count, 2), float(SIZE)) for name in views},
        modalities=Batch.modalities_of(views),
    )


def slow_terms(embedded: dict[str, np.ndarray], common: int) -> dict[str, float]:
    """Eq. 1 to 5 of the paper, by loops."""

    def correlation(first: np.ndarray, second: np.ndarray, i: int, j: int) -> float:
        a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
        return sum(a * b) / math.sqrt(sum(a * a) + len(a) * 1e-5) / math.sqrt(sum(b * b) + len(b) * 1e-5)

    def loss(first: np.ndarray, second: np.ndarray, dims: range, target: float) -> float:
        total = 0.0
        for i in dims:
            for j in dims:
                c = correlation(first, second, i, j)
                total += (target - c) ** 2 if i == j else LAMBDA * c**2
        return total

    every = range(DIMS)
    optical, sar = embedded["optical_1"], embedded["sar_1"]
    return {
        "intra_optical": loss(optical, embedded["optical_2"], every, 1.0),
        "intra_sar": loss(sar, embedded["sar_2"], every, 1.0),
        "common": loss(optical, sar, range(common), 1.0),
        "unique": loss(optical, sar, range(common, DIMS), 0.0),
    }


@pytest.mark.parametrize("reduction", ["sum", "official"])
def test_terms_equal_the_paper_by_loops(reduction: Any) -> None:
    method = build(config(common=0.75, reduction=reduction))
    batch = make_batch(method.views)
    losses = method.training_losses(batch, PROGRESS)
    embedded = {name: method.embed(batch, name).detach().double().numpy() for name in method.views}
    expected = slow_terms(embedded, common=6)
    if reduction == "official":
        shares = {"common": 1 / 6, "unique": 1 / 6}
        expected = {name: value * shares.get(name, 1 / 3) for name, value in expected.items()}
    assert list(losses) == list(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


def test_views_are_independent_crops_and_an_unneeded_one_is_not_read() -> None:
    method = build(config())
    assert list(method.views) == ["optical_1", "optical_2", "sar_1", "sar_2"]
    assert len({view.crop_group for view in method.views.values()}) == 4
    assert method.views.num_patches == 4 * NUM_DRAWS
    assert list(build(config(intra=False)).views) == ["optical_1", "sar_1"]
    shared = config()
    shared.augment.shared_crop = True
    groups = {name: view.crop_group for name, view in build(shared).views.items()}
    assert groups["optical_1"] == groups["sar_1"] and len(set(groups.values())) == 3


def test_augmentation_belongs_to_sample_and_modality() -> None:
    wanted = config()
    wanted.augment.optical = PhotometricConfig(jitter_probability=1.0, brightness=0.4)
    wanted.augment.sar = PhotometricConfig()
    method = build(wanted)
    batch = make_batch(method.views)
    batch.images["sar_2"][0, 0, :4] = float("nan")
    plain = batch.normalised("sar_2")
    torch.testing.assert_close(method.augmented(batch, "sar_2"), plain)
    assert (plain[0, 0, :4] == 0).all()
    for view, place in (("optical_1", 0), ("optical_2", 1)):
        # The fifth of a view's numbers says how much brighter.
        factor = 0.6 + 0.8 * batch.mask_noise[:, place * NUM_DRAWS + 4]
        bright = (batch.images[view] * factor[:, None, None, None]).clamp(0, 1)
        expected = (bright - batch.mean["optical"][:, :, None, None]) / batch.std["optical"][:, :, None, None]
        torch.testing.assert_close(method.augmented(batch, view), expected)


def test_unpaired_batches_have_the_terms_of_one_modality_alone() -> None:
    method = build(config())
    losses = method.training_losses(make_batch(method.views, paired=False), PROGRESS)
    assert list(losses) == ["intra_optical", "intra_sar"]
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in method.parameters())
    without = build(config(intra=False))
    with pytest.raises(ValueError, match="--data.samples paired"):
        without.training_losses(make_batch(without.views, paired=False), PROGRESS)


ROWS = {
    "decur": {},
    "barlow_twins": {"intra": False, "common": 1.0},
    "all_unique": {"common": 0.0},
    "vicreg": {"intra": False, "objective": "vicreg"},
    "simclr": {"intra": False, "objective": "nt_xent"},
    "clip": {"intra": False, "objective": "info_nce"},
}
TERMS = {
    "decur": {"intra_optical", "intra_sar", "common", "unique"},
    "barlow_twins": {"common"},
    "all_unique": {"intra_optical", "intra_sar", "unique"},
    "vicreg": {"vicreg"},
    "simclr": {"contrast"},
    "clip": {"contrast"},
}


@pytest.mark.parametrize("row", ROWS)
def test_thirty_steps_lower_the_loss_and_reach_every_parameter(row: str) -> None:
    wanted = config(**ROWS[row])
    wanted.contrast.learn = row == "clip"
    method = build(wanted)
    batch = make_batch(method.views)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        losses = method.training_losses(batch, PROGRESS)
        assert set(losses) == TERMS[row]
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
        optimizer.step()
        values.append(loss.item())
    assert math.isfinite(values[-1])
    assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])


def test_sharing_of_the_published_code_can_be_asked_for() -> None:
    separate = build(config())
    wanted = config(share_attention=True)
    wanted.projector.shared = True
    shared = build(wanted)
    assert shared.projectors["optical"] is shared.projectors["sar"]
    assert shared.encoder("optical").attention is shared.encoder("sar").attention
    counts = [sum(p.numel() for p in m.parameters()) for m in (separate, shared)]
    attention = sum(p.numel() for p in separate.encoder("sar").attention.parameters())
    projector = sum(p.numel() for p in separate.projectors["sar"].parameters())
    assert counts[0] - counts[1] == attention + projector
    plain = config(share_attention=True)
    plain.encoder.arch = "hivit_tiny"
    with pytest.raises(ValueError, match="no deformable attention"):
        build(plain)


def test_each_modality_has_an_encoder_of_its_own_channels() -> None:
    method = build(config())
    encoders = method.encoders()
    assert list(encoders) == ["encoder_optical", "encoder_sar"]
    assert {name: encoder.channels for name, encoder in encoders.items()} == {
        "encoder_optical": {"optical": 3},
        "encoder_sar": {"sar": 2},
    }
    hivit = config()
    hivit.encoder = EncoderConfig(arch="hivit_tiny", img_size=SIZE, center=["sar"])
    made = build(hivit)
    assert (made.encoder("optical").center, made.encoder("sar").center) == ((), ("sar",))
    assert not any("fpn" in name for name, _ in made.named_parameters())


@pytest.mark.parametrize("arch", [SMALL["resnet50_rda"], "hivit_tiny", SMALL["vit_small"]])
def test_exported_encoders_give_equal_features(arch: str, toy_index: Path, tmp_path: Path) -> None:
    index = open_index(toy_index)
    wanted = config()
    wanted.encoder = EncoderConfig(arch=arch, img_size=SIZE, channels={"optical": 3, "sar": 1})
    method = build(wanted)
    method.check_index(index)
    dataset = PairDataset(index, method.views, seed=0)
    sampler = PretrainSampler(index, 4, 0, use="paired", modalities=method.views.modalities)
    batch = dataset.collate([dataset[draw] for draw in sampler.batch(0, 0)])
    torch.stack(list(method.training_losses(batch, PROGRESS).values())).sum().backward()
    method.eval()
    export_encoders(tmp_path, method, index, method_name="decur", steps=1)
    features = method.probe_features(batch)
    for name in PAIR:
        loaded: Any = load_encoder(tmp_path / f"encoder_{name}.safetensors")
        assert loaded.modalities == (name,)
        assert torch.equal(loaded.pooled(batch.normalised(f"{name}_1"), name), features[name])


def test_index_without_pairs_or_with_other_channels_is_refused(toy_index: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this index has no pairs"):
        build(config()).check_index(open_index(make_index(tmp_path, paired=0, optical=2, sar=2, size=32)))
    index = open_index(toy_index)
    wanted = config()
    wanted.encoder.channels = {"optical": 13, "sar": 2}
    with pytest.raises(ValueError, match=r"have 3 channels, the encoder takes 13; set --method\.encoder"):
        build(wanted).check_index(index)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"common": 1.5}, "method.common"),
        ({"objective": "vicreg"}, "method.intra=false"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config(**fields))
    wanted = config()
    wanted.encoder.channels = {"optical": 3}
    with pytest.raises(ValueError, match="names no sar"):
        build(wanted)


def split(batch: Batch, part: slice) -> Batch:
    def cut(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[part] for name, tensor in tensors.items()}

    return Batch(
        images=cut(batch.images),
        mean=cut(batch.mean),
        std=cut(batch.std),
        paired=batch.paired,
        rows=cut(batch.rows),
        epoch=0,
        mask_noise=batch.mask_noise[part],
        crops=cut(batch.crops),
        source_sizes=cut(batch.source_sizes),
        modalities=batch.modalities,
    )


def rank_step(row: str) -> tuple[dict[str, float], list[Tensor]]:
    method = build(config(**ROWS[row]))
    wrapped = DistributedDataParallel(method)
    whole = make_batch(method.views)
    mine = slice(3 * distributed.rank(), 3 * distributed.rank() + 3)
    losses = wrapped(split(whole, mine), PROGRESS)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [p.grad.clone() for p in method.parameters() if p.grad is not None]
    return {name: loss.item() for name, loss in losses.items()}, gradients


@pytest.mark.ddp
@pytest.mark.parametrize("row", ["decur", "simclr"])
def test_two_processes_equal_one_with_the_whole_batch(row: str) -> None:
    method = build(config(**ROWS[row]))
    losses = method.training_losses(make_batch(method.views), PROGRESS)
    torch.stack(list(losses.values())).sum().backward()
    results = run_on_ranks(rank_step, row)
    for name, loss in losses.items():
        assert np.mean([terms[name] for terms, _ in results]) == pytest.approx(loss.item(), rel=1e-4)
    for _, gradients in results:
        for gradient, (name, parameter) in zip(gradients, method.named_parameters(), strict=True):
            assert parameter.grad is not None
            scale = parameter.grad.abs().max().clamp(min=1e-2)
            torch.testing.assert_close(
                gradient / scale, parameter.grad / scale, rtol=1e-2, atol=2e-3, msg=name
            )
