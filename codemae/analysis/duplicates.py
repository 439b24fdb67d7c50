"""Finds images that occur twice: equal pixels, or equal small pictures after re-encoding."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft
from scipy.spatial import cKDTree

Plane: TypeAlias = npt.NDArray[np.float32]

THUMB_SIDE = 32
LIMIT = 24
"""Most of the 256 bits that two near duplicates differ in."""
LEAST_CORRELATION = 0.95
"""Least correlation of the thumbnails of two near duplicates."""
FAINT = 16.0
"""Deviation of brightness, of 255 levels, below which two images are also compared by their values."""
FAINT_RULES = ((0.55, 1.1, 0.3), (1.5, 2.7, 0.9))
"""Two of them are near duplicates where, by one of these rules, the root mean square difference of brightness
and the difference of the mean colours are at most so many levels, and the correlation is at least so much."""

_HASH_SIDE = 16
_WORDS = 16
_BLOCK = 1 << 20
# Neighbouring coefficients are related; a fixed shuffle gives every word bits of all frequencies.
_ORDER = np.random.default_rng(20).permutation(_HASH_SIDE * _HASH_SIDE)


def content_hash(pixels: np.ndarray) -> str:
    """Hash of decoded pixels, their type and their shape, whatever file they came from."""
    digest = hashlib.blake2b(f"{pixels.dtype}{pixels.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small picture of an image.

    Attributes:
        grey: (``THUMB_SIDE``, ``THUMB_SIDE``) mean of the channels, stretched to 0..255.
        low: Level, of 0..255, that 0 stands for.
        high: Level that 255 stands for.
        colour: Mean level of the first three channels; of the first one, where there are fewer.
    """

    grey: npt.NDArray[np.uint8]
    low: float
    high: float
    colour: tuple[float, float, float]


def thumbnail(values: Plane) -> Thumbnail:
    """Makes the small picture of (H, W) or (H, W, C) values in [0, 1]; NaN counts as the median."""
    values = values[..., None] if values.ndim == 2 else values
    means = [_mean(values[..., channel]) for channel in ((0, 1, 2) if values.shape[-1] >= 3 else (0, 0, 0))]
    plane = values.mean(axis=-1, dtype=np.float32)
    missing = ~np.isfinite(plane)
    if missing.any():
        plane = np.where(missing, np.float32(0 if missing.all() else np.median(plane[~missing])), plane)
    small = Image.fromarray(plane).resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    levels = np.asarray(small) * np.float32(255)
    low, high = float(levels.min()), float(levels.max())
    grey = np.round((levels - low) * (255 / max(high - low, 1e-4))).astype(np.uint8)
    return Thumbnail(grey, low, high, (means[0], means[1], means[2]))


def _mean(plane: Plane) -> float:
    """Mean level of what was measured."""
    seen = plane[np.isfinite(plane)]
    return 255 * float(seen.mean(dtype=np.float64)) if seen.size else 0.0


