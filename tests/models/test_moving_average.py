import math

import pytest
import torch
from torch import nn

from codemae.models.moving_average import follow, rising_momentum


def test_momentum_rises_from_its_start_to_one_along_a_cosine() -> None:
    assert rising_momentum(0, 100, 0.996) == pytest.approx(0.996)
    assert rising_momentum(50, 100, 0.996) == pytest.approx(0.998)
    assert rising_momentum(25, 100, 0.9) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)
    assert rising_momentum(100, 100, 0.996) == rising_momentum(130, 100, 0.996) == 1


def test_parameters_follow_and_buffers_stay() -> None:
    torch.manual_seed(0)
    teacher, student = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    for module in (teacher, student):
        nn.init.normal_(module.weight)
        module.running_mean = torch.randn(3)
    before, mean = teacher.weight.detach().clone(), teacher.running_mean.clone()
    follow(teacher, student, 0.75)
    torch.testing.assert_close(teacher.weight.detach(), 0.75 * before + 0.25 * student.weight.detach())
    assert torch.equal(teacher.running_mean, mean)


def test_after_n_steps_towards_a_fixed_student_the_rest_of_the_teacher_is_the_product_of_momenta() -> None:
    teacher, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(teacher.weight)
    nn.init.zeros_(student.weight)
    momenta = [rising_momentum(step, 5, 0.9) for step in range(5)]
    for momentum in momenta:
        follow(teacher, student, momentum)
    assert teacher.weight.item() == pytest.approx(math.prod(momenta))
