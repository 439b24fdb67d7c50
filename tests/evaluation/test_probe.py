import math
import time
from pathlib import Path

import pytest
import torch
from data_makers import SHARED_DATA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from codemae.data.index import open_index
from codemae.data.index_file import write_index
from codemae.data.statistics import IndexStatistics, SourceStatistics
from codemae.evaluation.features import Features, FeatureStore, weights_hash
from codemae.evaluation.probe import (
    ProbeSettings,
    evaluate_probes,
    normalise_features,
    train_probes,
)
from codemae.models.factory import load_encoder


def gaussian_classes(
    count: int, classes: int, width: int, seed: int, spread: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def slow_probe(
    features: Tensor, labels: Tensor, rows: Tensor, seed: int, settings: ProbeSettings
) -> nn.Sequential:
    """One seed alone, with the library's own layers and optimizer, as PROTOCOLS 2 words it."""
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    model = nn.Sequential(
        nn.BatchNorm1d(features.shape[1], affine=False, eps=1e-6), nn.Linear(features.shape[1], classes)
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model[1].weight.copy_(0.01 * torch.randn(model[1].weight.shape, generator=generator))
        model[1].bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.0)
    loss = nn.MultiLabelSoftMarginLoss() if labels.ndim == 2 else nn.CrossEntropyLoss()
    model.train()
    for epoch in range(settings.epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]
        batches = [b for b in order.split(settings.batch_size) if len(b) > 1]
        for step, batch in enumerate(batches):
            done = (epoch + step / len(batches)) / settings.epochs
            optimizer.param_groups[0]["lr"] = 1e-6 + (0.5 - 1e-6) * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad()
            target = labels[batch].float() if labels.ndim == 2 else labels[batch]
            loss(model(features[batch]), target).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_batched_run_equals_each_seed_alone(multi_label: bool) -> None:
    features, labels = gaussian_classes(90, 3, 12, seed=0)
    if multi_label:
        labels = (features[:, :3] > 0).to(torch.uint8)
    settings = ProbeSettings(epochs=4, batch_size=16, evaluate_every=2)
    # 40 and 35 rows end an epoch with batches of 8 and 3; 33 with a batch of one, which is left out;
    # 10 rows have fewer steps than the others.
    sizes = (40, 35, 33, 10)
    seeds = (3, 1, 4, 0)
    subsets = [
        torch.randperm(90, generator=torch.Generator().manual_seed(s))[:n]
        for s, n in zip(seeds, sizes, strict=True)
    ]
    states = train_probes(features, labels, 3, subsets, seeds, settings)
    assert sorted(states) == [2, 4]
    logits = states[4].logits(features)
    for i, (seed, rows) in enumerate(zip(seeds, subsets, strict=True)):
        alone = slow_probe(features, labels, rows, seed, settings)
        torch.testing.assert_close(states[4].weight[i], alone[1].weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(states[4].mean[i], alone[0].running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[i], alone(features).detach(), rtol=1e-3, atol=1e-3)


def test_accuracy_agrees_with_logistic_regression() -> None:
    features, labels = gaussian_classes(1000, 5, 32, seed=0, spread=3.0)
    test_features, test_labels = gaussian_classes(2000, 5, 32, seed=1, spread=3.0)
    features, test_features = normalise_features(features), normalise_features(test_features)
    states = train_probes(features, labels, 5, [torch.arange(1000)] * 3, [0, 1, 2], ProbeSettings())
    ours = evaluate_probes(states, test_features, test_labels)[50]
    scaler = StandardScaler().fit(features.numpy())
    reference = LogisticRegression(max_iter=2000, C=100.0).fit(
        scaler.transform(features.numpy()), labels.numpy()
    )
    theirs = 100 * reference.score(scaler.transform(test_features.numpy()), test_labels.numpy())
    assert 40 < theirs < 95
    assert max(abs(value - theirs) for value in ours) < 2


def reference_accuracy(train: Features, test: Features) -> float:
    """Scikit-learn's logistic regression as it comes, on the same layer-normalised features."""
    features, queries = normalise_features(train.values), normalise_features(test.values)
    scaler = StandardScaler().fit(features.numpy())
    model = LogisticRegression(max_iter=3000).fit(scaler.transform(features.numpy()), train.labels.numpy())
    return 100 * float(model.score(scaler.transform(queries.numpy()), test.labels.numpy()))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED_DATA / "eurosat_rgb").is_dir(), reason="the shared EuroSAT images are absent")
