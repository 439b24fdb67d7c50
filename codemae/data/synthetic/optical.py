"""The optical picture of a layout: colours, relief shading, cast shadows, haze, clouds and the camera."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from codemae.data.synthetic.factors import BUILDING, COVERS, FIELD, FOREST, MARGIN, MEADOW, PAVED, ROAD, WATER
from codemae.data.synthetic.layout import PARCELS, Layout
from codemae.data.synthetic.noise import Float, fractal_noise, smooth_noise, stream

# Colours in [0, 1] of the five crops, of meadow and of forest, for each of the four seasonal palettes.
_CROPS = np.array(
    [
        [[0.30, 0.45, 0.16], [0.52, 0.55, 0.24], [0.55, 0.43, 0.30], [0.24, 0.37, 0.15], [0.42, 0.34, 0.24]],
        [[0.72, 0.62, 0.36], [0.58, 0.54, 0.28], [0.64, 0.52, 0.38], [0.33, 0.42, 0.20], [0.78, 0.70, 0.48]],
        [[0.50, 0.40, 0.29], [0.40, 0.31, 0.22], [0.60, 0.50, 0.38], [0.44, 0.45, 0.24], [0.34, 0.27, 0.20]],
        [[0.44, 0.46, 0.38], [0.56, 0.54, 0.49], [0.38, 0.36, 0.31], [0.49, 0.52, 0.40], [0.30, 0.33, 0.25]],
    ],
    dtype=np.float32,
)
_MEADOW = np.array(
    [[0.37, 0.47, 0.23], [0.52, 0.51, 0.28], [0.44, 0.43, 0.25], [0.42, 0.43, 0.33]], dtype=np.float32
)
_FOREST = np.array(
    [[0.16, 0.27, 0.12], [0.20, 0.28, 0.14], [0.33, 0.25, 0.12], [0.23, 0.24, 0.18]], dtype=np.float32
)
_WATER = np.array([[0.12, 0.20, 0.24], [0.22, 0.30, 0.24], [0.35, 0.33, 0.25]], dtype=np.float32)

# Roof colours of each family of paint: tiles, slate, pale sheet, mixed.
_PAINTS = np.array(
    [
        [[0.62, 0.32, 0.22], [0.55, 0.28, 0.20], [0.68, 0.42, 0.30], [0.48, 0.27, 0.22]],
        [[0.33, 0.34, 0.37], [0.42, 0.42, 0.44], [0.27, 0.28, 0.31], [0.50, 0.49, 0.48]],
        [[0.80, 0.80, 0.78], [0.70, 0.72, 0.74], [0.88, 0.87, 0.84], [0.62, 0.64, 0.66]],
        [[0.36, 0.46, 0.60], [0.66, 0.36, 0.26], [0.74, 0.73, 0.70], [0.40, 0.52, 0.46]],
    ],
    dtype=np.float32,
)

# How strongly fine texture shows on each cover.
_TEXTURE = np.array([0.05, 0.09, 0.16, 0.02, 0.05, 0.04, 0.07], dtype=np.float32)


def cast_shadow(height: Float, azimuth: float, tangent: float) -> NDArray[np.bool_]:
    """Marks what the sun does not reach.

    Args:
        height: Heights in pixels.
        azimuth: Direction to the sun in radians, from the column axis towards increasing rows.
        tangent: Tangent of the sun's elevation.
    """
    reach = int(np.ceil(float(height.max()) / tangent))
    dy, dx = np.sin(azimuth), np.cos(azimuth)
    horizon = np.zeros_like(height)
    n, m = height.shape
    for step in range(1, min(reach, 2 * MARGIN) + 1):
        row, column = round(step * dy), round(step * dx)
        to = (slice(max(0, -row), n - max(0, row)), slice(max(0, -column), m - max(0, column)))
        come = (slice(max(0, row), n + min(0, row)), slice(max(0, column), m + min(0, column)))
        np.maximum(horizon[to], height[come] - np.float32(step * tangent), out=horizon[to])
    return horizon > height + np.float32(0.3)


def _albedo(layout: Layout, factors: dict[str, int | float], rng: np.random.Generator) -> Float:
    """Colour of the ground in even light (H, W, 3)."""
    palette, paint = int(factors["palette"]), int(factors["paint"])

    def jitter(count: int, spread: float) -> Float:
        return (1 + spread * rng.standard_normal((count, 3))).astype(np.float32)

    tint = jitter(PARCELS, 0.05) * (1 + 0.1 * rng.standard_normal((PARCELS, 1))).astype(np.float32)
    parcels = np.concatenate([_CROPS[palette][layout.crop] * tint, _MEADOW[palette] * tint])
    water = _WATER[int(rng.integers(len(_WATER)))] * jitter(1, 0.1)[0]
    asphalt = np.float32(rng.uniform(0.3, 0.62)) * np.array([1.0, 0.98, 0.95], dtype=np.float32)
    sealed = np.float32(rng.uniform(0.38, 0.7)) * np.array([1.0, 0.98, 0.94], dtype=np.float32)
    forest = _FOREST[palette] * jitter(1, 0.12)[0]
    roofs = _PAINTS[paint][rng.integers(4, size=layout.plots)] * jitter(layout.plots, 0.05)
    table = np.concatenate([parcels, np.stack([forest, water, asphalt, sealed]), roofs])

    start = 2 * PARCELS
    offset = np.zeros(len(COVERS), dtype=np.int32)
    offset[[MEADOW, FOREST, WATER, ROAD, PAVED, BUILDING]] = [
        PARCELS,
        start,
        start + 1,
        start + 2,
        start + 3,
        start + 4,
    ]
    index = offset[layout.cover]
    ground = layout.cover <= MEADOW
    index += np.where(ground, layout.parcel, 0)
    index += np.where(layout.cover == BUILDING, layout.plot, 0)
    colours: Float = table[index]
    return colours


def render_optical(
    seed: int, layout: Layout, factors: dict[str, int | float], nuisance: float
) -> NDArray[np.uint8]:
    """Photographs a layout: (H, W, 3), without the margin.

    Args:
        seed: Seed of the pair.
        layout: The ground at the optical date.
        factors: Palette, paint, sun and clouds, as `draw_factors` gives them.
        nuisance: Strength of illumination and atmosphere, 0 to 1.
    """
    rng = stream(seed, "optical")
    window = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    azimuth = np.deg2rad(float(factors["sun_azimuth"]))
    tangent = np.float32(rng.uniform(0.6, 1.6))
    lit = (~cast_shadow(layout.height, azimuth, float(tangent)))[window].astype(np.float32)
    slope_rows, slope_columns = np.gradient(layout.height)
    relief = np.float32(np.sin(azimuth)) * slope_rows + np.float32(np.cos(azimuth)) * slope_columns
    strength = np.where(layout.cover == FOREST, np.float32(0.3), np.float32(0.16)) / tangent
    shade = np.clip(1 - strength * relief, 0.55, 1.4)[window]

    cropped = layout.cover[window]
    shape = cropped.shape
    albedo = _albedo(layout, factors, rng)[window]
    grain = rng.standard_normal(shape, dtype=np.float32)
    texture = _TEXTURE[cropped] * (np.float32(0.6) * grain + np.float32(0.8) * smooth_noise(rng, shape, 2.5))
    patchy = np.float32(0.06) * smooth_noise(rng, shape, 14)
    wave = rng.uniform(3.0, 6.5, size=PARCELS)
    depth = rng.uniform(0, 0.09, size=PARCELS) * (rng.uniform(size=PARCELS) < 0.6)
    parcel = layout.parcel[window]
    stripes = np.sin(layout.furrow[window] * (2 * np.pi / wave).astype(np.float32)[parcel])
    stripes *= depth.astype(np.float32)[parcel] * (cropped == FIELD)
    surface = 1 + texture + patchy + stripes

    ambient = np.float32(rng.uniform(0.35, 0.6))
    light = shade * (ambient + (1 - ambient) * ndimage.gaussian_filter(lit, 0.5))
    image = albedo * (surface * light)[..., None]
    image = _atmosphere(image, float(factors["cloud_cover"]), nuisance, azimuth, stream(seed, "atmosphere"))
    image = ndimage.gaussian_filter(image, (rng.uniform(0.3, 0.7),) * 2 + (0,))
    image += np.float32(0.008) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _atmosphere(
    image: Float, cloud_cover: float, nuisance: float, azimuth: float, rng: np.random.Generator
) -> Float:
    """Adds cloud shadows, clouds and haze, then exposure, contrast and colour cast."""
    veil = fractal_noise(rng, image.shape[:2], 50, 4)
    exposure, contrast, haze = rng.uniform(-0.45, 0.35), rng.uniform(0.7, 1.2), rng.uniform(0, 0.22)
    cast = rng.normal(0, 0.06, size=3)
    if cloud_cover > 0.01:
        threshold = np.quantile(veil[::2, ::2], 1 - cloud_cover)
        opacity = np.clip((veil - np.float32(threshold)) * np.float32(2.2), 0, 0.97)
        reach = rng.uniform(6, 16)
        move = (round(-reach * np.sin(azimuth)), round(-reach * np.cos(azimuth)))
        dimmed = 1 - np.float32(0.5) * np.roll(opacity, move, axis=(0, 1))
        image = (image * dimmed[..., None]).astype(np.float32, copy=False)
        bright = (np.float32(0.88) + np.float32(0.04) * veil).clip(0, 1)
        image += opacity[..., None] * (bright[..., None] - image)
    haze *= nuisance
    air = np.array([0.62, 0.68, 0.74], dtype=np.float32)
    image = (image * np.float32(1 - haze) + np.float32(haze) * air).astype(np.float32, copy=False)
    gain = np.exp2(nuisance * (exposure + cast)).astype(np.float32)
    exponent = np.float32(contrast**nuisance)
    return np.power(np.clip(image * gain, 1e-4, 1), exponent)
