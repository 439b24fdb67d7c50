import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_makers import make_index, picture, save, statistics
from torch import Tensor, nn

from codemae.data.batch import Batch
from codemae.data.dataset import Draw, PairDataset
from codemae.data.index import Index, open_index, write_index
from codemae.data.views import View, Views
from codemae.models.teacher import Teacher, TeacherConfig, TeacherError, build_teacher
from codemae.models.timm_features import ReadyModel
from codemae.models.vault import VaultTeacher, build_vault, crop_maps, vault_error


class CellMeans(nn.Module):
    """A network whose tokens are the mean colours of 16-px cells, so every crop's tokens are known."""

    feature_info = [{"reduction": 16}]

    def forward_features(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 16)


def cell_means(**config: Any) -> Teacher:
    model = ReadyModel(network=CellMeans(), mean=(0.0,) * 3, std=(1.0,) * 3, licence="made-up", size=64)
    return Teacher(model, TeacherConfig(name="cells", normalize_output=False, features="last", **config))


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return open_index(make_index(tmp_path / "data", paired=5, optical=2, sar=3, size=48))


def batch_of(index: Index, size: int = 64, **view: object) -> Batch:
    views = Views(
        {
            "optical": View(modality="optical", size=size, **view),
            "sar": View(modality="sar", size=size, **view),
        }
    )
    dataset = PairDataset(index, views, seed=0)
    draws = [Draw(0, 0, int(row), int(row), True) for row in index.paired_rows]
    return dataset.collate(dataset.__getitems__(draws))


