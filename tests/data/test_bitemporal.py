from pathlib import Path

import numpy as np
import pytest
import torch
from data_makers import picture, save, statistics

from codemae.data.bitemporal import (
    BitemporalTiles,
    JointAugmentation,
    draw_placement,
    jittered,
    shifted,
    speckled,
)
from codemae.data.index import Index, IndexFileError, open_index, write_index
from codemae.data.statistics import Scaling


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Tiles whose second date and mask are functions of the first: a joint geometry can be checked."""
    rows = []
    for seed in range(3):
        first = picture(seed, (48, 64))
        files = {"optical": f"pre/{seed}.png", "post": f"post/{seed}.png", "mask": f"mask/{seed}.png"}
        save(tmp_path / files["optical"], first)
        save(tmp_path / files["post"], first[..., 0])
        save(tmp_path / files["mask"], (first[..., 0] > 64).astype(np.uint8))
        rows.append({"source": "made", "split": "train", "group": f"g_{seed}", **files})
    write_index(tmp_path / "index", rows, statistics("made"), tmp_path)
    return open_index(tmp_path / "index")


def tiles(index: Index, **augmentation: object) -> BitemporalTiles:
    config = JointAugmentation(**({"crop": 32, "scale": []} | augmentation))  # type: ignore[arg-type]
    return BitemporalTiles(index, index.rows, mask_values=(0, 1), augmentation=config, seed=5)


def test_whole_tiles_are_standardised_by_their_own_statistics(index: Index) -> None:
    pre, post, mask = BitemporalTiles(index, index.rows, mask_values=(0, 1)).whole(1)
    pixels = picture(1, (48, 64)) / 255
    np.testing.assert_allclose(pre[0].numpy(), (pixels[..., 0] - 0.4) / 0.2, atol=1e-5)
    np.testing.assert_allclose(post[0].numpy(), (pixels[..., 0] - 0.3) / 0.1, atol=1e-5)
    assert mask.dtype == torch.int64 and mask.shape == (48, 64)


def test_both_dates_and_the_mask_share_crop_flips_and_turns(index: Index) -> None:
    data = tiles(index)
    seen = set()
    for epoch in range(12):
        pre, post, mask = data[(epoch, 0)]
        first, second = pre[0] * 0.2 + 0.4, post[0] * 0.1 + 0.3
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
        assert torch.equal(mask, (first * 255 > 64.5).long())
        seen.add(pre.numpy().tobytes())
    assert len(seen) == 12


def test_crops_are_cut_out_of_the_tile(index: Index) -> None:
    data = tiles(index, horizontal_flip=0, vertical_flip=0, rotate=False)
    whole = data.whole(0)[0]
    pre = data[(3, 0)][0]
    places = [
        (y, x) for y in range(17) for x in range(33) if torch.equal(whole[:, y : y + 32, x : x + 32], pre)
    ]
    assert len(places) == 1


def test_a_crop_larger_than_the_tile_is_padded_without_label(index: Index) -> None:
    data = tiles(index, crop=80, horizontal_flip=0, vertical_flip=0, rotate=False)
    pre, post, mask = data[(0, 0)]
    assert (mask[48:] == 255).all() and (mask[:, 64:] == 255).all() and (mask[:48, :64] != 255).all()
    assert (pre[:, 48:] == 0).all() and (post[:, :, 64:] == 0).all()
    shrunk = tiles(index, crop=64, scale=[0.5, 0.5], rotate=False, horizontal_flip=0, vertical_flip=0)
    mask = shrunk[(0, 0)][2]
    assert (mask[:24, :32] != 255).all() and (mask != 255).sum() == 24 * 32


def test_a_draw_depends_on_nothing_but_seed_epoch_and_row(index: Index) -> None:
    config = {"scale": [0.5, 2.0], "pre_jitter": 0.3, "post_jitter": 0.3, "post_looks": 4}
    first, again = tiles(index, **config), tiles(index, **config)
    again[(7, 0)], again[(1, 2)]
    for one, other in zip(first[(2, 1)], again[(2, 1)], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[(3, 1)][0], first[(2, 1)][0])


def test_radiometry_of_one_date_leaves_the_other_alone(index: Index) -> None:
    plain, changed = tiles(index), tiles(index, post_jitter=0.4, post_looks=2)
    assert torch.equal(plain[(1, 1)][0], changed[(1, 1)][0])
    assert torch.equal(plain[(1, 1)][2], changed[(1, 1)][2])
    assert not torch.equal(plain[(1, 1)][1], changed[(1, 1)][1])


def test_placements_stay_inside_and_keep_the_scale() -> None:
    config = JointAugmentation(crop=64, scale=[0.5, 2.0])
    for seed in range(200):
        at = draw_placement(config, 100, 90, np.random.default_rng(seed))
        assert 0 <= at.top <= 100 - at.height and 0 <= at.left <= 90 - at.width
        factors = at.tall / at.height, at.wide / at.width
        assert min(factors) > 0.48 and max(factors) < 2.05 and abs(factors[0] - factors[1]) < 0.05


@pytest.mark.parametrize("rule", ["uint8", "db:-25:0"])
def test_speckle_multiplies_the_intensity_by_gamma_noise_of_mean_one(rule: str) -> None:
    scaling = Scaling.parse(rule)
    values = np.full((1, 300, 300), 0.5, np.float32)
    noisy = speckled(values, scaling, 4, np.random.default_rng(0))
    gain = (noisy / values) ** 2 if rule == "uint8" else 10 ** ((noisy - values) * 25 / 10)
    inside = (noisy > 0) & (noisy < 1)
    assert inside.mean() > 0.99
    assert gain[inside].mean() == pytest.approx(1.0, abs=0.03)
    assert gain[inside].var() == pytest.approx(1 / 4, abs=0.03)


def test_jitter_of_nothing_changes_nothing_and_a_shift_moves() -> None:
    values = np.random.default_rng(0).random((2, 6, 7)).astype(np.float32)
    assert jittered(values, 0.0, np.random.default_rng(0)) is values
    moved = shifted(values, 2, -1)
    assert np.array_equal(moved[:, 2:, :-1], values[:, :-2, 1:])
    assert np.array_equal(moved[:, 0, :-1], values[:, 0, 1:])


def test_rows_without_a_second_date_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(0))
    rows = [{"source": "made", "split": "train", "group": "a", "optical": "a.png"}]
    write_index(tmp_path / "index", rows, statistics("made"), tmp_path)
    index = open_index(tmp_path / "index")
    with pytest.raises(IndexFileError, match="'post'.*prepare.py bright"):
        BitemporalTiles(index, index.rows)
