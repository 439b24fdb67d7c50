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
        self.image_size, self.modalities = 32, ("sar", "optical")
        self.s1_encoder, self.s2_encoder = nn.Conv2d(2, 4, 8), nn.Conv2d(12, 4, 8)

    def forward(self, x_sar: Tensor | None = None, x_optical: Tensor | None = None) -> dict[str, Tensor]:
        found = {}
        if len(self.modalities) == 2:
            assert x_sar is not None and x_optical is not None  # as the real one, which joins the two
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
        "dofa_base": lambda: Dofa(),
        "unet": lambda: nn.Identity(),
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
    assert torch.equal(croma.pooled(images, "sar"), croma.network.s1_encoder(images).mean((2, 3)))
    assert croma.network.modalities == ("sar", "optical")

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
    with pytest.raises(TeacherError, match="gives no feature of an image alone"):
        load_encoder("torchgeo:unet")
    with pytest.raises(TeacherError, match="32 x 32 only"):
        load_encoder("torchgeo:dofa_base", img_size=64)
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


@pytest.fixture(scope="module")
def real() -> Any:
    """The package itself, where it is installed: the stand-in above is only as good as what is tried here."""
    return pytest.importorskip("torchgeo.models")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("resnet50", 64, (3, 3)),
        ("vit_small_patch16_224", 224, (3, 3)),
        ("swin_v2_t", 64, (3, 3)),
        ("dofa_small_patch16_224", None, (3, 2)),
        ("croma_base", 16, (12, 2)),
    ],
)
def test_real_models_give_a_finite_feature_an_image(
    real: Any, name: str, size: int | None, channels: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    encoder: Any = load_encoder(f"torchgeo:{name}", img_size=size)
    assert encoder.channels == {"optical": channels[0], "sar": channels[1]}
    for modality, count in encoder.channels.items():
        images = torch.randn(2, count, encoder.img_size, encoder.img_size)
        with torch.no_grad():
            features = encoder.pooled(images, modality)
        assert features.shape == (2, encoder.embed_dim) and features.isfinite().all()
        assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize(
    ("name", "channels", "left_out"),
    [("resnet18", 2, ("fc.",)), ("swin_v2_t", 9, ("norm.", "head."))],
)
def test_real_models_take_a_published_file_without_head(
    real: Any, tmp_path: Path, name: str, channels: int, left_out: tuple[str, ...]
) -> None:
    """The file decides the channels; the features are those of the network it came from."""
    torch.manual_seed(0)
    network = real.get_model(name, in_chans=channels) if name == "resnet18" else real.get_model(name)
    if name != "resnet18":
        network.features[0][0] = nn.Conv2d(channels, network.features[0][0].out_channels, 4, 4)
        network.head = nn.Identity()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith(left_out)}
    torch.save(state, tmp_path / "weights.pth")
    encoder: Any = load_encoder(f"torchgeo:{name}:{tmp_path / 'weights.pth'}", img_size=64)
    assert encoder.channels["optical"] == channels
    images = torch.randn(2, channels, 64, 64)
    network.eval()
    with torch.no_grad():
        wanted = network.forward_features(images).mean((2, 3)) if name == "resnet18" else network(images)
        torch.testing.assert_close(encoder.pooled(images, "optical"), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_real_croma_takes_its_published_file_of_parts(real: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = real.get_model("croma_base", image_size=16).eval()
    parts = ("s1_encoder", "s1_GAP_FFN", "s2_encoder", "s2_GAP_FFN", "joint_encoder")
    torch.save({part: getattr(network, part).state_dict() for part in parts}, tmp_path / "croma.pt")
    encoder: Any = load_encoder(f"torchgeo:croma_base:{tmp_path / 'croma.pt'}", img_size=16)
    sar, optical = torch.randn(2, 2, 16, 16), torch.randn(2, 12, 16, 16)
    with torch.no_grad():
        together = network(x_sar=sar, x_optical=optical)
        torch.testing.assert_close(encoder.pooled(sar, "sar"), together["sar_GAP"])
        torch.testing.assert_close(encoder.pooled(optical, "optical"), together["optical_GAP"])


def test_weights_by_name_that_cannot_be_fetched_are_said_with_their_address(
    real: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(TeacherError, match=r"could not be fetched \(no network\).*https://"):
        load_encoder("torchgeo:resnet18:SENTINEL2_ALL_MOCO")