def slow_crop(field: Callable[[float, float], float], crop: list[float], grid: tuple[int, int]) -> np.ndarray:
    """The field at the centre of each cell of a crop, mirrored as the crop is."""
    top, left, height, width, flips = crop
    values = np.empty(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            r = grid[0] - 1 - row if int(flips) & 2 else row
            c = grid[1] - 1 - column if int(flips) & 1 else column
            values[row, column] = field(
                top + (r + 0.5) * height / grid[0], left + (c + 0.5) * width / grid[1]
            )
    return values


@pytest.mark.parametrize("flips", [0, 1, 2, 3])
def test_crops_of_a_linear_field_are_exact(flips: int) -> None:
    """Bilinear sampling reproduces a linear field, so any error of place, scale or mirroring would show."""
    source, grid = (96, 64), (6, 8)

    def field(y: float, x: float) -> float:
        return 3 * y - 2 * x + 5

    cell_h, cell_w = source[0] / grid[0], source[1] / grid[1]
    whole = [[field((r + 0.5) * cell_h, (c + 0.5) * cell_w) for c in range(grid[1])] for r in range(grid[0])]
    crops = [[20.0, 12.0, 48.0, 40.0, flips], [9.0, 5.0, 71.0, 51.0, flips]]
    maps = torch.tensor(whole).expand(2, 1, *grid)
    cropped = crop_maps(maps, torch.tensor(crops), torch.tensor([source, source]), (4, 4))
    for number, crop in enumerate(crops):
        np.testing.assert_allclose(cropped[number, 0].numpy(), slow_crop(field, crop, (4, 4)), rtol=1e-5)


def test_whole_image_is_returned_as_it_is() -> None:
    maps = torch.randn(1, 3, 4, 4)
    crop = torch.tensor([[0.0, 0.0, 33.0, 57.0, 0.0]])
    same = crop_maps(maps, crop, torch.tensor([[33.0, 57.0]]), (4, 4))
    torch.testing.assert_close(same, maps)


def test_vault_gives_the_tokens_of_whole_images(index: Index, tmp_path: Path) -> None:
    teacher = cell_means()
    build_vault(index, teacher, tmp_path / "vault", size=64, batch_size=3)
    vault = VaultTeacher(tmp_path / "vault")
    batch = batch_of(index, scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=0.0)
    cached, live = vault.tokens(batch, "optical", (4, 4)), teacher.tokens(batch, "optical", (4, 4))
    assert cached.dtype == torch.float32
    torch.testing.assert_close(cached, live, rtol=1e-3, atol=1e-3)
    assert (vault.dim, vault.licence_notes) == (3, ["teacher cells: made-up"])
    assert not (tmp_path / "vault" / "progress.json").exists()


def test_error_is_that_of_the_tokens_worked_by_hand(index: Index, tmp_path: Path) -> None:
    teacher = cell_means()
    build_vault(index, teacher, tmp_path / "vault", size=64)
    vault = VaultTeacher(tmp_path / "vault")
    batch = batch_of(index, scale=(0.3, 0.6))
    error = vault_error(vault, teacher, [batch], "optical", (4, 4))
    cached, live = (t.tokens(batch, "optical", (4, 4)).numpy().reshape(-1, 3) for t in (vault, teacher))
    distances, cosines = [], []
    for a, b in zip(cached, live, strict=True):
        distances.append(np.sqrt(((a - b) ** 2).sum()) / np.sqrt((b**2).sum()))
        cosines.append((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
    assert error.tokens == len(cached)
    assert error.relative_l2 == pytest.approx(np.mean(distances), rel=1e-4)
    assert error.cosine == pytest.approx(np.mean(cosines), rel=1e-4)
    # Smooth pictures: cell means of a crop are close to those interpolated from the whole image.
    assert 0 < error.relative_l2 < 0.15


def test_normalisation_is_the_runs_choice(index: Index, tmp_path: Path) -> None:
    build_vault(index, cell_means(), tmp_path / "vault", size=64)
    config = TeacherConfig(
        name="cells", features="last", normalize_output=True, vault=str(tmp_path / "vault")
    )
    tokens = build_teacher(config).tokens(batch_of(index), "optical", (4, 4))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(5, 16), atol=1e-4, rtol=0)


class Stopped(Exception):
    """Stands for a kill at that moment."""


def test_interrupted_build_goes_on_and_ends_the_same(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_vault(index, cell_means(), tmp_path / "whole", size=64, batch_size=2, save_every=1)
    teacher = cell_means()
    raw, shown = teacher.raw, []

    def counting(images: Tensor, grid: tuple[int, int]) -> Tensor:
        if len(shown) == 2:
            raise Stopped
        shown.append(len(images))
        return raw(images, grid)

    monkeypatch.setattr(teacher, "raw", counting)
    with pytest.raises(Stopped):
        build_vault(index, teacher, tmp_path / "broken", size=64, batch_size=2, save_every=1)
    with pytest.raises(TeacherError, match=r"is not finished; run: python pretrain/build_vault\.py"):
        VaultTeacher(tmp_path / "broken")
    with (tmp_path / "broken" / "tokens.f16").open("ab") as file:
        file.write(b"half a batch")
    shown[:] = [0, 0, 0]
    build_vault(index, teacher, tmp_path / "broken", size=64, batch_size=2, save_every=1)
    assert sum(shown) == 3  # of 7 optical images the first 4 were not shown again
    for name in ("tokens.f16", "slots.npy", "vault.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_finished_vault_is_not_built_again(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_vault(index, cell_means(), tmp_path / "vault", size=64)
    before = (tmp_path / "vault" / "tokens.f16").stat().st_mtime_ns
    build_vault(index, cell_means(), tmp_path / "vault", size=64)
    assert (tmp_path / "vault" / "tokens.f16").stat().st_mtime_ns == before
    with pytest.raises(TeacherError, match="another teacher, size or index"):
        build_vault(index, cell_means(), tmp_path / "vault", size=32)


def test_another_teacher_or_index_is_refused(index: Index, tmp_path: Path) -> None:
    build_vault(index, cell_means(), tmp_path / "vault", size=64)
    with pytest.raises(TeacherError, match="built with name='cells', this run asks for name='resnet18'"):
        build_teacher(TeacherConfig(name="resnet18", vault=str(tmp_path / "vault")))
    vault = VaultTeacher(tmp_path / "vault")
    vault.check_index(index)
    other = open_index(make_index(tmp_path / "other", paired=4, size=48))
    with pytest.raises(TeacherError, match="another index or split"):
        vault.check_index(other)


@pytest.mark.parametrize(
    ("built", "asked", "said"),
    [
        ({"pretrained": False}, {}, "built with pretrained=False, this run asks for pretrained=True"),
        ({}, {"pretrained": False}, "built with pretrained=True, this run asks for pretrained=False"),
        ({}, {"input_size": 96}, "built with input_size=None, this run asks for input_size=96"),
        ({"input_size": 64}, {"input_size": 96}, "built with input_size=64, this run asks for input_size=96"),
    ],
)
def test_a_teacher_of_other_weights_or_input_is_refused(
    index: Index, tmp_path: Path, built: dict, asked: dict, said: str
) -> None:
    build_vault(index, cell_means(**built), tmp_path / "vault", size=64)
    with pytest.raises(TeacherError, match=said):
        VaultTeacher(tmp_path / "vault", TeacherConfig(name="cells", features="last", **asked))


def test_weights_are_compared_by_content_where_the_run_names_a_file(index: Index, tmp_path: Path) -> None:
    for name, content in (("a", b"weights"), ("moved", b"weights"), ("other", b"others")):
        (tmp_path / name).write_bytes(content)
    build_vault(index, cell_means(weights=str(tmp_path / "a")), tmp_path / "vault", size=64)

    def opened(weights: str | None) -> VaultTeacher:
        return VaultTeacher(tmp_path / "vault", TeacherConfig(name="cells", features="last", weights=weights))

    assert opened(None).dim == opened(str(tmp_path / "moved")).dim == opened(str(tmp_path / "gone")).dim == 3
    digests = [hashlib.sha256(content).hexdigest()[:16] for content in (b"weights", b"others")]
    with pytest.raises(TeacherError, match="built with weights='{}', .* for weights='{}'".format(*digests)):
        opened(str(tmp_path / "other"))


def test_rows_and_modalities_the_vault_lacks(index: Index, tmp_path: Path) -> None:
    build_vault(index, cell_means(), tmp_path / "vault", size=64)
    vault = VaultTeacher(tmp_path / "vault")
    with pytest.raises(TeacherError, match=r"no tokens of rows \[8\]"):
        vault.maps(torch.tensor([0, 8]))
    with pytest.raises(TeacherError, match="holds optical tokens, sar is sar"):
        vault.tokens(batch_of(index), "sar", (4, 4))


def test_unreadable_images_are_listed_and_left_out(tmp_path: Path) -> None:
    images = tmp_path / "images"
    rows = []
    for item in range(3):
        save(images / f"{item}.png", picture(item, 48))
        rows.append({"source": "made", "split": "train", "group": str(item), "optical": f"{item}.png"})
    write_index(tmp_path / "index", rows, statistics("made"), images)
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:40])
    build_vault(open_index(tmp_path / "index"), cell_means(), tmp_path / "vault", size=64, batch_size=2)
    assert "1.png" in (tmp_path / "vault" / "unreadable.txt").read_text()
    vault = VaultTeacher(tmp_path / "vault")
    expected = nn.functional.avg_pool2d(
        torch.from_numpy(picture(2, 48)).permute(2, 0, 1)[None].float() / 255, 48
    )
    torch.testing.assert_close(
        vault.maps(torch.tensor([2])).float().mean((2, 3)), expected[:, :, 0, 0], atol=5e-3, rtol=0
    )


def test_truncated_vault_is_refused(index: Index, tmp_path: Path) -> None:
    build_vault(index, cell_means(), tmp_path / "vault", size=64)
    tokens = tmp_path / "vault" / "tokens.f16"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(TeacherError, match=r"bytes instead of .*; build the vault again"):
        VaultTeacher(tmp_path / "vault")
    with pytest.raises(TeacherError, match="is no teacher vault"):
        VaultTeacher(tmp_path / "nowhere")


def test_two_strides_are_normalised_after_cropping(index: Index, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TeacherConfig(name="resnet18", pretrained=False, features="multi")
    teacher = build_teacher(config)
    assert isinstance(teacher, Teacher)
    build_vault(index, teacher, tmp_path / "vault", size=64)
    vault = VaultTeacher(tmp_path / "vault", config)
    batch = batch_of(index, scale=(1.0, 1.0), ratio=(1.0, 1.0), horizontal_flip=0.0)
    torch.testing.assert_close(
        vault.tokens(batch, "optical", (4, 4)), teacher.tokens(batch, "optical", (4, 4)), atol=2e-2, rtol=0
    )


def test_command_line(index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pretrain.build_vault import main

    main(
        [
            f"--data.index={index.folders[0]}",
            f"--out={tmp_path / 'vault'}",
            "--teacher.name=resnet18",
            "--teacher.pretrained=false",
            "--size=64",
            "--crop_size=32",
            "--num_workers=0",
            "--device=cpu",
        ]
    )
    described = json.loads((tmp_path / "vault" / "vault.json").read_text())
    assert (described["size"], described["grid"], described["splits"]) == (64, [2, 2], [512])
    said = capsys.readouterr().out
    assert described["key"] in said
    error = json.loads((tmp_path / "vault" / "error.json").read_text())
    assert error["tokens"] == 7 * 4  # 7 optical images, a 2 x 2 grid each
    assert f"cosine {error['cosine']:.3f}" in said
    VaultTeacher(tmp_path / "vault").check_index(index)
