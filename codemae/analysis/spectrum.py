"""How many directions a set of features really uses: singular values and effective rank."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import Tensor

from codemae.engine.sentinel import effective_rank

NEGLIGIBLE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Singular values of one set of centred features.

    Attributes:
        values: (min(B - 1, D),) singular values, largest first; centring makes a B-th one 0.
        samples: B, how many features were looked at.
        width: D, their width.
        effective_rank: How many equally strong directions would have this spectrum's entropy.
    """

    values: Tensor
    samples: int
    width: int
    effective_rank: float

    @property
    def relative(self) -> Tensor:
        """The values divided by the largest; zeros where the features are all the same."""
        return self.values / self.values[0].clamp_min(NEGLIGIBLE)


def singular_spectrum(features: Tensor) -> Spectrum:
    """Singular values of features after their mean is taken away.

    Args:
        features: (B, D), at least two rows.

    Raises:
        ValueError: The features are not a matrix of two rows or more, or hold NaN or infinity.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a spectrum needs features (B, D) with B >= 2, got shape {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or infinity, so they have no spectrum")
    centred = features.double() - features.double().mean(dim=0)
    return Spectrum(
        values=torch.linalg.svdvals(centred)[: len(features) - 1],
        samples=features.shape[0],
        width=features.shape[1],
        effective_rank=effective_rank(features),
    )


def draw_spectra(
    axes: Axes,
    spectra: Mapping[str, Spectrum],
    colours: Mapping[str, str] | None = None,
    dashed: tuple[str, ...] = (),
) -> None:
    """Draws each spectrum as a line, relative to its largest value, with the effective rank in the legend.

    Args:
        axes: Where to draw.
        spectra: Label to spectrum.
        colours: Label to matplotlib colour, where it matters.
        dashed: Labels drawn as dashed lines (references).
    """
    for label, spectrum in spectra.items():
        relative = spectrum.relative.clamp_min(1e-6)
        axes.plot(
            range(1, len(relative) + 1),
            relative,
            label=f"{label}: effective rank {spectrum.effective_rank:.1f}",
            color=(colours or {}).get(label),
            linestyle="--" if label in dashed else "-",
            linewidth=1.8,
        )
    axes.set_yscale("log")
    axes.set_xlabel("index of the singular value")
    axes.set_ylabel("singular value / largest")
    axes.legend()
