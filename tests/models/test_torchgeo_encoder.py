import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from codemae.models.factory import load_encoder
from codemae.models.timm_features import TeacherError

BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")


class Croma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image_size = 32
        self.s1_encoder, self.s2_encoder = nn.Conv2d(2, 4, 8), nn.Conv2d(12, 4, 8)

    def forward(self, x_sar: Tensor | None = None, x_optical: Tensor | None = None) -> dict[str, Tensor]:
        found = {}
        if x_sar is not None:
            found["sar_GAP"] = self.s1_encoder(x_sar).mean((2, 3))
        if x_optical is not None:
            found["optical_GAP"] = self.s2_encoder(x_optical).mean((2, 3))
        return found


class Dofa(nn.Module):
    img_size = 32

    def forward(self, x: Tensor, wavelengths: list[float]) -> Tensor:
        return self.forward_features(x, wavelengths)

    def forward_features(self, x: Tensor, wavelengths: list[float]) -> Tensor:
        return x.mean((2, 3)) @ torch.tensor(wavelengths)[:, None]


@pytest.fixture
def torchgeo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the calls of torchgeo.models that are used."""

    def resnet(weights: Any = None, in_chans: int = 3) -> nn.Module:
        channels = in_chans if weights is None else weights.meta["in_chans"]
        return timm.create_model("resnet10t", in_chans=channels, num_classes=0)

    makers = {
        "resnet10t": resnet,
        "croma_base": lambda weights=None: Croma(),
        "dofa_base": lambda weights: Dofa(),
    }
    fake: Any = ModuleType("torchgeo.models")
    fake.list_models = lambda: list(makers)
    fake.get_model = lambda name, **options: makers[name](**options)
    entry = SimpleNamespace(meta={"in_chans": 13, "bands": BANDS})
    fake.get_model_weights = lambda name: {"SENTINEL2_ALL_MOCO": entry}
    monkeypatch.setitem(sys.modules, "torchgeo", ModuleType("torchgeo"))
    monkeypatch.setitem(sys.modules, "torchgeo.models", fake)


def test_each_kind_of_torchgeo_model_gives_features(torchgeo: None) -> None:
    moco: Any = load_encoder("torchgeo:resnet10t:ResNet10_Weights.SENTINEL2_ALL_MOCO", img_size=32)
    assert moco.modalities == ("optical",) and moco.bands["optical"] == BANDS
    assert moco.pooled(torch.randn(2, 13, 32, 32), "optical").shape == (2, moco.embed_dim)

    croma: Any = load_encoder("torchgeo:croma_base")
    assert croma.channels == {"optical": 12, "sar": 2} and croma.img_size == 32
    images = torch.randn(2, 2, 32, 32)
    assert torch.equal(croma.pooled(images, "sar"), croma.network(x_sar=images)["sar_GAP"])

    dofa: Any = load_encoder("torchgeo:dofa_base")
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 1
    assert float(dofa.pooled(red, "optical")) == pytest.approx(0.665)


def test_unknown_names_and_a_missing_package_are_said(
    torchgeo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TeacherError, match="no model 'resnet11'"):
        load_encoder("torchgeo:resnet11")
    with pytest.raises(TeacherError, match="no weights 'NONE'"):
        load_encoder("torchgeo:resnet10t:NONE")
    monkeypatch.setitem(sys.modules, "torchgeo.models", None)
    with pytest.raises(ImportError, match=r"\[torchgeo\]"):
        load_encoder("torchgeo:resnet10t")


def test_a_timm_file_of_thirteen_bands_builds_a_model_of_as_many(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", in_chans=13, num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder: Any = load_encoder(f"timm:resnet10t:{tmp_path / 'weights.safetensors'}", img_size=32)
    assert encoder.channels == {"optical": 13, "sar": 13} and not encoder.inputs
    images = torch.randn(2, 13, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(images).mean((2, 3))
        torch.testing.assert_close(encoder.pooled(images, "optical"), expected, rtol=1e-4, atol=1e-5)
