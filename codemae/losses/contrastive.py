"""Contrastive losses between two embeddings of the same samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codemae import distributed


def symmetric_info_nce(
    first: Tensor, second: Tensor, temperature: float = 0.07, *, gather_gradient: bool = True
) -> Tensor:
    """Symmetric InfoNCE: each embedding has to find its counterpart among all of the other kind.

    With u, v the L2-normalised rows of ``first`` and ``second`` and N samples over all ranks:

        loss = -1/(2N) * sum_i [ log( e^{u_i v_i / t} / sum_j e^{u_i v_j / t} )
                               + log( e^{v_i u_i / t} / sum_j e^{v_i u_j / t} ) ]

    Args:
        first: (B, D), this rank's samples.
        second: (B, D), in the same order.
        temperature: t.
        gather_gradient: Whether gradients flow into negatives of other ranks.

    Returns:
        A scalar in float32: the mean over this rank's samples. DDP's average over ranks is the loss above.

    Distributed: negatives come from all ranks. With ``gather_gradient`` the averaged gradient equals that of
    one process holding the whole batch; without, other ranks' embeddings count as constants, as in the
    authors' code, and the gradient is smaller.

    Differs from the paper: Eq. 4 does not show the one half of the symmetric mean; the authors' code has it.

    Reference: CoDe-MAE Eq. 4; van den Oord et al., arXiv:1807.03748.
    """
    with torch.autocast(first.device.type, enabled=False):
        u, v = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
        all_u, all_v = _all_ranks(u, gather_gradient), _all_ranks(v, gather_gradient)
        labels = torch.arange(len(u), device=u.device) + distributed.rank() * len(u)
        return 0.5 * (
            F.cross_entropy(u @ all_v.T / temperature, labels)
            + F.cross_entropy(v @ all_u.T / temperature, labels)
        )


def _all_ranks(embeddings: Tensor, differentiable: bool) -> Tensor:
    if distributed.world_size() == 1:
        return embeddings
    if differentiable:
        return distributed.all_gather(embeddings, differentiable=True)
    gathered = distributed.all_gather(embeddings, differentiable=False)
    # This rank's own rows keep their gradient, as negatives of its own samples.
    start = distributed.rank() * len(embeddings)
    return torch.cat([gathered[:start], embeddings, gathered[start + len(embeddings) :]])
