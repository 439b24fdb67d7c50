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
from codemae.config import build_config, diff_configs, read_yaml, to_dict
from codemae.data.batch import Batch
from codemae.data.dataset import PairDataset
from codemae.data.index import open_index
from codemae.data.photometric import NUM_DRAWS, PhotometricConfig
from codemae.data.sampler import PretrainSampler
from codemae.engine.export import export_encoders
from codemae.engine.settings import PretrainConfig
from codemae.methods.base import METHODS, Progress
from codemae.methods.codemae import PAIR, CropConfig
from codemae.methods.decur import DeCUR, DeCURConfig
from codemae.models.factory import EncoderConfig, load_encoder

PROGRESS = Progress(step=0, total_steps=10, epoch=0)
# The least side at which both attentions choose among several points: 2 x 2 of them.
SIZE, DIMS, LAMBDA = 64, 8, 0.0051


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


def test_sar_can_be_cropped_by_a_rule_of_its_own() -> None:
    wanted = config(crop=CropConfig(scale=(0.5, 1.0), vertical_flip=0.5))
    assert {view.vertical_flip for view in build(wanted).views.values()} == {0.5}
    wanted.augment.sar_crop = CropConfig(scale=(0.6, 0.9), vertical_flip=0.0)
    rules = {name: (view.scale, view.vertical_flip) for name, view in build(wanted).views.items()}
    assert rules["optical_1"] == rules["optical_2"] == ((0.5, 1.0), 0.5)
    assert rules["sar_1"] == rules["sar_2"] == ((0.6, 0.9), 0.0)
    wanted.augment.shared_crop = True
    with pytest.raises(ValueError, match="sar_crop has to equal"):
        build(wanted)
    wanted.augment.sar_crop = wanted.crop
    assert build(wanted).views["sar_1"].crop_group == "pair"


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


def cannot_matter(name: str) -> bool:
    """Attention's biases whose gradient is 0 but for rounding.

    That of the keys moves all scores of a query alike, which the softmax does not see; those of values and
    output move all cells and images alike, which the batch norm behind the next convolution or Linear takes
    off again.
    """
    return "attention" in name and name.endswith(("key.bias", "value.bias", "project.bias"))


@pytest.mark.parametrize("row", ROWS)
def test_thirty_steps_lower_the_loss_and_reach_every_parameter(row: str) -> None:
    wanted = config(**ROWS[row])
    wanted.contrast.learn = row == "clip"
    method = build(wanted)
    batch = make_batch(method.views)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    values = []
    largest = {name: 0.0 for name, _ in method.named_parameters()}
    for _ in range(30):
        losses = method.training_losses(batch, PROGRESS)
        assert set(losses) == TERMS[row]
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in method.named_parameters():
            assert parameter.grad is not None, name
            largest[name] = max(largest[name], parameter.grad.abs().max().item())
        optimizer.step()
        values.append(loss.item())
    for name, gradient in largest.items():
        # Rounding alone comes to some 1e-6.
        assert gradient > 1e-4 or cannot_matter(name), name
    assert math.isfinite(values[-1])
    assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])


@pytest.mark.parametrize("objective", ["redundancy", "vicreg"])
def test_a_temperature_that_nothing_would_train_is_refused(objective: Any) -> None:
    wanted = config(objective=objective, intra=False)
    wanted.contrast.learn = True
    with pytest.raises(ValueError, match=f"{objective} has no temperature.*learn=false"):
        DeCUR(wanted)


def test_a_learned_temperature_leaves_the_cap_again() -> None:
    wanted = config(**ROWS["clip"])
    wanted.contrast.learn, wanted.contrast.temperature = True, 0.0099
    method = build(wanted)
    losses = method.training_losses(make_batch(method.views), PROGRESS)
    losses["contrast"].backward()
    gradient = method.log_temperature.grad
    assert gradient is not None and gradient < 0
    with torch.no_grad():
        method.log_temperature -= 0.1 * gradient / gradient.abs()
    method.after_step(PROGRESS)
    assert method.log_temperature.item() == pytest.approx(math.log(0.0099) + 0.1)
    with torch.no_grad():
        method.log_temperature -= 1
    method.after_step(PROGRESS)
    assert method.log_temperature.exp().item() == pytest.approx(0.01)
    assert method.log_temperature.requires_grad
    fixed = build(config(**ROWS["clip"]))
    fixed.after_step(PROGRESS)
    assert fixed._temperature() == 0.07


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


def build_with_open_branches(row: str) -> DeCUR:
    """A method whose bottlenecks do not start as identities, behind which no gradient would be seen."""
    method = build(config(**ROWS[row]))
    for name, parameter in method.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.5)
    return method


def rank_step(row: str) -> tuple[dict[str, float], list[Tensor]]:
    method = build_with_open_branches(row)
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
    method = build_with_open_branches(row)
    losses = method.training_losses(make_batch(method.views), PROGRESS)
    torch.stack(list(losses.values())).sum().backward()
    results = run_on_ranks(rank_step, row)
    for name, loss in losses.items():
        assert np.mean([terms[name] for terms, _ in results]) == pytest.approx(loss.item(), rel=1e-4)
    for _, gradients in results:
        for gradient, (name, parameter) in zip(gradients, method.named_parameters(), strict=True):
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 1e-4 or cannot_matter(name), name
            scale = parameter.grad.abs().max().clamp(min=1e-2)
            torch.testing.assert_close(
                gradient / scale, parameter.grad / scale, rtol=1e-2, atol=2e-3, msg=name
            )


