"""Agreement of two embeddings of one place about which prototypes they resemble."""

import torch
from torch import Tensor

from codemae import distributed


def prototype_loss(
    student: Tensor,
    teacher: Tensor,
    center: Tensor,
    *,
    student_temperature: float = 0.2,
    teacher_temperature: float = 0.07,
) -> Tensor:
    """Cross-entropy between the teacher's and the student's assignment of matched places to prototypes.

    With s, t the similarities of row i of R to K prototypes and c the centre:

        p_i  = softmax(s_i / student_temperature)
        q_i  = softmax((t_i - c) / teacher_temperature)
        loss = -1/R * sum_i sum_k q_ik log p_ik = 1/R * sum_i [H(q_i) + KL(q_i || p_i)]

    The teacher's entropy H moves as it learns, so the loss may rise while student and teacher come to agree
    (KL falls); at H = log K all places are alike to it and the assignments say nothing.

    Args:
        student: (..., K), R rows in all.
        teacher: Of the same shape and places; receives no gradient.
        center: What the teacher's similarities are on average, (K,) or what spreads over the rows. Taking it
            away keeps any one prototype from attracting everything.
        student_temperature: tau_s.
        teacher_temperature: tau_t; smaller, so that the student is pulled to sharper assignments.

    Returns:
        A scalar in float32.

    Distributed: a mean over the rank's own rows; DDP averages over ranks.

    Differs from the paper: Eq. 10 as printed exchanges p and q, which would let the student win by always
    naming the teacher's first choice; here, as in DINO, the teacher's distribution is the target. The paper
    does not mention the centre, the authors' code has it.

    Reference: CMID Eq. 8-10; Caron et al., "Emerging Properties in Self-Supervised Vision Transformers",
        ICCV 2021, arXiv:2104.14294.
    """
    with torch.autocast(student.device.type, enabled=False):
        targets = ((teacher.detach().float() - center) / teacher_temperature).softmax(-1)
        return -(targets * (student.float() / student_temperature).log_softmax(-1)).sum(-1).mean()


def moved_center(center: Tensor, mean_similarity: Tensor, momentum: float) -> Tensor:
    """The centre after a step: momentum * centre + (1 - momentum) * mean over all ranks.

    Args:
        center: (..., K).
        mean_similarity: Of the same shape, the mean of this rank's teacher similarities in the step.
        momentum: Share of the old centre.
    """
    return torch.lerp(distributed.all_reduce_mean(mean_similarity, differentiable=False), center, momentum)
