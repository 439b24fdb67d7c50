import math

import numpy as np
import pytest
import torch

from codemae.analysis.report import drawing
from codemae.analysis.spectrum import draw_spectra, singular_spectrum


def slow_effective_rank(values: list[float]) -> float:
    total = sum(values)
    entropy = 0.0
    for value in values:
        if value > 0:
            entropy -= value / total * math.log(value / total)
    return math.exp(entropy)


def test_effective_rank_matches_the_slow_sum() -> None:
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7)
    spectrum = singular_spectrum(features)
    assert spectrum.effective_rank == pytest.approx(slow_effective_rank(spectrum.values.tolist()), rel=1e-6)


def test_spectrum_matches_eigenvalues_of_the_covariance() -> None:
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) + 100
    matrix = features.double().numpy()
    matrix = matrix - matrix.mean(axis=0)
    expected = np.sqrt(np.linalg.eigvalsh(matrix.T @ matrix)[::-1])
    spectrum = singular_spectrum(features)
    np.testing.assert_allclose(spectrum.values.numpy(), expected, rtol=1e-8)
    assert (spectrum.samples, spectrum.width) == (40, 6)


def test_spectrum_ignores_an_offset_and_a_rotation() -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(30, 5, generator=generator, dtype=torch.double)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.double)).Q
    moved = features @ rotation + 7
    torch.testing.assert_close(singular_spectrum(moved).values, singular_spectrum(features).values)


def test_collapsed_features_show_as_rank_one() -> None:
    direction = torch.randn(1, 16, generator=torch.Generator().manual_seed(3))
    features = torch.linspace(-1, 1, 32)[:, None] * direction
    assert singular_spectrum(features).effective_rank == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (2, 3, 4)])
def test_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="B >= 2"):
        singular_spectrum(torch.zeros(shape))


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        singular_spectrum(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


def test_drawn_line_starts_at_one() -> None:
    features = torch.randn(12, 4, generator=torch.Generator().manual_seed(4))
    with drawing() as (_, axes):
        draw_spectra(axes[0], {"optical": singular_spectrum(features)})
    (line,) = axes[0].get_lines()
    assert float(np.asarray(line.get_ydata())[0]) == 1.0
    assert len(np.asarray(line.get_xdata())) == 4
