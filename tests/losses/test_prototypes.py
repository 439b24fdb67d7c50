import math

import numpy as np
import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.losses.prototypes import moved_center, prototype_loss

WORLD, ROWS, WIDTH, PROTOTYPES = 2, 3, 5, 4


def slow_loss(
    student: np.ndarray, teacher: np.ndarray, center: np.ndarray, student_t: float, teacher_t: float
) -> float:
    """Eq. 8 to 10 with the teacher as the target, by loops."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p = [math.exp(value / student_t) for value in s]
        q = [math.exp((value - c) / teacher_t) for value, c in zip(t, center, strict=True)]
        for k in range(len(s)):
            total -= q[k] / sum(q) * math.log(p[k] / sum(p))
    return total / len(student)


@pytest.mark.parametrize(("student_t", "teacher_t"), [(0.2, 0.07), (0.1, 0.04)])
def test_loss_equals_a_double_loop(student_t: float, teacher_t: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.uniform(-1, 1, (6, 5)), rng.uniform(-1, 1, (6, 5))
    center = rng.uniform(-0.2, 0.2, 5)
    loss = prototype_loss(
        *(torch.tensor(x) for x in (student, teacher, center)),
        student_temperature=student_t,
        teacher_temperature=teacher_t,
    )
    assert loss.item() == pytest.approx(slow_loss(student, teacher, center, student_t, teacher_t), rel=1e-5)


def test_loss_by_hand() -> None:
    # The teacher is all but certain of the first prototype; the student gives it e / (e + 1).
    loss = prototype_loss(
        torch.tensor([[1.0, 0.0]]),
        torch.tensor([[1.0, 0.0]]),
        torch.zeros(2),
        student_temperature=1.0,
        teacher_temperature=0.01,
    )
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 1)), rel=1e-5)


def test_a_teacher_no_different_from_the_center_asks_for_even_assignments() -> None:
    center = torch.tensor([0.9, 0.1, -0.5])
    loss = prototype_loss(torch.zeros(1, 3), center[None], center)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)


def test_loss_is_the_teachers_entropy_and_the_divergence_of_the_two() -> None:
    student, teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    p, q = Categorical(logits=student / 0.2), Categorical(logits=teacher / 0.07)
    entropy = q.entropy().mean()
    loss = prototype_loss(student, teacher, torch.zeros(5))
    torch.testing.assert_close(loss, entropy + kl_divergence(q, p).mean())
    agreed = prototype_loss(teacher * 0.2 / 0.07, teacher, torch.zeros(5))
    torch.testing.assert_close(agreed, entropy)


def test_gradient_is_the_difference_of_the_assignments_and_none_reaches_the_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    prototype_loss(student, teacher, torch.zeros(4), student_temperature=0.5).backward()
    p, q = (student / 0.5).softmax(1), (teacher / 0.07).softmax(1)
    torch.testing.assert_close(student.grad, ((p - q) / 0.5 / 3).detach())
    assert teacher.grad is None


def test_center_is_a_moving_average() -> None:
    center = moved_center(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 1.0]), 0.9)
    torch.testing.assert_close(center, torch.tensor([0.9, -0.8]))


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, PROTOTYPES)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(WORLD * ROWS, WIDTH, generator=generator),
        torch.randn(WORLD * ROWS, PROTOTYPES, generator=generator),
    )


def rank_step() -> tuple[float, list[Tensor], Tensor]:
    head, (x, teacher) = model(), data()
    mine = slice(distributed.rank() * ROWS, (distributed.rank() + 1) * ROWS)
    center = moved_center(torch.zeros(PROTOTYPES), teacher[mine].mean(0), 0.9)
    wrapped = DistributedDataParallel(head)
    loss = prototype_loss(wrapped(x[mine]), teacher[mine], center)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in head.parameters() if p.grad is not None], center


@pytest.mark.ddp
def test_ddp_value_gradient_and_center_equal_one_process_with_the_whole_batch() -> None:
    head, (x, teacher) = model(), data()
    center = 0.1 * teacher.mean(0)
    loss = prototype_loss(head(x), teacher, center)
    loss.backward()
    results = run_on_ranks(rank_step, world_size=WORLD)
    assert np.mean([value for value, *_ in results]) == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients, moved in results:
        torch.testing.assert_close(moved, center)
        for gradient, parameter in zip(gradients, head.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
