"""Finds images that occur twice: by their pixels, and by a perceptual hash that survives re-encoding."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft

THUMB_SIDE = 32
LIMIT = 24
"""Most of the 256 bits that two near duplicates differ in."""
LEAST_CORRELATION = 0.95
"""Least correlation of the thumbnails of two near duplicates."""

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


def thumbnail(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A plane averaged to ``THUMB_SIDE`` square and stretched to 0..255; NaN counts as the median."""
    missing = ~np.isfinite(plane)
    if missing.any():
        plane = np.where(missing, np.float32(0 if missing.all() else np.median(plane[~missing])), plane)
    small = Image.fromarray(plane.astype(np.float32)).resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    values = np.asarray(small)
    low, high = float(values.min()), float(values.max())
    return np.round((values - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


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
    """Images seen, to be compared with each other: about 1.1 kB each.

    Attributes:
        contents: Content hash of each image.
        thumbs: Thumbnail of each image.
    """

    contents: list[str] = field(default_factory=list)
    thumbs: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    def add(self, content: str, thumb: npt.NDArray[np.uint8]) -> int:
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
        thumbs = np.stack([self.thumbs[number] for number in distinct])
        textured = thumbs.reshape(len(thumbs), -1).std(axis=1) > 0
        distinct, thumbs = distinct[textured], thumbs[textured]
        if not len(distinct):
            return found
        met: set[tuple[int, int]] = set()
        for turns in range(4 if rotations else 1):
            turned = np.rot90(thumbs, turns, axes=(1, 2))
            for a, b, bits in near_pairs(perceptual_hashes(turned), perceptual_hashes(thumbs), limit):
                # `a` is the turned one; each pair is met from both ends, once with the opposite turn.
                if a <= b or (a, b) in met or _correlation(turned[a], thumbs[b]) < LEAST_CORRELATION:
                    continue
                met.add((a, b))
                turn = (360 - 90 * turns) % 360
                found.append(Match(int(distinct[b]), int(distinct[a]), "near", bits, turn))
        return sorted(found, key=lambda match: (match.first, match.second))


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


def _correlation(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    return float(np.corrcoef(a.ravel().astype(np.float64), b.ravel().astype(np.float64))[0, 1])


def groups(matches: Sequence[Match]) -> list[list[int]]:
    """Images that are duplicates of each other, directly or through a third one."""
    parent: dict[int, int] = {}

    def top(number: int) -> int:
        while parent.setdefault(number, number) != number:
            number = parent[number]
        return number

    for match in matches:
        a, b = top(match.first), top(match.second)
        parent[max(a, b)] = min(a, b)
    found: dict[int, list[int]] = {}
    for number in sorted(parent):
        found.setdefault(top(number), []).append(number)
    return list(found.values())
