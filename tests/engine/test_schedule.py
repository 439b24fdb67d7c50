import numpy as np
import pytest

from codemae.engine.schedule import learning_rate, peak_rate


def test_every_step_matches_a_curve_drawn_with_numpy():
    total, warmup, peak, low = 50, 8, 0.3, 0.01
    up = np.linspace(peak / warmup, peak, warmup)
    down = low + (peak - low) * (np.cos(np.linspace(0, np.pi, total - warmup + 1)) + 1) / 2
    expected = np.concatenate([up, down[:-1]])

    rates = [
        learning_rate(s, total_steps=total, warmup_steps=warmup, peak=peak, minimum=low) for s in range(total)
    ]

    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert max(rates) == peak
    assert learning_rate(
        total, total_steps=total, warmup_steps=warmup, peak=peak, minimum=low
    ) == pytest.approx(low)


def test_no_warm_up_starts_at_the_peak_and_all_warm_up_never_divides_by_zero():
    assert learning_rate(0, total_steps=10, warmup_steps=0, peak=0.5) == 0.5
    assert learning_rate(9, total_steps=10, warmup_steps=10, peak=0.5) == 0.5
    assert learning_rate(10, total_steps=10, warmup_steps=10, peak=0.5) == 0.5


def test_the_papers_rate_comes_of_its_batch():
    # 1024 pairs are 2048 images: 1.5e-4 x 2048 / 256
    assert peak_rate(1.5e-4, None, 1024) == pytest.approx(1.2e-3)
    assert peak_rate(1.5e-4, 0.7, 1024) == 0.7
