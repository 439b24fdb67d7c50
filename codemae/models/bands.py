"""How the bands a dataset has become the bands an encoder takes, by named rules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BandRule = Literal["repeat", "rgb_mean", "vv_vh_mean", "zero"]

_RGB = ("B4", "B3", "B2")
_SENTINEL2 = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
_ALIASES = {"R": "B4", "RED": "B4", "G": "B3", "GREEN": "B3", "B": "B2", "BLUE": "B2", "NIR": "B8"}
_USUAL = {
    ("optical", 3): _RGB,
    ("optical", 4): (*_RGB, "B8"),
    ("optical", 12): tuple(name for name in _SENTINEL2 if name != "B10"),
    ("optical", 13): _SENTINEL2,
    ("sar", 2): ("VV", "VH"),
    ("sar", 3): ("VV", "VH", "MEAN"),
}


def usual_bands(modality: str, channels: int) -> tuple[str, ...]:
    """Names of bands that come without: RGB, Sentinel-2 of 12 or 13, VV and VH; else their numbers."""
    return _USUAL.get((modality, channels)) or tuple(f"#{number + 1}" for number in range(channels))


def usual_rule(modality: str) -> BandRule:
    """What the published comparison fills missing bands with: the mean of RGB, or of VV and VH."""
    return "vv_vh_mean" if modality == "sar" else "rgb_mean"


@dataclass(frozen=True, kw_only=True)
class BandFilling:
    """Bands of a dataset made into those of an encoder.

    A band that both have is copied. For one the dataset lacks, ``repeat`` takes the dataset's bands in turn,
    ``rgb_mean`` the mean of red, green and blue, ``vv_vh_mean`` the mean of VV and VH (both: of all bands,
    where none has those names), ``zero`` nothing.

    Attributes:
        given: Names of the dataset's bands, in stored order.
        wanted: Names of the encoder's bands.
        rule: For missing bands.
    """

    given: tuple[str, ...]
    wanted: tuple[str, ...]
    rule: BandRule

    @property
    def missing(self) -> tuple[str, ...]:
        """The encoder's bands that the rule fills."""
        return tuple(name for name in _plain(self.wanted) if name not in _plain(self.given))

    @property
    def matrix(self) -> Tensor:
        """(wanted, given) weights of the sum that each of the encoder's bands is."""
        given, wanted = _plain(self.given), _plain(self.wanted)
        named = {"rgb_mean": _RGB, "vv_vh_mean": ("VV", "VH")}.get(self.rule, ())
        averaged = [i for i, name in enumerate(given) if name in named] or list(range(len(given)))
        matrix = torch.zeros(len(wanted), len(given))
        for row, name in enumerate(wanted):
            if name in given:
                matrix[row, given.index(name)] = 1
            elif self.rule == "repeat":
                matrix[row, row % len(given)] = 1
            elif named:
                matrix[row, averaged] = 1 / len(averaged)
        return matrix

    def __call__(self, image: Tensor) -> Tensor:
        """(given, H, W) -> (wanted, H, W)."""
        return torch.einsum("wg,ghx->whx", self.matrix, image)

    def __str__(self) -> str:
        """``rgb_mean for B1 B5``; without missing bands ``by name``."""
        return f"{self.rule} for {' '.join(self.missing)}" if self.missing else "by name"


def filling_for(
    modality: str,
    given: Sequence[str] | int,
    wanted: Sequence[str] | int,
    rule: BandRule | Literal["auto"] = "auto",
) -> BandFilling | None:
    """The filling between a dataset and an encoder, or None where the encoder takes the bands as they are.

    Args:
        modality: Of the images.
        given: Names of the dataset's bands, or their number.
        wanted: Names of the encoder's bands, or their number.
        rule: For missing bands; ``auto`` is ``usual_rule``. A single band under ``auto`` is left to the
            encoder, which repeats it.
    """
    had = usual_bands(modality, given) if isinstance(given, int) else tuple(given)
    asked = usual_bands(modality, wanted) if isinstance(wanted, int) else tuple(wanted)
    if len(had) == len(asked) and (
        isinstance(given, int) or isinstance(wanted, int) or _plain(had) == _plain(asked)
    ):
        return None
    if len(had) == 1 and rule == "auto":
        return None
    return BandFilling(given=had, wanted=asked, rule=usual_rule(modality) if rule == "auto" else rule)


def _plain(names: Sequence[str]) -> tuple[str, ...]:
    """Names by which bands are matched: B04 is B4, R is B4."""
    found = []
    for name in names:
        upper = name.upper()
        upper = f"B{upper[2:]}" if upper.startswith("B0") else upper
        found.append(_ALIASES.get(upper, upper))
    return tuple(found)
