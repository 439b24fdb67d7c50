"""Contrastive losses between two embeddings of the same samples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from codemae import distributed


def symmetric_info_nce(
    first: Tensor, second: Tensor, temperature: float | Tensor = 0.07, *, gather_gradient: bool = True
) -> Tensor:
    """Symmetric InfoNCE: each embedding has to find its counterpart among all of the other kind.

    With u, v the L2-normalised rows of ``first`` and ``second`` and N samples over all ranks:

        loss = -1/(2N) * sum_i [ log( e^{u_i v_i / t} / sum_j e^{u_i v_j / t} )
                               + log( e^{v_i u_i / t} / sum_j e^{v_i u_j / t} ) ]

    Args:
        first: (B, D), this rank's samples.
        second: (B, D), in the same order.
        temperature: t.
        gather_gradient: Whether gradients flow into the gathered embeddings, the keys.

    Returns:
        A scalar in float32: the mean over this rank's samples. DDP's average over ranks is the loss above.

    Distributed: keys come from all ranks. With ``gather_gradient`` the averaged gradient equals that of one
    process holding the whole batch. Without, as in the authors' code, every key is a constant, this rank's
    own and so the positive too: an embedding learns as a query alone, from about half the gradient. A single
    process gathers nothing, there and here, and has the whole gradient either way.

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


def queue_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """InfoNCE against a queue: each query has to find its key among the keys of earlier samples.

    With q, k the L2-normalised rows of ``queries`` and ``keys``, n_j the rows of ``queue`` and B samples:

        loss = -1/B * sum_i log( e^{q_i k_i / t} / (e^{q_i k_i / t} + sum_j e^{q_i n_j / t}) )

    Args:
        queries: (B, D), the student's.
        keys: (B, D), the teacher's, in the same order; receives no gradient.
        queue: (K, D), L2-normalised keys of earlier steps; receives no gradient.
        temperature: t.

    Returns:
        A scalar in float32: the mean over this rank's samples.

    Distributed: the queue is the same on all ranks, so nothing is sent; DDP's average over ranks is the loss
    of the whole batch, value and gradient.

    Differs from the paper: Eq. 5 sums over the queue alone; like MoCo and the authors' code, the denominator
    also holds the key itself, without which the loss has no lower bound.

    Reference: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020,
        arXiv:1911.05722, Eq. 1; CMID Eq. 5.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q, k = F.normalize(queries.float(), dim=1), F.normalize(keys.detach().float(), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.detach().float().T], dim=1)
        return F.cross_entropy(logits / temperature, torch.zeros(len(q), dtype=torch.long, device=q.device))


def prediction_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos: the loss that needs no negatives.

    Args:
        predictions: (B, D), what the student predicts of the teacher's embedding.
        targets: (B, D), the teacher's; receives no gradient.

    Returns:
        A scalar in float32, from 0 to 4: the mean over this rank's samples; DDP averages over ranks.

    Reference: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, arXiv:2006.07733, Eq. 2.
    """
    with torch.autocast(predictions.device.type, enabled=False):
        return 2 - 2 * F.cosine_similarity(predictions.float(), targets.detach().float(), dim=1).mean()


def nt_xent(
    first: Tensor, second: Tensor, temperature: float | Tensor = 0.1, *, gather_gradient: bool = True
) -> Tensor:
    """NT-Xent: each embedding has to find its counterpart among all others of both kinds.

    With z_1 .. z_2N the L2-normalised rows of ``first`` and then ``second`` over all ranks, j(i) the other
    embedding of the sample of i:

        loss = -1/(2N) * sum_i log( e^{z_i z_j(i) / t} / sum_{k != i} e^{z_i z_k / t} )

    Unlike ``symmetric_info_nce``, embeddings of the same kind are negatives too.

    Args:
        first: (B, D), this rank's samples.
        second: (B, D), in the same order.
        temperature: t.
        gather_gradient: Whether gradients flow into the gathered embeddings, as in ``symmetric_info_nce``.

    Returns:
        A scalar in float32: the mean over this rank's samples; DDP's average over ranks is the loss above.

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML
        2020, arXiv:2002.05709, Eq. 1.
    """
    with torch.autocast(first.device.type, enabled=False):
        u, v = F.normalize(first.float(), dim=1), F.normalize(second.float(), dim=1)
        every = torch.cat([_all_ranks(u, gather_gradient), _all_ranks(v, gather_gradient)])
        own = torch.arange(len(u), device=u.device) + distributed.rank() * len(u)
        places = torch.cat([own, own + len(every) // 2])
        logits = torch.cat([u, v]) @ every.T / temperature
        itself = F.one_hot(places, len(every)).bool()
        return F.cross_entropy(logits.masked_fill(itself, float("-inf")), places.roll(len(u)))


def _all_ranks(embeddings: Tensor, differentiable: bool) -> Tensor:
    # A single process keeps its gradient even where gathering would stop it, as in the authors' code.
    if distributed.world_size() == 1:
        return embeddings
    return distributed.all_gather(embeddings, differentiable=differentiable)
