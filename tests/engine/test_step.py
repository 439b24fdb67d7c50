import copy
import os
import shutil

import pytest
import torch
import torch._dynamo.utils
import toy
from torch import nn

from codemae.data.batch import Batch
from codemae.data.dataset import PairDataset
from codemae.data.index import open_index
from codemae.data.sampler import PretrainSampler
from codemae.engine.compilation import compile_blocks
from codemae.engine.interruption import Interruption
from codemae.engine.settings import OptimConfig
from codemae.engine.step import Learner, StepReport, fingerprint
from codemae.methods.base import Progress
from codemae.models.layers import Block

PROGRESS = Progress(step=0, total_steps=10, epoch=0)


@pytest.fixture
def batches(toy_index):
    """Paired batches of the toy index: ``batches(step, parts)`` deals a global batch of 4 into parts."""
    index = open_index(toy_index)
    views = toy.Toy(toy.ToyConfig()).views
    dataset = PairDataset(index, views, seed=0)
    sampler = PretrainSampler(index, 4, seed=0, use="unpaired")

    def deal(parts: int, step: int = 0) -> list[Batch]:
        return [
            dataset.collate([dataset[draw] for draw in part])
            for part in sampler.rank_slice(0, step, 0, 1, parts)
        ]

    return deal


def learner(optim: OptimConfig | None = None, **config: object) -> Learner:
    torch.manual_seed(0)
    method = toy.Toy(toy.ToyConfig(**{"dropout": 0.0, **config}))
    return Learner(method, optim or OptimConfig(batch_per_gpu=4), torch.device("cpu"), seed=0)


def take(learner: Learner, micro_batches: list[Batch], rate: float = 0.1) -> StepReport:
    return learner.step(micro_batches, PROGRESS, rate=rate, waited=0.0, interruption=Interruption())


def test_accumulated_batches_make_the_step_of_the_whole_one(batches):
    whole, parts = learner(), learner()
    reports = [take(whole, batches(1)), take(parts, batches(2))]
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=1e-6)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=1e-5)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7)
    assert reports[0].samples == reports[1].samples
    assert reports[0].pairs == reports[1].pairs == 4


def test_the_gradient_norm_is_that_of_all_gradients_and_clipping_caps_it(batches):
    free = learner()
    report = take(free, batches(1))
    by_hand = sum(float((p.grad.double() ** 2).sum()) for p in free.parameters) ** 0.5
    assert report.grad_norm == pytest.approx(by_hand, rel=1e-5)

    clipped = learner(OptimConfig(batch_per_gpu=4, clip_grad=by_hand / 10))
    assert take(clipped, batches(1)).grad_norm == pytest.approx(by_hand, rel=1e-5)
    after = sum(float((p.grad.double() ** 2).sum()) for p in clipped.parameters) ** 0.5
    assert after == pytest.approx(by_hand / 10, rel=1e-3)


@pytest.mark.parametrize("where", ["nan_at", "nan_gradient_at"])
def test_a_step_that_is_not_finite_moves_nothing(batches, where):
    broken = learner(**{where: [0]})
    before = {key: value.clone() for key, value in broken.method.state_dict().items()}
    report = take(broken, batches(1))
    assert not report.finite
    assert all(torch.equal(value, before[key]) for key, value in broken.method.state_dict().items())
    assert broken.optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_reduced_precision_trains_and_keeps_its_scale(batches, amp):
    reduced = learner(OptimConfig(batch_per_gpu=4, amp=amp))
    exact = learner()
    attempts = [take(reduced, batches(1)) for _ in range(6)]
    first = next(report for report in attempts if report.finite)
    reports = [first, take(exact, batches(1))]
    assert reports[0].loss == pytest.approx(reports[1].loss, rel=0.05)
    assert reports[0].grad_norm == pytest.approx(reports[1].grad_norm, rel=0.1)
    assert bool(reduced.state_dict()["scaler"]) == (amp == "float16")


def test_an_overflow_lowers_the_scale_of_float16_and_the_scale_is_restored(batches):
    reduced = learner(OptimConfig(batch_per_gpu=4, amp="float16"), nan_gradient_at=[0])
    assert not take(reduced, batches(1)).finite
    scale = reduced.state_dict()["scaler"]["scale"]
    assert scale == 2.0**15
    fresh = learner(OptimConfig(batch_per_gpu=4, amp="float16"))
    fresh.load_state_dict(reduced.state_dict())
    assert fresh.scaler.get_scale() == scale


def test_the_checksum_knows_rows_crops_masks_and_places(batches):
    (batch,) = batches(1)
    first = fingerprint(batch, 0)
    assert fingerprint(batches(1)[0], 0) == first
    assert fingerprint(batch, 4) != first
    for change in ("rows", "crops"):
        other = batches(1)[0]
        getattr(other, change)["sar"][0] += 1
        assert fingerprint(other, 0) != first
    other = batches(1)[0]
    other.mask_noise[2, 3] += 1e-6
    assert fingerprint(other, 0) != first


def test_the_checksum_of_the_parts_adds_up_to_that_of_the_whole(batches):
    whole = sum(fingerprint(batch, 0) for batch in batches(1)) % 2**32
    parts = sum(fingerprint(batch, 2 * place) for place, batch in enumerate(batches(2))) % 2**32
    assert parts == whole


def test_compiled_blocks_keep_their_names():
    plain, compiled = learner(), learner(OptimConfig(batch_per_gpu=4, compile=True))
    assert plain.state_dict()["method"].keys() == compiled.state_dict()["method"].keys()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_a_compiled_block_keeps_its_values_and_gradients():
    torch.manual_seed(0)
    plain = nn.ModuleList([Block(16, num_heads=2)])
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    tokens = torch.randn(2, 4, 16)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    values = [blocks[0](tokens) for blocks in (plain, compiled)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)
    for value in values:
        value.square().sum().backward()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)
