"""One synthetic pair: the same ground seen by a camera and by a radar, with all its factors known."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codemae.data.synthetic.factors import MARGIN, SynthesisOptions, draw_factors
from codemae.data.synthetic.layout import build_layouts
from codemae.data.synthetic.noise import Float, stream
from codemae.data.synthetic.optical import render_optical
from codemae.data.synthetic.sar import render_sar


@dataclass(frozen=True, kw_only=True)
class SyntheticPair:
    """A pair and everything that is known about it. Maps lie in the optical frame, at the optical date.

    Attributes:
        optical: Picture (H, W, 3).
        sar: Picture (H, W).
        intensity: Speckled radar power behind `sar`, before calibration and contrast (H, W).
        cover: Land cover, indices into `COVERS` (H, W).
        later_cover: The same at the SAR date (H, W).
        height: Height above ground in pixels (H, W).
        change: Pixels whose cover or crop differs at the SAR date (H, W).
        boxes: Left, top, right, bottom of the buildings (N, 4).
        factors: Name to value; `FACTOR_SIDES` says which side shows it.
        shift: Rows and columns by which `sar` is displaced against `optical`.
    """

    optical: NDArray[np.uint8]
    sar: NDArray[np.uint8]
    intensity: Float
    cover: NDArray[np.uint8]
    later_cover: NDArray[np.uint8]
    height: Float
    change: NDArray[np.bool_]
    boxes: Float
    factors: dict[str, int | float]
    shift: tuple[float, float]

    @property
    def label(self) -> int:
        """Scene class, an index into `SCENES`: decided by the layout, so visible from both sides."""
        return int(self.factors["scene"])


def synthesise(seed: int, size: int = 128, options: SynthesisOptions | None = None) -> SyntheticPair:
    """Makes the pair of a seed.

    Args:
        seed: Any integer; the same one gives the same pair.
        size: Side of the pictures in pixels.
        options: What is pinned and how hard the pair is; the defaults if None.

    Raises:
        ValueError: The size is too small to hold a scene.
    """
    if size < 16:
        raise ValueError(f"a synthetic scene needs at least 16 pixels a side, got size={size}")
    options = options or SynthesisOptions()
    factors = draw_factors(seed, options)
    before, after = build_layouts(seed, size, factors, options.change_fraction)
    jitter = options.misregistration_jitter * stream(seed, "registration").standard_normal(2)
    limit = MARGIN - 1
    shift = (
        float(np.clip(options.misregistration[0] + jitter[0], -limit, limit)),
        float(np.clip(options.misregistration[1] + jitter[1], -limit, limit)),
    )
    optical = render_optical(seed, before, factors, options.nuisance)
    sar, intensity = render_sar(seed, after, factors, shift, options.nuisance)
    window = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    crop_changed = (before.crop != after.crop)[before.parcel[window]] & (before.cover[window] == 0)
    return SyntheticPair(
        optical=optical,
        sar=sar,
        intensity=intensity,
        cover=before.cover[window].copy(),
        later_cover=after.cover[window].copy(),
        height=before.height[window].copy(),
        change=(before.cover != after.cover)[window] | crop_changed,
        boxes=before.boxes,
        factors=factors,
        shift=shift,
    )
