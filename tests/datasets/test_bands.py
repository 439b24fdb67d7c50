from pathlib import Path

import numpy as np
import prepare
import pytest
import rasterio
from fake.pretraining import FAKES

from codemae.data.images import as_read, read_picture
from codemae.data.index import open_index


def run(root: Path, out: Path, *more: str) -> int:
    words = ["sen12ms", "--root", str(root), "--out", str(out), "--workers", "1"]
    return prepare.main([*words, *more])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("words", "optical_bands", "sar_bands"),
    [
        ((), (3, 2, 1), (0, 1)),
        (("--bands", "optical=B12,B1", "sar=VH"), (12, 0), (1,)),
        (("--bands", "optical=all"), tuple(range(13)), (0, 1)),
    ],
)
def test_chosen_bands_are_measured_and_read(
    tmp_path: Path, words: tuple[str, ...], optical_bands: tuple[int, ...], sar_bands: tuple[int, ...]
) -> None:
    FAKES["sen12ms"](tmp_path / "data")
    assert run(tmp_path / "data", tmp_path / "out", *words) == 0
    index = open_index(tmp_path / "out")
    for modality, chosen in (("optical", optical_bands), ("sar", sar_bands)):
        found = index.stats("SEN12MS", modality)
        assert found.channels == len(chosen) == len(found.bands)
        scaled = []
        for row in range(len(index)):
            location = index.location(row, modality)
            with rasterio.open(location.path) as file:
                wanted = np.stack([file.read(number + 1) for number in chosen], axis=-1)
            read = np.asarray(as_read(read_picture(location), found))
            np.testing.assert_array_equal(read.reshape(wanted.shape), wanted)
            low, high = (0, 10000) if modality == "optical" else (-25, 0)
            scaled.append(np.clip((wanted.astype(np.float64) - low) / (high - low), 0, 1))
        pixels = np.concatenate([image.reshape(-1, len(chosen)) for image in scaled])
        np.testing.assert_allclose(found.mean, pixels.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(found.std, pixels.std(axis=0), atol=1e-5)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optical=B99", "no optical band B99; stored: B1, B2"),
        ("radar=VV", "--bands radar=VV: write optical or sar"),
    ],
)
def test_unknown_bands_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    FAKES["sen12ms"](tmp_path / "data")
    assert run(tmp_path / "data", tmp_path / "out", "--bands", word) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