def perceptual_hashes(thumbs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Signs of the lowest 16 x 16 cosine coefficients of thumbnails: (n, 32, 32) to (n, 16) words.

    A coefficient's sign stays when brightness or contrast change; the constant one does not count.
    """
    spectra = fft.dctn(thumbs.astype(np.float32), axes=(1, 2), norm="ortho")
    signs = spectra[:, :_HASH_SIDE, :_HASH_SIDE].reshape(len(thumbs), -1) > 0
    signs[:, 0] = False
    return np.ascontiguousarray(np.packbits(signs[:, _ORDER], axis=1)).view(np.uint16)


@dataclass(frozen=True, slots=True)
class Match:
    """Two images that are the same.

    Attributes:
        first: Number of the one that comes first.
        second: Number of the other.
        kind: ``exact`` (equal pixels) or ``near``.
        bits: Bits in which the hashes differ.
        turn: Degrees by which the second is turned against the first.
    """

    first: int
    second: int
    kind: str
    bits: int = 0
    turn: int = 0


@dataclass
class Catalogue:
    """Images seen, to be compared with each other: about 1.5 kB each.

    Attributes:
        contents: Content hash of each image.
        thumbs: Thumbnail of each image.
    """

    contents: list[str] = field(default_factory=list)
    thumbs: list[Thumbnail] = field(default_factory=list)

    def add(self, content: str, thumb: Thumbnail) -> int:
        """Adds an image and returns its number."""
        self.contents.append(content)
        self.thumbs.append(thumb)
        return len(self.contents) - 1

    def matches(self, *, rotations: bool = False, limit: int = LIMIT) -> list[Match]:
        """All duplicates among the images; an exact one is not listed again as near.

        Of several images with equal pixels, each is matched with the first of them.

        Args:
            rotations: Whether images turned by 90, 180 or 270 degrees count.
            limit: Most bits of the hashes that differ.
        """
        if not self.contents:
            return []
        first: dict[str, int] = {}
        found = []
        for number, content in enumerate(self.contents):
            if first.setdefault(content, number) != number:
                found.append(Match(first[content], number, "exact"))
        distinct = np.array(sorted(first.values()))
        thumbs = np.stack([self.thumbs[number].grey for number in distinct])
        textured = thumbs.reshape(len(thumbs), -1).std(axis=1) > 0
        distinct, thumbs = distinct[textured], thumbs[textured]
        if not len(distinct):
            return found
        faint = _Faint([self.thumbs[number] for number in distinct])
        met: set[tuple[int, int]] = set()
        for turns in range(4 if rotations else 1):
            turned = np.rot90(thumbs, turns, axes=(1, 2))
            # Each pair is met from both ends, once with the opposite turn: that of the later one counts.
            candidates = [
                (a, b, bits)
                for a, b, bits in near_pairs(perceptual_hashes(turned), perceptual_hashes(thumbs), limit)
                if a > b and _correlation(turned[a], thumbs[b]) >= LEAST_CORRELATION
            ]
            for a, b, bits in [*candidates, *((a, b, limit) for a, b in faint.pairs(turns))]:
                if (a, b) in met:
                    continue
                met.add((a, b))
                turn = (360 - 90 * turns) % 360
                found.append(Match(int(distinct[b]), int(distinct[a]), "near", bits, turn))
        return sorted(found, key=lambda match: (match.first, match.second))


class _Faint:
    """Images with hardly any texture, whose hash does not survive re-encoding: compared by their values."""

    def __init__(self, thumbs: Sequence[Thumbnail]) -> None:
        levels = np.stack([_levels(thumb) for thumb in thumbs])
        self.numbers = np.flatnonzero(levels.reshape(len(levels), -1).std(axis=1) < FAINT)
        self.levels = levels[self.numbers]
        self.colours = np.array([thumbs[number].colour for number in self.numbers]).reshape(-1, 3)

    def pairs(self, turns: int) -> Iterator[tuple[int, int]]:
        """Pairs (later, earlier) that are near once the later one has been turned by quarters."""
        if len(self.numbers) < 2:
            return
        turned = np.rot90(self.levels, turns, axes=(1, 2))
        # Mean squares of 4 x 4 blocks never exceed those of the pixels, so the tree misses no pair.
        tree, asked = cKDTree(_coarse(self.levels)), _coarse(turned)
        widest = max(difference for difference, _, _ in FAINT_RULES)
        for a, place in enumerate(asked):
            others = np.array(tree.query_ball_point(place, widest), dtype=int)
            others = others[others < a]
            apart = np.sqrt(((turned[a] - self.levels[others]) ** 2).mean(axis=(1, 2)))
            colours = np.linalg.norm(self.colours[a] - self.colours[others], axis=1)
            for b, difference, colour in zip(others, apart, colours, strict=True):
                rules = [least for most, hue, least in FAINT_RULES if difference <= most and colour <= hue]
                if rules and _correlation(turned[a], self.levels[b]) >= min(rules):
                    yield int(self.numbers[a]), int(self.numbers[b])


def _levels(thumb: Thumbnail) -> Plane:
    """Brightness in levels of 0..255 on half the thumbnail's side."""
    half = THUMB_SIDE // 2
    grey = thumb.grey.reshape(half, 2, half, 2).mean(axis=(1, 3), dtype=np.float32)
    return (thumb.low + grey * np.float32((thumb.high - thumb.low) / 255)).astype(np.float32)


def _coarse(levels: Plane) -> Plane:
    """Means of 4 x 4 blocks as vectors whose distance is a root mean square difference."""
    blocks = levels.reshape(len(levels), 4, 4, 4, 4).mean(axis=(2, 4), dtype=np.float32)
    return blocks.reshape(len(levels), -1) / np.float32(4)


def near_pairs(
    queries: npt.NDArray[np.uint16], hashes: npt.NDArray[np.uint16], limit: int
) -> Iterator[tuple[int, int, int]]:
    """Pairs (query, hash, differing bits) of hashes that differ in at most ``limit`` bits.

    Only hashes that share one of their 16 words are compared. That finds every pair of up to 15 bits; of k
    bits spread evenly it misses about (1 - (1 - k / 256) ** 16) ** 16, which is 0.4% at 20 and 2.4% at 24.
    """
    met: set[tuple[int, int]] = set()
    for word in range(_WORDS):
        order = np.argsort(hashes[:, word], kind="stable")
        ordered = hashes[order, word]
        starts = np.searchsorted(ordered, queries[:, word], side="left")
        counts = np.searchsorted(ordered, queries[:, word], side="right") - starts
        for begin, end in _blocks(counts):
            repeats = counts[begin:end]
            a = np.repeat(np.arange(begin, end), repeats)
            within = np.arange(len(a)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
            b = order[np.repeat(starts[begin:end], repeats) + within]
            bits = _differing(queries[a], hashes[b])
            for place in np.flatnonzero(bits <= limit):
                pair = int(a[place]), int(b[place])
                if pair not in met:
                    met.add(pair)
                    yield (*pair, int(bits[place]))


def _blocks(counts: npt.NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Ranges of queries whose comparisons fit in memory together."""
    total = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        before = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, before + _BLOCK, side="right")))
        yield begin, end
        begin = end


_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], dtype=np.uint8)


def _differing(a: npt.NDArray[np.uint16], b: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    return _ONES[a ^ b].sum(axis=-1, dtype=np.int64)


def _correlation(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic]) -> float:
    """Correlation of two planes; 0 where one is constant."""
    first, second = (plane.astype(np.float64).ravel() - plane.mean() for plane in (a, b))
    length = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / length if length > 1e-9 else 0.0
