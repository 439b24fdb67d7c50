import math

import numpy as np
import pytest
import torch
from torch import Tensor

from codemae.losses.segmentation import (
    IGNORE,
    DamageTerms,
    damage_losses,
    localisation_target,
    lovasz_softmax,
    pixel_cross_entropy,
)

OFFICIAL = DamageTerms(damage_ce=2.0, damage_lovasz=1.0, localisation_lovasz=0.5)


def jaccard_loss_of_mistakes(mistakes: set[int], members: set[int]) -> float:
    """1 - intersection / union when exactly these pixels are wrong about one class (Eq. 5 of the paper)."""
    return len(mistakes) / len(members | mistakes) if members | mistakes else 0.0


def slow_lovasz(logits: np.ndarray, target: np.ndarray) -> float:
    """The Lovasz extension of the set function above, class by class, pixel by pixel."""
    pixels = [
        (logits[b, :, y, x], int(target[b, y, x]))
        for b in range(target.shape[0])
        for y in range(target.shape[1])
        for x in range(target.shape[2])
        if target[b, y, x] != IGNORE
    ]
    losses = []
    for number in sorted({label for _, label in pixels}):
        errors = []
        for values, label in pixels:
            powers = [math.exp(value - max(values)) for value in values]
            share = powers[number] / sum(powers)
            errors.append(1 - share if label == number else share)
        members = {place for place, (_, label) in enumerate(pixels) if label == number}
        order = sorted(range(len(pixels)), key=lambda place: -errors[place])
        total, wrong = 0.0, set()
        for place in order:
            before = jaccard_loss_of_mistakes(wrong, members)
            wrong = wrong | {place}
            total += errors[place] * (jaccard_loss_of_mistakes(wrong, members) - before)
        losses.append(total)
    return float(np.mean(losses))


def case(seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, (2, 5, 6))
    target[rng.random(target.shape) < 0.3] = IGNORE
    return torch.from_numpy(rng.normal(0, 2, (2, classes, 5, 6))).float(), torch.from_numpy(target)


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_agrees_with_a_slow_transcription_of_its_paper(seed: int) -> None:
    logits, target = case(seed, classes=2 + seed)
    assert float(lovasz_softmax(logits, target)) == pytest.approx(
        slow_lovasz(logits.numpy(), target.numpy()), abs=1e-5
    )


def test_autocast_does_not_round_the_terms() -> None:
    logits, target = case(2)
    expected = damage_losses(logits[:, :2], logits, target, OFFICIAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = damage_losses(logits[:, :2], logits, target, OFFICIAL)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_lovasz_of_certain_predictions_is_one_minus_the_iou() -> None:
    target = torch.tensor([[[0, 0, 1, 1, 1, IGNORE]]])
    guess = torch.tensor([[[0, 1, 1, 1, 0, 1]]])
    logits = 200.0 * torch.nn.functional.one_hot(guess, 2).movedim(-1, 1).float()
    # class 0: intersection 1, union 3; class 1: intersection 2, union 4
    assert float(lovasz_softmax(logits, target)) == pytest.approx(1 - (1 / 3 + 2 / 4) / 2, abs=1e-6)


def test_cross_entropy_is_the_mean_over_labelled_pixels() -> None:
    logits, target = case(7)
    found = []
    for b in range(2):
        for y in range(5):
            for x in range(6):
                if target[b, y, x] != IGNORE:
                    values = logits[b, :, y, x].double().numpy()
                    found.append(math.log(np.exp(values).sum()) - values[int(target[b, y, x])])
    assert float(pixel_cross_entropy(logits, target)) == pytest.approx(np.mean(found), abs=1e-5)


def test_localisation_merges_every_damage_class_and_keeps_ignored_pixels() -> None:
    assert localisation_target(torch.tensor([0, 1, 2, 3, IGNORE])).tolist() == [0, 1, 1, 1, IGNORE]


@pytest.mark.parametrize("terms", [DamageTerms(), OFFICIAL, DamageTerms(post_localisation=0.5)])
def test_a_crop_without_labels_costs_nothing_and_moves_nothing(terms: DamageTerms) -> None:
    logits = [torch.randn(2, k, 4, 4, requires_grad=True) for k in (2, 4, 2)]
    target = torch.full((2, 4, 4), IGNORE)
    found = damage_losses(logits[0], logits[1], target, terms, logits[2])
    loss = torch.stack(list(found.values())).sum()
    loss.backward()
    assert loss.item() == 0.0
    for tensor, used in zip(logits, (True, True, terms.post_localisation > 0), strict=True):
        assert (tensor.grad is not None) == used
        assert tensor.grad is None or torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_no_term_looks_at_ignored_pixels() -> None:
    logits, target = case(3)
    building = torch.randn(2, 2, 5, 6)
    holes = (target == IGNORE)[:, None]
    terms = DamageTerms(damage_ce=2.0, damage_lovasz=1.0, localisation_lovasz=0.5, post_localisation=0.5)
    before = damage_losses(building, logits, target, terms, building)
    spoilt = damage_losses(
        building.masked_fill(holes, 50.0), logits.masked_fill(holes, -50.0), target, terms, building
    )
    assert sorted(before) == sorted(spoilt) and len(before) == 5
    for name in before:
        assert torch.equal(before[name], spoilt[name]), name


def test_the_official_sum_weighs_as_its_code_does() -> None:
    logits, target = case(5)
    building = torch.randn(2, 2, 5, 6)
    truth = localisation_target(target)
    found = damage_losses(building, logits, target, OFFICIAL)
    expected = pixel_cross_entropy(building, truth) + 2 * pixel_cross_entropy(logits, target)
    expected += slow_lovasz(logits.numpy(), target.numpy())
    expected += 0.5 * slow_lovasz(building.numpy(), truth.numpy())
    assert float(sum(found.values())) == pytest.approx(float(expected), abs=1e-5)
    assert sorted(damage_losses(building, logits, target, DamageTerms())) == ["damage_ce", "localisation_ce"]
