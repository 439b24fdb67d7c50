"""Losses on the correlation between embedding dimensions: Barlow Twins, DeCUR's decoupling, VICReg."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codemae import distributed

EPS = 1e-5


def cross_correlation(first: Tensor, second: Tensor, *, gather_gradient: bool = True) -> Tensor:
    """Correlation of every dimension of one embedding with every dimension of the other.

    With a, b the columns of ``first`` and ``second`` standardised over the N samples of all ranks (biased
    variance, 1e-5 added to it, as by a batch norm without affine):

        C_ij = 1/N * sum_n a_ni b_nj

    Args:
        first: (B, K), this rank's samples; every rank holds as many.
        second: (B, K), in the same order.
        gather_gradient: Whether gradients flow through the sums over ranks.

    Returns:
        (K, K) in float32, the same on every rank.

    Distributed: mean, variance and the sum over samples are taken over all ranks, by the real number of
    processes. With ``gather_gradient`` the gradient that DDP averages equals that of one process holding the
    whole batch. Without, the sum of the products passes none to other ranks, as an all-reduce in place does;
    it then comes out smaller by the number of ranks.

    Differs from the authors' code: there the product is divided by four times the batch whatever the number
    of processes, and gradients stop at the all-reduce.

    Reference: DeCUR Eq. 1; Zbontar et al., "Barlow Twins", ICML 2021.
    """
    with torch.autocast(first.device.type, enabled=False):
        a, b = standardise(first), standardise(second)
        mine = a.T @ b / (len(a) * distributed.world_size())
        if gather_gradient:
            return distributed.all_reduce_sum(mine)
        return mine + (distributed.all_reduce_sum(mine, differentiable=False) - mine.detach())


def standardise(embeddings: Tensor) -> Tensor:
    """Columns of (B, K) with mean 0 and variance 1 over the samples of all ranks, in float32."""
    embeddings = embeddings.float()
    centred = embeddings - distributed.all_reduce_mean(embeddings.mean(0))
    variance = distributed.all_reduce_mean(centred.square().mean(0))
    return centred * (variance + EPS).rsqrt()


def redundancy_loss(correlation: Tensor, off_diagonal: float = 0.0051, *, target: float = 1.0) -> Tensor:
    """How far a correlation matrix is from ``target`` times the identity.

        loss = sum_i (target - C_ii)^2 + lambda * sum_i sum_{j != i} C_ij^2

    With target 1 each dimension agrees with its counterpart and with no other (Barlow Twins, DeCUR Eq. 2, 4
    and 5); with target 0 with none at all (DeCUR Eq. 3).

    Of N samples whose embeddings have nothing to do with each other, the squared correlations are 1 / (N - 1)
    in expectation, and with target 0 the loss is

        (K + lambda * K (K - 1)) / (N - 1).

    Fresh encoders and small batches start about there: DeCUR's unique term then has nowhere to fall.

    Args:
        correlation: C, (K, K); an empty matrix gives 0.
        off_diagonal: lambda.
        target: What the diagonal is drawn to.

    Returns:
        A scalar in float32.
    """
    diagonal = correlation.diagonal()
    on = (target - diagonal).square().sum()
    return on + off_diagonal * (correlation.square().sum() - diagonal.square().sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class VICRegTerms:
    """The three terms of VICReg, unweighted.

    Attributes:
        invariance: Mean squared difference of the two embeddings.
        variance: Mean over dimensions of what the standard deviation lacks to 1, mean of both embeddings.
        covariance: Sum of squared off-diagonal covariances over K, sum of both embeddings.
    """

    invariance: Tensor
    variance: Tensor
    covariance: Tensor


def vicreg_terms(first: Tensor, second: Tensor) -> VICRegTerms:
    """Variance, invariance and covariance terms of two embeddings of the same samples.

    With z the rows of one embedding, N samples over all ranks and K dimensions, S the unbiased covariance:

        invariance = 1/(NK) * sum_n sum_k (z_nk - z'_nk)^2
        variance   = 1/K * sum_k max(0, 1 - sqrt(S_kk + 1e-4)),  mean of both embeddings
        covariance = 1/K * sum_k sum_{l != k} S_kl^2,            sum of both embeddings

    Args:
        first: (B, K), this rank's samples; every rank holds as many.
        second: (B, K), in the same order.

    Distributed: variances and covariances are those of the samples of all ranks, with gradient; DDP's average
    over ranks is the gradient of one process holding the whole batch. ``invariance`` is the mean over this
    rank's samples.

    Differs from the paper: Eq. 6 adds the variance terms of both embeddings; as in the authors' code their
    mean is taken, and the squared distance is divided by K as well.

    Reference: Bardes et al., "VICReg", ICLR 2022, arXiv:2105.04906.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        variances, covariances = [], []
        for embeddings in (first, second):
            count = len(embeddings) * distributed.world_size()
            centred = embeddings - distributed.all_reduce_mean(embeddings.mean(0))
            covariance = distributed.all_reduce_sum(centred.T @ centred) / (count - 1)
            diagonal = covariance.diagonal()
            variances.append(F.relu(1 - (diagonal + 1e-4).sqrt()).mean())
            covariances.append((covariance.square().sum() - diagonal.square().sum()) / len(diagonal))
        return VICRegTerms(
            invariance=F.mse_loss(first, second),
            variance=torch.stack(variances).mean(),
            covariance=torch.stack(covariances).sum(),
        )
