import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.checkpoint import load_strictly
from codemae.config import build_config, diff_configs, read_yaml, to_dict
from codemae.data.batch import Batch
from codemae.engine.pretraining import pretrain
from codemae.engine.run import Run
from codemae.engine.settings import PretrainConfig
from codemae.methods.base import METHODS, Progress
from codemae.methods.cmid import CMID, CMIDConfig, LocalConfig, teacher_temperature
from codemae.models.encoder import ENCODERS
from codemae.models.factory import EncoderConfig, load_encoder
from codemae.models.hivit import HiViT
from codemae.models.itpn import ITPN
from codemae.models.moving_average import rising_momentum
from codemae.models.resnet import ResNet
from codemae.models.swin import Swin

SIZE, BLOCK, BLOCKS = 64, 16, 16
PAIR = ("optical", "sar")
VIEWS = [f"{modality}_{number}" for modality in PAIR for number in (1, 2)]
CHANNELS = {"optical": 3, "sar": 1}
START = Progress(step=0, total_steps=10, epoch=0)


@ENCODERS.register("cmid_test_hivit")
def cmid_test_hivit(pyramid: bool = True, **kwargs: Any) -> HiViT:
    shape: dict[str, Any] = {"embed_dim": 32, "depths": (1, 1, 2), "num_heads": 2}
    return ITPN(fpn_dim=8, **shape, **kwargs) if pyramid else HiViT(**shape, **kwargs)


@ENCODERS.register("cmid_test_swin")
def cmid_test_swin(
    *, img_size: int = 64, channels: dict[str, int] | None = None, drop_path: float = 0.0
) -> Swin:
    sizes = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 1, 2, 2), "window": 2}
    return Swin(img_size=img_size, channels=channels, drop_path=drop_path, **sizes)


@ENCODERS.register("cmid_test_resnet")
def cmid_test_resnet(
    *, img_size: int = 64, channels: dict[str, int] | None = None, drop_path: float = 0.0
) -> ResNet:
    return ResNet(
        img_size=img_size, channels=channels, drop_path=drop_path, layers=(1, 1, 1, 1), widths=(8, 8, 8, 8)
    )


def small(kind: str = "hivit", **changes: Any) -> CMIDConfig:
    config = CMIDConfig(
        encoder=EncoderConfig(arch=f"cmid_test_{kind}", img_size=SIZE), mask_block=BLOCK, **changes
    )
    config.contrast.hidden_dim, config.contrast.dim, config.contrast.queue_size = 16, 8, 20
    config.contrast.predictor_hidden_dim = 16
    config.local.hidden_dim, config.local.bottleneck_dim, config.local.prototypes = 16, 6, 5
    config.local.matches = 4
    return config


def test_a_pyramid_that_no_term_trains_is_not_built() -> None:
    (encoder,) = CMID(small()).encoders().values()
    assert isinstance(encoder, HiViT) and not isinstance(encoder, ITPN)


def without_augmentation(config: CMIDConfig) -> CMIDConfig:
    for photometric in (config.optical, config.sar):
        photometric.jitter_probability = photometric.grayscale = 0.0
    return config


def official(config: CMIDConfig) -> CMIDConfig:
    reconstruction = config.reconstruction
    reconstruction.pixel, reconstruction.unmasked_weight = "focal_l1", 0.25
    reconstruction.average_spectrum = reconstruction.log_weights = reconstruction.batch_weights = True
    config.local.student_temperature, config.local.first_teacher_temperature = 0.1, 0.04
    config.local.warmup_epochs = 50
    config.local.batch_norm = True
    config.augmented_views = "second"
    return config


def build(config: CMIDConfig, seed: int = 0) -> CMID:
    torch.manual_seed(seed)
    method = CMID(config)
    if config.reconstruction.enabled:
        torch.nn.init.normal_(method.mask_token)
    return method


