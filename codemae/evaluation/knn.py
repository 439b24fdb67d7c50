"""Nearest neighbours: what frozen features say without anything being trained."""

import torch
from torch import Tensor
from torch.nn import functional

NEIGHBOURS = 20
TEMPERATURE = 0.07
_CELLS = 1 << 26  # similarities held at once: 256 MB of float32


def knn_scores(
    features: Tensor,
    labels: Tensor,
    queries: Tensor,
    num_classes: int,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """The mean of the nearest neighbours' labels, weighted by exp(cosine similarity / temperature).

    Args:
        features: (N, D) labelled features.
        labels: (N,) class numbers or (N, K) zeros and ones.
        queries: (B, D) features to be classified.
        num_classes: K.
        neighbours: How many vote; all N where there are fewer.
        temperature: Of the weights.

    Returns:
        (B, K) in [0, 1]: the share of the weight that speaks for each class.
    """
    table = labels if labels.ndim == 2 else functional.one_hot(labels, num_classes)
    table = table.to(features.dtype)
    keys = functional.normalize(features, dim=1)
    scores = []
    for block in functional.normalize(queries, dim=1).split(max(1, _CELLS // len(keys))):
        similarity, nearest = (block @ keys.T).topk(min(neighbours, len(keys)), dim=1)
        weights = torch.softmax(similarity / temperature, dim=1)
        scores.append(torch.einsum("bn,bnk->bk", weights, table[nearest]))
    return torch.cat(scores)