def test_accuracy_agrees_with_logistic_regression_on_real_cached_features(tmp_path: Path) -> None:
    root = SHARED_DATA / "eurosat_rgb"
    rows = [
        {"source": "eurosat", "split": split, "group": path.stem, "optical": f"{folder.name}/{path.name}"}
        | {"label": klass}
        for klass, folder in enumerate(sorted(path for path in root.iterdir() if path.is_dir()))
        for place, path in enumerate(sorted(folder.iterdir())[:200])
        for split in ["train" if place % 2 else "test"]
    ]
    measured = SourceStatistics(channels=3, mean=(0.35, 0.39, 0.41), std=(0.2, 0.14, 0.12))
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    described = IndexStatistics(sources={"eurosat": {"optical": measured}}, classes=classes)
    write_index(tmp_path / "index", rows, described, root)
    encoder = load_encoder("random:hivit_tiny", img_size=64)
    device = torch.device("cpu")
    store = FeatureStore(encoder, weights_hash(encoder), 64, tmp_path / "features", device=device)
    splits = [open_index(str(tmp_path / "index"), split) for split in ("train", "test")]
    for split in splits:
        store.features(split, "optical")
    train, test = (store.features(split, "optical") for split in splits)  # as cached
    every = torch.arange(len(train.labels))
    settings = ProbeSettings()
    states = train_probes(
        normalise_features(train.values), train.labels, 10, [every] * 3, [0, 1, 2], settings
    )
    ours = evaluate_probes(states, normalise_features(test.values), test.labels)[settings.epochs]
    theirs = reference_accuracy(train, test)
    assert 40 < theirs < 95
    assert abs(sum(ours) / len(ours) - theirs) < 2, (ours, theirs)


def test_five_seeds_over_3000_images_take_less_than_20_seconds() -> None:
    features, labels = gaussian_classes(3000, 10, 512, seed=0, spread=3.0)
    started = time.process_time()  # of this process alone, on one thread, whatever else the machine does
    train_probes(features, labels, 10, [torch.arange(3000)] * 5, range(5), ProbeSettings())
    assert time.process_time() - started < 20


def test_a_small_subset_makes_one_step_an_epoch() -> None:
    features, labels = gaussian_classes(20, 2, 4, seed=0)
    settings = ProbeSettings(epochs=1, evaluate_every=1)
    state = train_probes(features, labels, 2, [torch.arange(20)], [0], settings)[1]
    # One step of SGD from w: w - lr * grad, with the gradient written out for softmax regression.
    w = 0.01 * torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    x = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    error = torch.softmax(x @ w.T, dim=1) - nn.functional.one_hot(labels, 2)
    torch.testing.assert_close(state.weight[0], w - 0.5 * error.T @ x / 20)
    torch.testing.assert_close(state.bias[0], -0.5 * error.mean(0))


def test_the_folded_batch_norm_gives_the_running_statistics() -> None:
    features, labels = gaussian_classes(30, 3, 6, seed=3)
    state = train_probes(features, labels, 3, [torch.arange(30)], [0], ProbeSettings(epochs=2))[2]
    standardised = (features - state.mean[0]) / (state.var[0] + 1e-6).sqrt()
    torch.testing.assert_close(state.logits(features)[0], standardised @ state.weight[0].T + state.bias[0])