def shipped(name: str) -> PretrainConfig:
    path = Path(__file__).parents[2] / "pretrain" / "configs" / f"{name}.yaml"
    sources = [(name, read_yaml(path)), ("test", {"output_dir": "x"})]
    return build_config(PretrainConfig, sources, variants={"method": METHODS.config})


def test_shipped_presets_differ_where_they_say() -> None:
    paper, official, vit, elevation, depth = (
        to_dict(shipped(f"decur_{name}"))
        for name in ("resnet50_rda", "resnet50_rda_official", "vit_small", "rgb_elevation", "rgb_depth")
    )
    adamw = {
        "optim.name": ("lars", "adamw"),
        "optim.lr": (0.2, 1e-4),
        "optim.betas": ([0.9, 0.95], [0.9, 0.999]),
        "optim.weight_decay": (1e-6, 0.01),
        "optim.bias_lr_scale": (0.024, 1.0),
    }

    def difference(first: dict[str, Any], second: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        return {key: (a, b) for key, a, b in diff_configs(first, second)}

    assert diff_configs(paper["method"], to_dict(DeCURConfig())) == []
    assert difference(paper, official) == adamw | {
        "method.projector.shared": (False, True),
        "method.share_attention": (False, True),
        "method.reduction": ("sum", "official"),
        "method.gather_gradient": (True, False),
    }
    assert difference(paper, vit) == adamw | {"method.encoder.arch": ("resnet50_rda", "vit_small")}
    assert difference(paper, elevation) == {
        "method.encoder.channels.optical": (13, 3),
        "method.encoder.channels.sar": (2, 3),
        "method.augment.sar.grayscale": (0.2, 0.0),
        "method.augment.sar.blur": (0.5, 0.0),
        "method.common": (0.875, 0.75),
    }
    crops = [depth["method"]["crop"], depth["method"]["augment"]["sar_crop"]]
    assert [(c["scale"], c["horizontal_flip"], c["vertical_flip"]) for c in crops] == [
        ([0.5, 1.0], 0.5, 0.5),
        ([0.5, 1.0], 0.5, 0.0),
    ]


def test_shipped_rows_of_the_tables_differ_in_what_they_compare() -> None:
    rows = (
        "decur",
        "barlow_twins",
        "vicreg",
        "simclr",
        "clip",
        "decur_without_decoupling",
        "decur_without_intra",
    )
    methods = {row: to_dict(shipped(f"cross_modal/{row}").method) for row in rows}
    assert methods["decur"]["encoder"]["arch"] == "resnet50"
    found = {
        row: {key: value for key, _, value in diff_configs(methods["decur"], methods[row])}
        for row in rows[1:]
    }
    contrastive = {"intra": False, "projector.dims": [2048, 2048, 128]}
    assert found == {
        "barlow_twins": {"intra": False, "common": 1.0},
        "vicreg": {"intra": False, "objective": "vicreg"},
        "simclr": {**contrastive, "objective": "nt_xent", "contrast.temperature": 0.1},
        "clip": {**contrastive, "objective": "info_nce", "contrast.learn": True},
        "decur_without_decoupling": {"common": 1.0},
        "decur_without_intra": {"intra": False},
    }
    changed = diff_configs(methods["decur"], to_dict(shipped("decur_rgb_elevation").method))
    data = {key: value for key, _, value in changed if key not in ("common", "encoder.arch")}
    assert set(data) == {f"encoder.channels.{name}" for name in PAIR} | {
        "augment.sar.grayscale",
        "augment.sar.blur",
    }
    for row in ("barlow_twins", "vicreg", "simclr", "clip"):
        elevation = to_dict(shipped(f"cross_modal/{row}_rgb_elevation").method)
        assert {key: value for key, _, value in diff_configs(methods[row], elevation)} == data


@pytest.mark.parametrize(
    ("name", "lr", "bias_lr", "decay", "batch", "epochs", "common"),
    [
        ("decur_resnet50_rda", 0.2, 0.0048, 1e-6, 256, 100, 7168),
        ("decur_resnet50_rda_official", 1e-4, 1e-4, 0.01, 256, 100, 7168),
        ("decur_vit_small", 1e-4, 1e-4, 0.01, 256, 100, 7168),
        ("decur_rgb_elevation", 0.2, 0.0048, 1e-6, 256, 100, 6144),
        ("decur_rgb_depth", 0.05, 0.0048, 1e-6, 128, 200, 6144),
        ("cross_modal/decur", 0.2, 0.0048, 1e-6, 256, 100, 7168),
        ("cross_modal/barlow_twins", 0.2, 0.0048, 1e-6, 256, 100, 8192),
    ],
)
def test_shipped_presets_have_the_papers_numbers(
    name: str, lr: float, bias_lr: float, decay: float, batch: int, epochs: int, common: int
) -> None:
    config = shipped(name)
    optim, method = config.optim, config.method
    assert (optim.lr, optim.weight_decay, optim.global_batch, optim.epochs) == (lr, decay, batch, epochs)
    assert optim.lr * optim.bias_lr_scale == pytest.approx(bias_lr)
    assert (optim.momentum, optim.warmup_epochs, optim.min_lr) == (0.9, 0, 0)
    assert method.projector.dims == [8192] * 3
    assert (method.common * 8192, method.off_diagonal) == (common, 0.0051)
