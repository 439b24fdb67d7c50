import json

import pretrain_step as bench
import pytest
import torch
from torch import nn

from codemae.models.layers import Attention

SMALL = ["--encoder=hivit_tiny", "--size=64", "--device=cpu", "--steps=1", "--warmup=0"]


@pytest.fixture(autouse=True)
def _small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PEAK_SIDE", {"cpu": 256})


@pytest.mark.parametrize("objective", ["mae", "codemae"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_last_line_is_the_result(objective: str, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.main([*SMALL, "--batch=2", f"--objective={objective}", f"--dtype={dtype}"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    expected = result["samples_per_second"] * result["gflop_per_sample"] / result["peak_gflops"]
    assert result["peak_fraction"] == pytest.approx(expected, rel=0.05, abs=1e-3)
    assert result["peak_memory_mb"] > 100


def test_published_form_computes_the_same() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(Attention(32, 4))
    x = torch.randn(2, 16, 32)
    expected = plain(x)
    bench.to_published_form(plain)
    assert isinstance(plain[0], bench.UpcastAttention)
    torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-5)


def test_odd_batch_of_images_is_refused() -> None:
    with pytest.raises(SystemExit, match="even --batch"):
        bench.main([*SMALL, "--batch=3"])
