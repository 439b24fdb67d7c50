import math

import pytest
import torch
import toy
from torch import nn

from codemae.data.dataset import PairDataset
from codemae.data.index import open_index
from codemae.data.sampler import PretrainSampler
from codemae.engine.sentinel import Sentinel, effective_rank, gradient_cosines, modality_gap
from codemae.engine.settings import OptimConfig
from codemae.engine.step import Learner
from codemae.methods.base import Progress

START = Progress(step=0, total_steps=10, epoch=0)


def test_effective_rank_of_known_spectra():
    corners = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert effective_rank(corners + 5) == pytest.approx(2.0)
    line = torch.linspace(0, 1, 6)[:, None] * torch.tensor([[1.0, 2, 3]])
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-5)
    assert effective_rank(torch.ones(5, 3)) == 1.0
    # singular values 3 and 1: exp(-(3/4 ln 3/4 + 1/4 ln 1/4))
    uneven = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    assert effective_rank(uneven) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_modality_gap_of_opposite_and_equal_clouds():
    east = torch.tensor([[2.0, 0.0], [5.0, 0.0]])
    assert modality_gap(east, -east) == pytest.approx(2.0)
    assert modality_gap(east, 3 * east) == pytest.approx(0.0)
    assert modality_gap(east, east.flip(1)) == pytest.approx(math.sqrt(2))


def test_gradient_cosines_by_hand():
    weight = nn.Parameter(torch.tensor([1.0, 1.0]))
    unused = nn.Parameter(torch.ones(1))
    terms = {
        "a": weight[0] * 3,
        "b": weight[0] + weight[1],
        "c": -2 * weight[0],
        "none": unused.sum() * 2,
        "constant": torch.tensor(1.0),
    }
    cosines = gradient_cosines(terms, [weight])
    assert cosines == {
        "a_b": pytest.approx(1 / math.sqrt(2)),
        "a_c": pytest.approx(-1.0),
        "b_c": pytest.approx(-1 / math.sqrt(2)),
    }
    assert weight.grad is None and unused.grad is None


@pytest.fixture
def learner_and_sentinel(toy_index):
    index = open_index(toy_index)
    torch.manual_seed(0)
    method = toy.Toy(toy.ToyConfig())
    learner = Learner(method, OptimConfig(batch_per_gpu=4), torch.device("cpu"), seed=0)
    dataset = PairDataset(index, method.views, seed=0)
    sampler = PretrainSampler(index, 4, seed=0)
    return learner, Sentinel(dataset, sampler, samples=12)


def test_it_measures_both_modalities_and_the_pair_of_losses(learner_and_sentinel):
    learner, sentinel = learner_and_sentinel
    values = sentinel.measure(learner, START)
    assert set(values) == {
        "effective_rank_optical",
        "effective_rank_sar",
        "modality_gap",
        "gradient_cosine_reconstruction_ccl",
    }
    assert 1 < values["effective_rank_optical"] <= 11
    assert -1 <= values["gradient_cosine_reconstruction_ccl"] <= 1
    assert values == sentinel.measure(learner, START), "the probe or its dropout is not frozen"


def test_a_collapsed_encoder_is_seen(learner_and_sentinel):
    learner, sentinel = learner_and_sentinel
    with torch.no_grad():
        for parameter in learner.method.encoder.patch_embed.parameters():
            parameter.zero_()
    assert sentinel.measure(learner, START)["effective_rank_sar"] == pytest.approx(1.0)


def test_it_leaves_no_trace(learner_and_sentinel):
    learner, sentinel = learner_and_sentinel
    method = learner.method
    method.train()
    method.encoder.drop.eval()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)

    sentinel.measure(learner, START)
    sentinel.pictures(learner)

    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, state[key]) for key, value in method.state_dict().items())
    assert method.training and method.decoder.training and not method.encoder.drop.training
    assert all(p.grad is None for p in method.parameters())
