import math

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from codemae.evaluation.knn import knn_scores


def slow_scores(features: np.ndarray, table: np.ndarray, query: np.ndarray, neighbours: int) -> list[float]:
    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    ranked = sorted(((cosine(row, query), place) for place, row in enumerate(features)), reverse=True)
    votes = [(math.exp(similarity / 0.07), table[place]) for similarity, place in ranked[:neighbours]]
    total = sum(weight for weight, _ in votes)
    return [sum(weight * row[klass] for weight, row in votes) / total for klass in range(table.shape[1])]


def test_scores_are_the_weighted_mean_of_the_neighbours_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    features, queries = torch.randn(40, 6, generator=generator), torch.randn(7, 6, generator=generator)
    labels = (torch.rand(40, 3, generator=generator) < 0.4).float()
    scores = knn_scores(features, labels, queries, 3, neighbours=5)
    for query, found in zip(queries.numpy(), scores, strict=True):
        assert np.allclose(found, slow_scores(features.numpy(), labels.numpy(), query, 5), atol=1e-5)
    numbers = torch.arange(40) % 3
    one_hot = torch.nn.functional.one_hot(numbers, 3).float()
    torch.testing.assert_close(
        knn_scores(features, numbers, queries, 3), knn_scores(features, one_hot, queries, 3)
    )
    assert knn_scores(features[:4], numbers[:4], queries, 3).shape == (7, 3)


def test_one_neighbour_is_sklearns() -> None:
    generator = torch.Generator().manual_seed(1)
    features, queries = torch.randn(60, 8, generator=generator), torch.randn(30, 8, generator=generator)
    labels = torch.arange(60) % 4
    expected = KNeighborsClassifier(1, metric="cosine").fit(features, labels).predict(queries)
    assert knn_scores(features, labels, queries, 4, neighbours=1).argmax(1).tolist() == expected.tolist()
