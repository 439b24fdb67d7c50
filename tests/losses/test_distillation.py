import numpy as np
import pytest
import torch

from codemae.losses.distillation import distillation_loss


@pytest.mark.parametrize("kind", ["l1", "smooth_l1"])
def test_loss_equals_a_triple_loop(kind: str) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4)), 2 * rng.normal(size=(2, 3, 4))
    total = 0.0
    for b in range(2):
        for m in range(3):
            for d in range(4):
                gap = abs(student[b, m, d] - teacher[b, m, d])
                total += gap if kind == "l1" else (gap**2 / 2 if gap < 1 else gap - 0.5)
    loss = distillation_loss(torch.tensor(student), torch.tensor(teacher), kind)  # type: ignore[arg-type]
    np.testing.assert_allclose(loss.item(), total / 24, rtol=1e-6)


def test_teacher_receives_no_gradient() -> None:
    student, teacher = torch.zeros(1, 1, 2, requires_grad=True), torch.ones(1, 1, 2, requires_grad=True)
    distillation_loss(student, teacher, "l1").backward()
    assert teacher.grad is None
    assert student.grad.tolist() == [[[-0.5, -0.5]]]  # type: ignore[union-attr]


def test_unknown_kind_names_the_known() -> None:
    with pytest.raises(ValueError, match="l1, smooth_l1"):
        distillation_loss(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), "l3")  # type: ignore[arg-type]
