import io

import numpy as np
import pytest
from data_makers import SHARED_DATA
from PIL import Image

from codemae.analysis.duplicates import Catalogue, content_hash, near_pairs, thumbnail
from codemae.data.synthetic import synthesise


def add(catalogue, pixels):
    return catalogue.add(content_hash(pixels), thumbnail(pixels.astype(np.float32) / 255))


def reencoded(pixels, quality=75):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def brighter(pixels):
    return np.clip(pixels.astype(int) * 6 // 5 + 8, 0, 255).astype(np.uint8)


def test_planted_duplicates_are_found_and_nothing_else():
    images = [synthesise(seed, 96).optical for seed in range(12)]
    catalogue = Catalogue()
    for image in images:
        add(catalogue, image)
    planted = {}
    for place, change in enumerate((np.copy, reencoded, brighter)):
        for original in range(4 * place, 4 * place + 4):
            number = add(catalogue, change(images[original]))
            planted[original, number] = "exact" if change is np.copy else "near"
    assert {(match.first, match.second): match.kind for match in catalogue.matches()} == planted


def test_turned_images_are_found_when_asked_for():
    images = [synthesise(seed, 64).optical for seed in range(4)]
    catalogue = Catalogue()
    for image in images:
        add(catalogue, image)
    for turns in (1, 2, 3):
        add(catalogue, np.rot90(images[turns], turns).copy())
    assert catalogue.matches() == []
    found = [(match.first, match.second, match.turn) for match in catalogue.matches(rotations=True)]
    assert found == [(1, 4, 90), (2, 5, 180), (3, 6, 270)]


def test_near_pairs_equal_a_comparison_of_all_with_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 16, (300, 16), dtype=np.uint16)
    for place in range(40):
        bits = np.unpackbits(hashes[place].view(np.uint8))
        bits[rng.choice(256, size=place % 16, replace=False)] ^= 1
        hashes[200 + place] = np.packbits(bits).view(np.uint16)
    everything = np.unpackbits(hashes.view(np.uint8), axis=1).astype(int)
    distance = (everything[:, None] != everything[None]).sum(axis=-1)
    expected = {(a, b, distance[a, b]) for a, b in zip(*np.nonzero(distance <= 15), strict=True)}
    assert len(expected) == 300 + 2 * 40
    assert set(near_pairs(hashes, hashes, 15)) == expected


def test_a_hundred_thousand_hashes_are_searched_without_comparing_all_pairs():
    hashes = np.random.default_rng(1).integers(0, 1 << 16, (100_000, 16), dtype=np.uint16)
    hashes[-1] = hashes[0]
    pairs = {(a, b) for a, b, _ in near_pairs(hashes[-50:], hashes, 24)}
    assert (49, 0) in pairs
    assert len(pairs) == 51


def test_content_hash_tells_shape_and_type_apart():
    pixels = np.arange(12, dtype=np.uint8)
    hashes = {content_hash(p) for p in (pixels, pixels.reshape(3, 4), pixels.astype(np.uint16), pixels[::-1])}
    assert len(hashes) == 4
    assert content_hash(pixels.reshape(3, 4)) == content_hash(np.asfortranarray(pixels.reshape(3, 4)))


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")
def test_real_images_are_told_apart_and_planted_ones_found():
    catalogue = Catalogue()
    files = sorted((SHARED_DATA / "ombria" / "opt").glob("*_before.png"))[::6]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    for image in images:
        add(catalogue, image)
    assert catalogue.matches() == []
    for image in images:
        add(catalogue, reencoded(image, 90))
        add(catalogue, brighter(image))
    found = {(match.first, match.second) for match in catalogue.matches()}
    n = len(images)
    assert found >= {(i, n + 2 * i + k) for i in range(n) for k in (0, 1)}


def faint(seed, size=64):
    """Open water: one colour, a faint swell and hardly any noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    swell = rng.normal(0, 1.5) * rows + rng.normal(0, 1.5) * columns + rng.normal(0, 1) * np.sin(6 * rows)
    colour = np.array([40, 70, 95]) + rng.integers(-12, 13, 3)
    noise = rng.normal(0, 0.7, (size, size))
    return np.clip(np.round(colour + (swell + noise)[..., None]), 0, 255).astype(np.uint8)


def test_images_without_texture_are_compared_by_their_values():
    images = [faint(seed) for seed in range(40)]
    catalogue = Catalogue()
    for image in images:
        add(catalogue, image)
    assert catalogue.matches() == []
    copies = {(place, add(catalogue, reencoded(image, 90))) for place, image in enumerate(images)}
    assert {(match.first, match.second) for match in catalogue.matches()} == copies


def test_turned_image_without_texture_is_found():
    catalogue = Catalogue()
    add(catalogue, faint(0))
    add(catalogue, faint(1))
    add(catalogue, reencoded(np.rot90(faint(1)).copy(), 90))
    assert catalogue.matches() == []
    assert [(m.first, m.second, m.turn) for m in catalogue.matches(rotations=True)] == [(1, 2, 90)]


def test_thumbnail_keeps_levels_and_colour():
    values = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32) * 0.1 + 0.3
    values[:2, :2] = np.nan
    thumb = thumbnail(values)
    blocks = values.mean(axis=2).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    levels = thumb.low + thumb.grey * (thumb.high - thumb.low) / 255
    np.testing.assert_allclose(levels.ravel()[1:], 255 * blocks.ravel()[1:], atol=0.1)
    assert thumb.colour == pytest.approx(np.nanmean(values, axis=(0, 1)) * 255, rel=1e-5)
    assert thumbnail(values[4:, 4:, 0]).colour == pytest.approx(
        [values[4:, 4:, 0].mean() * 255] * 3, rel=1e-5
    )


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="the shared images are not here")
def test_every_reencoded_eurosat_image_is_found():
    files = sorted((SHARED_DATA / "eurosat_rgb").glob("*/*.jpg"))[::6]
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    catalogue = Catalogue()
    for image in images:
        add(catalogue, image)
    assert catalogue.matches() == []
    copies = {(place, add(catalogue, reencoded(image, 90))) for place, image in enumerate(images)}
    assert {(match.first, match.second) for match in catalogue.matches()} >= copies
