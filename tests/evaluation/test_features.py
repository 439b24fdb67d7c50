from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from codemae.evaluation.features import (
    FeatureKey,
    Features,
    extract_features,
    extract_together,
    read_features,
    save_features,
    weights_hash,
)


class MeanColour(nn.Module):
    """The mean of each channel, as an encoder."""

    def pooled(self, images: Tensor, modality: str) -> Tensor:
        assert modality == "optical"
        return images.mean((2, 3))


def some_features() -> Features:
    return Features(values=torch.randn(5, 3), labels=torch.arange(5))


def test_features_come_in_order_with_their_labels() -> None:
    images = torch.rand(5, 3, 4, 4)
    batches = [
        (images[:3], torch.tensor([4, 3, 2]), torch.arange(3)),
        (images[3:], torch.tensor([1, 0]), torch.arange(2)),
    ]
    features = extract_features(MeanColour(), batches, "optical", torch.device("cpu"))
    torch.testing.assert_close(features.values, images.mean((2, 3)))
    assert features.labels.tolist() == [4, 3, 2, 1, 0]


class Swapping(nn.Module):
    """Each modality's feature is the other's mean colour."""

    def pooled_together(self, images: dict[str, Tensor]) -> dict[str, Tensor]:
        means = [image.mean((2, 3)) for image in images.values()]
        return dict(zip(images, reversed(means), strict=True))


def test_images_of_a_row_are_seen_together() -> None:
    optical, sar = torch.rand(3, 3, 4, 4), torch.rand(3, 1, 4, 4)
    rows, labels = torch.arange(3), torch.tensor([2, 0, 1])
    batches = [
        [(x[part], labels[part], rows[part]) for part in (slice(0, 2), slice(2, 3))] for x in (optical, sar)
    ]
    first, second = extract_together(Swapping(), batches, ("optical", "sar"), torch.device("cpu"))
    torch.testing.assert_close(first.values, sar.mean((2, 3)))
    torch.testing.assert_close(second.values, optical.mean((2, 3)))
    assert first.labels.tolist() == second.labels.tolist() == [2, 0, 1]
    sar[1] = float("nan")
    with pytest.raises(ValueError, match="row 1 .optical."):
        extract_together(
            Swapping(), [[(x, labels, rows)] for x in (optical, sar)], ("optical", "sar"), torch.device("cpu")
        )


def test_a_feature_that_is_not_finite_names_its_row() -> None:
    images = torch.rand(3, 3, 4, 4)
    images[1] = float("inf")
    with pytest.raises(ValueError, match="row 41"):
        extract_features(
            MeanColour(),
            [(images, torch.zeros(3), torch.tensor([40, 41, 42]))],
            "optical",
            torch.device("cpu"),
        )


def test_features_survive_the_disk(tmp_path: Path) -> None:
    features, path = some_features(), tmp_path / "cache" / "x.npz"
    assert read_features(path) is None
    save_features(path, features)
    again = read_features(path)
    assert again is not None
    assert torch.equal(again.values, features.values)
    assert torch.equal(again.labels, features.labels)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.npz"]


@pytest.mark.parametrize("keep", [0, 1, 30, 100, -1])
def test_a_truncated_file_counts_as_none(tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.npz"
    save_features(path, some_features())
    path.write_bytes(path.read_bytes()[:keep])
    assert read_features(path) is None
    assert "computed again" in caplog.text


def test_a_flipped_byte_counts_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    save_features(path, some_features())
    content = bytearray(path.read_bytes())
    content[150] ^= 0xFF
    path.write_bytes(bytes(content))
    assert read_features(path) is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    features = some_features()
    save_features(path, features)

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_features(path, some_features())
    again = read_features(path)
    assert again is not None and torch.equal(again.values, features.values)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npz"]


def test_the_key_changes_with_each_of_its_parts() -> None:
    parts = {name: name for name in FeatureKey.__slots__} | {"size": 128}
    digests = {FeatureKey(**parts).digest()}  # type: ignore[arg-type]
    for name in parts:
        changed = parts | {name: 64 if name == "size" else "other"}
        digests.add(FeatureKey(**changed).digest())  # type: ignore[arg-type]
    assert len(digests) == len(parts) + 1


def test_weights_hash_sees_values_and_names(tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(3)  # holds a 0-dimensional integer beside its floats
    before = weights_hash(layer)
    assert before == weights_hash(layer)
    with torch.no_grad():
        layer.weight[1] += 1e-6
    assert weights_hash(layer) != before
    assert weights_hash(nn.Sequential(layer)) != weights_hash(layer)