def make_batch(method: CMID, count: int = 3, *, seed: int = 0, paired: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    modalities = {name: view.modality for name, view in method.views.items()}
    crops = {}
    for name in method.views:
        place = torch.stack([20 * uniform(count), 20 * uniform(count)], 1)
        sides = 60 + 30 * uniform(count, 2)
        crops[name] = torch.cat([place, sides, (4 * uniform(count, 1)).floor()], 1)
    known = dict.fromkeys(modalities.values())
    return Batch(
        images={
            name: (uniform(count, CHANNELS[modality], SIZE, SIZE) * 256).to(torch.uint8)
            for name, modality in modalities.items()
        },
        mean={name: 0.3 + 0.2 * uniform(count, CHANNELS[name]) for name in known},
        std={name: 0.2 + 0.2 * uniform(count, CHANNELS[name]) for name in known},
        paired=paired,
        rows={name: torch.arange(count) for name in known},
        epoch=0,
        mask_noise=uniform(count, method.views.num_patches),
        crops=crops,
        source_sizes={name: torch.full((count, 2), 110.0) for name in method.views},
        modalities=modalities,
    )


def rows_of(batch: Batch, rows: slice) -> Batch:
    def part(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in tensors.items()}

    return Batch(
        images=part(batch.images),
        mean=part(batch.mean),
        std=part(batch.std),
        paired=batch.paired,
        rows=part(batch.rows),
        epoch=batch.epoch,
        mask_noise=batch.mask_noise[rows],
        crops=part(batch.crops),
        source_sizes=part(batch.source_sizes),
        modalities=batch.modalities,
    )


def train(method: CMID, batches: list[Batch], *, rate: float = 0.05, first: int = 0, total: int = 10) -> list:
    """Plain gradient descent; the losses of each step."""
    method.train()
    history = []
    for step, batch in enumerate(batches, start=first):
        losses = method(batch, Progress(step=step, total_steps=total, epoch=0))
        method.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
        method.after_step(Progress(step=step + 1, total_steps=total, epoch=0))
        history.append({name: loss.item() for name, loss in losses.items()})
    return history


def disturbed(method: CMID) -> CMID:
    """The teacher no longer equal to the student, and a centre that is not zero."""
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        method.center.normal_(std=0.1)
    return method


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt((vector**2).sum())


def places(crop: Tensor, side: int) -> list[tuple[float, float]]:
    top, left, height, width, flips = crop.tolist()
    found = []
    for row, column in itertools.product(range(side), repeat=2):
        down, across = (row + 0.5) / side, (column + 0.5) / side
        down = 1 - down if int(flips) & 2 else down
        across = 1 - across if int(flips) & 1 else across
        found.append((top + down * height, left + across * width))
    return found


def slow_frequency(guesses: np.ndarray, targets: np.ndarray, official_options: bool) -> float:
    error = np.fft.fft2(guesses, norm="ortho") - np.fft.fft2(targets, norm="ortho")
    if official_options:
        distance = np.abs(error.mean(0))
        weights = np.log(1 + distance)
        weights /= weights.max()
    else:
        distance = np.abs(error)
        weights = distance / distance.max((2, 3), keepdims=True)
    return float((weights * distance**2).mean())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["hivit", "swin"])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_losses_equal_a_slow_transcription(kind: str, preset: str) -> None:
    config = without_augmentation(small(kind))
    config = official(config) if preset == "official" else config
    method = disturbed(build(config).eval())
    batch = make_batch(method, 2)
    progress = Progress(step=0, total_steps=10, epoch=25)
    losses = method(batch, progress)

    share = method.views.num_patches // 4
    guesses: dict[str, list] = {view: [] for view in VIEWS}
    targets: dict[str, list] = {view: [] for view in VIEWS}
    student, teacher, pixel_errors = {}, {}, []
    for place, view in enumerate(VIEWS):
        modality = view[:-2]
        for i in range(2):
            values = batch.images[view][i].numpy() / 255.0
            mean, std = batch.mean[modality][i].numpy(), batch.std[modality][i].numpy()
            image = ((values - mean[:, None, None]) / std[:, None, None]).astype(np.float32)
            noise = batch.mask_noise[i, place * share : place * share + BLOCKS].numpy()
            removed = np.argsort(noise)[6:]  # 60% of 16 blocks, floor(6.4) are kept
            seen, mask = image.copy(), np.zeros((4, 4), np.float32)
            for block in removed:
                y, x = 16 * (block // 4), 16 * (block % 4)
                seen[:, y : y + 16, x : x + 16] = image.mean((1, 2))[:, None, None]
                mask[block // 4, block % 4] = 1
            maps = method.encoder.encode_filled(
                {modality: torch.tensor(seen)[None]}, torch.tensor(mask)[None, None], method.mask_token
            )
            student[view, i] = maps[0]
            teacher[view, i] = method.teacher["encoder"].encode_filled({modality: torch.tensor(image)[None]})[
                0
            ]
            guess = method.pixel_heads[modality](maps)[0].numpy()
            target = np.broadcast_to(image, (3, SIZE, SIZE))
            pixels = mask.repeat(16, 0).repeat(16, 1)
            error = np.abs(guess - target)[:, pixels == 1]
            pixel_errors.append(
                error.mean() if preset == "paper" else (error * (2 / (1 + np.exp(-0.2 * error)) - 1)).mean()
            )
            if preset == "official":
                guess = np.where(pixels, guess, 0.25 * guess + 0.75 * (0.5 * guess + 0.5 * target))
            guesses[view].append(guess)
            targets[view].append(target)
    frequency = [
        slow_frequency(np.stack(guesses[view]), np.stack(targets[view]), preset == "official")
        for view in VIEWS
    ]
    assert losses["spatial"].item() == pytest.approx(np.mean(pixel_errors), rel=1e-4)
    assert losses["frequency"].item() == pytest.approx(np.mean(frequency), rel=1e-4)

    contrast, local = [], []
    student_t, teacher_t = (0.2, 0.07) if preset == "paper" else (0.1, 0.055)  # half of the warm-up is over
    centers = dict(zip(PAIR, method.center.numpy(), strict=True))
    prototypes = method.prototype_head.prototypes.numpy()
    their_prototypes = method.teacher["prototype_head"].prototypes.numpy()
    for modality in PAIR:
        queue = method.queues[modality].keys.numpy()
        for i in range(2):
            for a, b in (("1", "2"), ("2", "1")):
                ours, theirs = student[f"{modality}_{a}", i], teacher[f"{modality}_{b}", i]
                query = unit(method.projector(ours.mean((1, 2))[None])[0].numpy())
                key = unit(method.teacher["projector"](theirs.mean((1, 2))[None])[0].numpy())
                scores = np.array([query @ key, *(query @ other for other in queue)]) / 0.2
                contrast.append(-math.log(softmax(scores)[0]))

                side = ours.shape[-1]
                mine = places(batch.crops[f"{modality}_{a}"][i], side)
                others = places(batch.crops[f"{modality}_{b}"][i], side)
                nearest = [min((math.dist(p, o), j) for j, o in enumerate(others)) for p in mine]
                chosen = sorted(range(len(mine)), key=lambda cell: nearest[cell][0])[:4]
                for cell in chosen:
                    x = ours.flatten(1)[:, cell]
                    y = theirs.flatten(1)[:, nearest[cell][1]]
                    x = unit(method.prototype_head.mlp(x[None])[0].numpy())
                    y = unit(method.teacher["prototype_head"].mlp(y[None])[0].numpy())
                    p = softmax(np.array([x @ unit(c) for c in prototypes]) / student_t)
                    q = np.array([y @ unit(c) for c in their_prototypes])
                    local.append(-(softmax((q - centers[modality]) / teacher_t) * np.log(p)).sum())
    assert losses["nce"].item() == pytest.approx(np.mean(contrast), rel=1e-4)
    assert losses["local"].item() == pytest.approx(np.mean(local), rel=1e-4)


@torch.no_grad()
def test_byol_term_equals_a_slow_transcription_of_the_prediction() -> None:
    config = without_augmentation(small())
    config.contrast.kind = "byol"
    method = disturbed(build(config).eval())
    batch = make_batch(method)
    found = method(batch, START)["nce"].item()
    mask = method.mask(batch)
    maps = method.encoder.encode_filled(method._filled(method.images(batch), mask), mask, method.mask_token)
    predictions = method.predictor(method.projector(maps.mean((2, 3)))).unflatten(0, (2, 2, 3))
    targets = method.teacher["encoder"].encode_filled(method.images(batch)).mean((2, 3))
    targets = method.teacher["projector"](targets).unflatten(0, (2, 2, 3))
    distances = [
        ((unit(predictions[m, v, i].numpy()) - unit(targets[m, 1 - v, i].numpy())) ** 2).sum()
        for m, v, i in itertools.product(range(2), range(2), range(3))
    ]
    assert found == pytest.approx(np.mean(distances), rel=1e-4)
    assert not hasattr(method, "queues")


@pytest.mark.parametrize("kind", ["hivit", "swin", "resnet"])
@pytest.mark.parametrize("contrast", ["moco", "byol"])
def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(kind: str, contrast: str) -> None:
    config = small(kind)
    config.contrast.kind = contrast
    method = build(config).train()
    if kind == "resnet":  # its residual branches begin at zero
        for module in method.encoder.modules():
            if hasattr(module, "bn3"):
                torch.nn.init.ones_(module.bn3.weight)
    before = copy.deepcopy(method.teacher.state_dict())
    torch.stack(list(method(make_batch(method), START).values())).sum().backward()
    silent = {
        name
        for name, p in method.named_parameters()
        if not name.startswith("teacher.") and (p.grad is None or not p.grad.any())
    }
    # a bias before a batch norm is taken away again by its mean
    assert all("projector.0.bias" in name or "predictor.0.bias" in name for name in silent)
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    for name, value in method.teacher.state_dict().items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(value, before[name]), name


def test_teacher_begins_as_the_student_and_follows_it_by_the_schedule() -> None:
    method = build(small())
    for name, module in method.teacher.items():
        for old, new in zip(module.parameters(), getattr(method, name).parameters(), strict=True):
            assert torch.equal(old, new)
    expected = [p.detach().clone() for p in method.teacher.parameters()]
    for step in range(3):
        train(method, [make_batch(method, seed=step)], first=step)
        momentum = rising_momentum(step, 10, 0.996)
        ours = itertools.chain(*(getattr(method, name).parameters() for name in method.teacher))
        expected = [momentum * e + (1 - momentum) * p.detach() for e, p in zip(expected, ours, strict=True)]
        for old, new in zip(method.teacher.parameters(), expected, strict=True):
            torch.testing.assert_close(old, new, rtol=1e-5, atol=1e-7)


def teacher_keys(method: CMID, batch: Batch, modality: str) -> np.ndarray:
    """Unit keys of view 1, then of view 2."""
    rows = []
    for images in method.images(batch)[modality].split(1):
        maps = method.teacher["encoder"].encode_filled({modality: images})
        rows.append(unit(method.teacher["projector"](maps.mean((2, 3)))[0].numpy()))
    return np.stack(rows)


@torch.no_grad()
def test_queues_hold_the_keys_of_both_views_of_finished_steps_in_turn() -> None:
    method = build(small()).train()
    expected = {name: method.queues[name].keys.numpy().copy() for name in PAIR}
    place = 0
    for step in range(5):
        batches = [make_batch(method, 2, seed=10 * step + part) for part in range(2)]
        keys = {name: np.concatenate([teacher_keys(method, b, name) for b in batches]) for name in PAIR}
        center = method.center.clone()
        for batch in batches:
            method(batch, Progress(step=step, total_steps=10, epoch=0))
        assert torch.equal(method.center, center)
        if step == 2:
            continue  # its gradient was not finite: no after_step
        method.after_step(Progress(step=step + 1, total_steps=10, epoch=0))
        for row in range(8):
            for name in PAIR:
                expected[name][(place + row) % 20] = keys[name][row]
        place += 8
        for name in PAIR:
            np.testing.assert_allclose(method.queues[name].keys, expected[name], atol=1e-5)
            assert method.queues[name].place.item() == place % 20


@torch.no_grad()
def test_center_is_the_moving_average_of_the_teachers_similarities() -> None:
    method = disturbed(build(small()).train())
    before, similarities = method.center.clone(), []
    head = method.teacher["prototype_head"]
    head.register_forward_hook(lambda module, inputs, output: similarities.append(output))
    for seed in range(2):
        method(make_batch(method, 2, seed=seed), START)
    method.after_step(Progress(step=1, total_steps=10, epoch=0))
    by_modality = torch.stack(similarities).unflatten(1, (2, -1))
    expected = 0.9 * before + 0.1 * by_modality.mean((0, 2))
    torch.testing.assert_close(method.center, expected)
    assert not torch.allclose(*method.center, atol=1e-3)


@torch.no_grad()
def test_looking_at_the_losses_in_eval_mode_leaves_no_trace() -> None:
    method = build(small("resnet"))
    before = copy.deepcopy(method.state_dict())
    method.eval()
    method(make_batch(method), START)
    method.probe_features(make_batch(method))
    method.pictures(make_batch(method))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    method.after_step(Progress(step=1, total_steps=10, epoch=0))
    assert torch.equal(method.queues["sar"].keys, before["queues.sar.keys"])


@pytest.mark.parametrize("contrast", ["moco", "byol"])
def test_resumed_from_its_state_the_losses_are_the_same_to_the_last_bit(contrast: str) -> None:
    config = small("resnet")
    config.contrast.kind = contrast
    method = build(config)
    batches = [make_batch(method, seed=seed) for seed in range(6)]
    train(method, batches[:3])
    state = copy.deepcopy(method.state_dict())
    expected = train(method, batches[3:], first=3)
    again = build(copy.deepcopy(config), seed=1)
    load_strictly(again, state)
    assert train(again, batches[3:], first=3) == expected
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in method.state_dict().items())


def run_config(folder: Path, index: Path, **top: Any) -> PretrainConfig:
    tree = {
        "method": {
            "name": "cmid",
            "encoder": {"arch": "cmid_test_swin", "img_size": 32},
            "mask_block": 16,
            "contrast": {"hidden_dim": 16, "dim": 8, "queue_size": 40},
            "local": {"hidden_dim": 16, "bottleneck_dim": 6, "prototypes": 5},
        },
        "optim": {"max_steps": 6, "batch_per_gpu": 4, "grad_accum_steps": 2, "warmup_epochs": 0},
        "data": {"num_workers": 0, "index": [str(index)], "split": None},
        "log": {"every": 1, "tensorboard": False, "sentinel_every": 2, "sentinel_samples": 8},
        "checkpoint": {"every_epochs": None, "every_steps": 3},
        "device": "cpu",
        "output_dir": str(folder),
        **top,
    }
    return build_config(PretrainConfig, [("test", tree)], variants={"method": METHODS.config})


def test_a_run_resumes_exactly_and_exports_the_student(toy_index: Path, tmp_path: Path, metrics) -> None:
    whole = Run(run_config(tmp_path / "whole", toy_index), torch.device("cpu"))
    pretrain(whole)
    middle = str(tmp_path / "whole" / "previous.pt")
    again = Run(run_config(tmp_path / "again", toy_index, resume=middle), torch.device("cpu"))
    assert again.step == 3
    pretrain(again)
    lines = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "again") == lines[3:]
    assert {"spatial", "frequency", "nce", "local"} <= set(lines[0])
    assert {"effective_rank_optical", "effective_rank_sar", "modality_gap"} <= set(lines[1])
    first, second = (run.method.state_dict() for run in (whole, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # 6 steps of 2 x 4 samples with two keys each, in a queue of 40
    assert first["queues.optical.place"] == 6 * 16 % 40

    encoder = load_encoder(tmp_path / "whole" / "encoder.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(images, "sar"), whole.method.encoder.eval()(images, "sar"))
    assert not any("teacher" in name for name in encoder.state_dict())


@torch.no_grad()
def test_paired_and_unpaired_batches_are_the_same_to_it() -> None:
    method = build(small()).eval()
    losses = [method(make_batch(method, paired=paired), START) for paired in (True, False)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("modality", PAIR)
@pytest.mark.parametrize("kind", ["hivit", "resnet"])
def test_one_modality_alone(modality: str, kind: str) -> None:
    config = small(kind, modalities=[modality])
    if kind == "hivit":
        config.encoder.center = ["sar"]
    method = build(config)
    assert method.views.modalities == (modality,)
    assert list(method.views) == [f"{modality}_1", f"{modality}_2"]
    assert method.encoder.modalities == (modality,)
    batch = make_batch(method)
    losses = train(method, [batch])[0]
    assert set(losses) == {"spatial", "frequency", "nce", "local"}
    assert all(math.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert set(method.probe_features(batch)) == set(method.queues) == {modality}


@pytest.mark.parametrize(
    ("off", "terms"),
    [
        (["reconstruction"], {"nce", "local"}),
        (["contrast"], {"spatial", "frequency", "local"}),
        (["contrast", "local"], {"spatial", "frequency"}),
        (["reconstruction", "local"], {"nce"}),
    ],
)
def test_branches_can_be_left_out_as_in_the_papers_first_table(off: list[str], terms: set[str]) -> None:
    config = small()
    for name in off:
        getattr(config, name).enabled = False
    method = build(config)
    assert set(train(method, [make_batch(method)])[0]) == terms
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_thirty_steps_on_one_batch_lower_every_term() -> None:
    config = small()
    # with a queue, the negatives would soon be older keys of these very images
    config.contrast.kind = "byol"
    config.local.center_momentum = 0.5
    method = build(config)
    history = train(method, [make_batch(method)] * 30, rate=0.1, total=30)
    for term in ("spatial", "frequency", "nce"):
        assert history[-1][term] < 0.85 * history[0][term], term
    # until the centre has found its place, one prototype attracts everything and the term is small
    assert history[-1]["local"] < 0.7 * history[5]["local"]


@torch.no_grad()
def test_augmentation_belongs_to_the_sample() -> None:
    method = build(small())
    batch = make_batch(method, 4)
    whole, part = method.images(batch), method.images(rows_of(batch, slice(2, 4)))
    for name in PAIR:
        torch.testing.assert_close(part[name], whole[name].unflatten(0, (2, 4))[:, 2:].flatten(0, 1))
        plain = torch.cat([batch.normalised(f"{name}_1"), batch.normalised(f"{name}_2")])
        assert not torch.allclose(whole[name], plain)
    assert torch.equal(
        method.mask(batch).unflatten(0, (4, 4))[:, 2:].flatten(0, 1), method.mask(rows_of(batch, slice(2, 4)))
    )


@torch.no_grad()
def test_missing_pixels_become_the_mean() -> None:
    method = build(small())
    batch = make_batch(method)
    batch.images["sar_2"] = batch.images["sar_2"].float() / 255
    expected = method.images(batch)["sar"]
    batch.images["sar_2"][1, 0, 5, 6:9] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    found = method.images(batch)["sar"]
    assert not found[4, 0, 5, 6:9].any() and expected[4, 0, 5, 6:9].all()
    assert torch.equal(found[:4], expected[:4])


@torch.no_grad()
def test_multilook_target_is_the_box_mean_of_the_sar_image_alone() -> None:
    config = without_augmentation(small())
    config.reconstruction.sar_target = "multilook"
    method = build(config)
    batch = make_batch(method)
    images = method.images(batch)
    smooth = method._targets("sar", images["sar"])
    patch = images["sar"][0, 0, 10:15, 20:25]
    assert smooth.shape[1] == 3 and smooth[0, 2, 12, 22].item() == pytest.approx(
        patch.mean().item(), rel=1e-4
    )
    assert torch.equal(method._targets("optical", images["optical"]), images["optical"])


@torch.no_grad()
def test_a_centred_image_is_reconstructed_without_the_mean_its_encoder_never_sees() -> None:
    config = without_augmentation(small())
    config.encoder.center = ["sar"]
    method = build(config).eval()
    batch, brighter = make_batch(method), make_batch(method)
    for view in ("sar_1", "sar_2"):
        batch.images[view] = batch.images[view].float() / 512
        brighter.images[view] = batch.images[view] + 0.1
    images = method.images(batch)
    expected = images["sar"] - images["sar"].mean((2, 3), keepdim=True)
    torch.testing.assert_close(method._targets("sar", images["sar"]), expected.expand(-1, 3, -1, -1))
    assert torch.equal(method._targets("optical", images["optical"]), images["optical"])
    losses = method(batch, START)
    torch.testing.assert_close(method.pictures(batch)["sar"], batch.unit("sar_1")[0].expand(3, -1, -1))
    found = method(brighter, START)
    for name, loss in losses.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-3), name


@torch.no_grad()
def test_the_first_view_can_be_left_as_it_is() -> None:
    method = build(small(augmented_views="second"))
    batch = make_batch(method)
    for name in PAIR:
        first, second = method.images(batch)[name].chunk(2)
        torch.testing.assert_close(first, batch.normalised(f"{name}_1"))
        assert not torch.allclose(second, batch.normalised(f"{name}_2"))


def test_where_nothing_was_removed_only_the_share_of_the_prediction_gets_a_gradient() -> None:
    config = small()
    config.reconstruction.unmasked_weight = 0.001
    method = build(config)
    predictions, targets = torch.zeros(1, 1, 2, 2, requires_grad=True), torch.ones(1, 1, 2, 2)
    pixels = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    seen = method._for_spectra(predictions, targets, pixels)
    torch.testing.assert_close(seen.detach().flatten(), torch.tensor([0.0, 0.4995, 0.4995, 0.4995]))
    (gradient,) = torch.autograd.grad(seen.sum(), predictions)
    torch.testing.assert_close(gradient.flatten(), torch.tensor([1.0, 0.001, 0.001, 0.001]))


@torch.no_grad()
def test_pictures_show_the_image_what_is_left_of_it_and_the_guess() -> None:
    method = build(without_augmentation(small()))
    batch = make_batch(method)
    pictures = method.pictures(batch)
    assert all(picture.shape == (3, SIZE, SIZE) for picture in pictures.values())
    removed = method.mask(batch)[0, 0].repeat_interleave(16, 0).repeat_interleave(16, 1) > 0
    torch.testing.assert_close(pictures["optical"], batch.unit("optical_1")[0])
    for name in ("optical_filled", "optical_from_optical"):
        changed = (pictures[name] - pictures["optical"]).abs().amax(0) > 1e-4
        assert not changed[~removed].any() and changed[removed].float().mean() > 0.9


def test_teacher_temperature_rises_over_the_warm_up() -> None:
    official_local = LocalConfig(first_teacher_temperature=0.04, warmup_epochs=50)
    assert [teacher_temperature(official_local, epoch) for epoch in (0, 25, 50, 90)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    assert teacher_temperature(LocalConfig(), 0) == 0.07


def test_teacher_never_drops_paths() -> None:
    config = small("swin")
    config.encoder.drop_path = 0.5
    method = build(config).train()
    batch = make_batch(method)
    maps = [method.teacher["encoder"].encode_filled(method.images(batch)) for _ in range(2)]
    assert torch.equal(maps[0], maps[1])
    maps = [method.encoder.encode_filled(method.images(batch)) for _ in range(2)]
    assert not torch.equal(maps[0], maps[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": []}, "name optical, sar or both"),
        ({"modalities": ["radar"]}, "name optical, sar or both"),
        ({"encoder": EncoderConfig(channels={"optical": 3})}, "channels has no count for sar"),
        ({"mask_block": 48}, "mask_block 48 does not divide method.encoder.img_size 64"),
        ({"mask_ratio": 0.0}, "must lie between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CMIDConfig(
            **{"encoder": EncoderConfig(arch="cmid_test_hivit", img_size=64), "mask_block": 16, **changes}
        )


def test_an_encoder_that_cannot_be_filled_is_refused_by_name() -> None:
    config = small()
    config.encoder.arch = "vit_small"
    with pytest.raises(ValueError, match="method.encoder.arch vit_small: CMID needs"):
        CMID(config)


def ddp_method(kind: str, contrast: str) -> tuple[CMID, Batch]:
    config = official(small(kind))
    config.contrast.kind = contrast
    method = disturbed(build(config)).train()
    return method, make_batch(method, 4)


def rank_step(kind: str, contrast: str) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    method, batch = ddp_method(kind, contrast)
    mine = slice(2 * distributed.rank(), 2 * distributed.rank() + 2)
    wrapped = DistributedDataParallel(method)
    losses = wrapped(rows_of(batch, mine), START)
    torch.stack(list(losses.values())).sum().backward()
    method.after_step(Progress(step=1, total_steps=10, epoch=0))
    gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients, method.state_dict()


@pytest.mark.ddp
@pytest.mark.parametrize(("kind", "contrast"), [("swin", "moco"), ("resnet", "byol")])
def test_ddp_values_gradients_and_state_equal_one_process_with_the_whole_batch(
    kind: str, contrast: str
) -> None:
    method, batch = ddp_method(kind, contrast)
    losses = method(batch, START)
    torch.stack(list(losses.values())).sum().backward()
    method.after_step(Progress(step=1, total_steps=10, epoch=0))
    results = run_on_ranks(rank_step, kind, contrast, world_size=2)
    for name, loss in losses.items():
        assert np.mean([values[name] for values, _, _ in results]) == pytest.approx(loss.item(), rel=1e-4)
    for _, gradients, state in results:
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=5e-5, msg=name)
        for name, value in method.state_dict().items():
            if name.endswith(".keys"):
                # one process holds view 1 of all samples first, two hold the views of each rank together
                value, found = (keys[keys[:, 0].argsort()] for keys in (value, state[name]))
                torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)
            elif value.is_floating_point():
                torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4, msg=name)
    first, second = (state for _, _, state in results)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def shipped(name: str) -> PretrainConfig:
    path = Path(__file__).parents[2] / "pretrain" / "configs" / name
    sources = [(name, read_yaml(path)), ("test", {"output_dir": "x"})]
    return build_config(PretrainConfig, sources, variants={"method": METHODS.config})


def test_shipped_presets_differ_from_the_papers_where_they_say() -> None:
    paper, official_code, byol, swin = (
        to_dict(shipped(f"cmid_{name}.yaml"))
        for name in ("resnet50_paper", "resnet50_official", "resnet50_byol", "swin_base_paper")
    )
    defaults = to_dict(CMIDConfig())
    assert diff_configs(paper["method"], defaults) == [("encoder.arch", "resnet50", "swin_base")]
    assert [key for key, _, _ in diff_configs(paper, byol)] == ["method.contrast.kind"]
    assert [key for key, _, _ in diff_configs(paper, swin)] == [
        "method.encoder.arch",
        "optim.lr",
        "optim.batch_per_gpu",
    ]
    assert {key: (a, b) for key, a, b in diff_configs(paper["method"], official_code["method"])} == {
        "reconstruction.pixel": ("l1", "focal_l1"),
        "reconstruction.average_spectrum": (False, True),
        "reconstruction.log_weights": (False, True),
        "reconstruction.batch_weights": (False, True),
        "reconstruction.unmasked_weight": (1.0, 0.001),
        "local.batch_norm": (False, True),
        "crop.scale": ([0.5, 1.0], [0.3, 1.0]),
        "augmented_views": ("both", "second"),
        "optical.saturation": (0.4, 0.2),
        "optical.blur": (0.0, 1.0),
        "optical.solarize": (0.0, 0.2),
        "local.student_temperature": (0.2, 0.1),
        "local.first_teacher_temperature": (0.07, 0.04),
        "local.warmup_epochs": (0, 50),
    }


def test_tiny_recipe_has_the_crop_batch_and_schedule_of_codemaes() -> None:
    ours, theirs = (to_dict(shipped(f"{name}_hivit_tiny_cpu.yaml")) for name in ("cmid", "codemae"))
    assert ours["method"]["encoder"] == theirs["method"]["encoder"]
    rates = [recipe["optim"].pop("lr") for recipe in (ours, theirs)]  # each method has its own
    assert rates == [3e-3, 3e-3]
    for part in ("data", "optim", "log", "checkpoint", "seed"):
        assert ours[part] == theirs[part]
