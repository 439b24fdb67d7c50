"""Feature distillation from a frozen teacher."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

DistillationKind = Literal["l1", "smooth_l1"]


def distillation_loss(student: Tensor, teacher: Tensor, kind: DistillationKind = "l1") -> Tensor:
    """Distance between student and teacher tokens at the same places.

    With X the student's and T the teacher's tokens, d = X - T, over B images, M tokens and D values:

        l1:        loss = mean |d|
        smooth_l1: loss = mean (d^2 / 2 where |d| < 1, |d| - 1/2 elsewhere)

    Args:
        student: (B, M, D).
        teacher: (B, M, D); receives no gradient.
        kind: ``l1`` is the paper's Eq. 2, ``smooth_l1`` the authors' code.

    Returns:
        A scalar in float32.

    Distributed: a mean over the rank's own samples; DDP averages over ranks.

    Differs from the paper: Eq. 2 writes the norm of a token (a sum over its D values); this is their mean, as
    in the authors' code, so that the term does not scale with the teacher's width.

    Reference: CoDe-MAE Eq. 2.
    """
    if kind == "l1":
        return F.l1_loss(student.float(), teacher.detach().float())
    if kind == "smooth_l1":
        return F.smooth_l1_loss(student.float(), teacher.detach().float())
    raise ValueError(f"unknown distillation loss {kind!r}; known: l1, smooth_l1")
