"""The SAR picture of a layout: backscatter, layover, double bounce, shadow, point scatterers and speckle.

The sensor flies beyond the left edge (or the right one) and looks across the picture at a given incidence
angle. Power is projected to ground range: what stands `h` pixels above ground appears `h / tan(incidence)`
pixels nearer to the sensor (layover) and hides `h * tan(incidence)` pixels of ground behind it (shadow).
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from codemae.data.synthetic.factors import BUILDING, COVERS, FIELD, FOREST, MARGIN, MEADOW, PAVED, ROAD, WATER
from codemae.data.synthetic.layout import CROPS, PARCELS, Layout
from codemae.data.synthetic.noise import Float, smooth_noise, stream

# Backscatter in dB of each cover on average, and what full roughness adds to it.
_BACKSCATTER = {
    FIELD: -13.0,
    MEADOW: -11.5,
    FOREST: -7.5,
    WATER: -23.0,
    ROAD: -18.5,
    BUILDING: -9.0,
    PAVED: -15.5,
}
_ROUGHENS = {FIELD: 4.0, MEADOW: 1.5, FOREST: 0.0, WATER: 5.0, ROAD: 1.5, BUILDING: 1.0, PAVED: 3.0}
_NOISE_FLOOR = np.float32(10**-2.8)

# Power of a point along range or azimuth, one to four pixels off: a weighted sinc's side lobes.
_RESPONSE = np.array([0.004, 0.008, 0.012, 0.16, 1.0, 0.16, 0.012, 0.008, 0.004], dtype=np.float32)


def _power(decibel: NDArray[np.floating]) -> Float:
    return np.power(10.0, decibel / 10).astype(np.float32)


def radar_shadow(height: Float, incidence: float) -> NDArray[np.bool_]:
    """Marks ground that something nearer to the sensor, which is on the left, hides.

    Args:
        height: Heights in pixels (H, W).
        incidence: Angle between the ray and the vertical, in radians.
    """
    # A ray that grazes (x0, h0) is at h0 - (x - x0) / tan above x: h + x / tan decides who hides whom.
    grazing = height + np.arange(height.shape[1], dtype=np.float32) / np.float32(np.tan(incidence))
    nearer = np.maximum.accumulate(grazing, axis=1)
    hidden = np.zeros(height.shape, dtype=bool)
    hidden[:, 1:] = nearer[:, :-1] > grazing[:, 1:] + np.float32(0.25)
    return hidden


def project(
    ground: Float, height: Float, walls: NDArray[np.bool_], bounce: Float, incidence: float, facade: float
) -> tuple[Float, Float]:
    """Projects backscatter to ground range for a sensor on the left.

    Args:
        ground: Backscattered power of every surface pixel (H, W).
        height: Its height in pixels.
        walls: Where there are buildings; a step up into one is a wall facing the sensor.
        bounce: Power of the double bounce at a wall there, for a pixel of wall height.
        incidence: Incidence angle in radians.
        facade: Power of a wall for a pixel of its height.

    Returns:
        Diffuse power, and the double bounce apart from it since its points are sharp.
    """
    rows, columns = height.shape
    cotangent = np.float32(1 / np.tan(incidence))
    seen = np.where(radar_shadow(height, incidence), np.float32(0), ground)
    start = (np.arange(rows, dtype=np.int32) * columns)[:, None]
    position = np.clip(np.arange(columns, dtype=np.float32) - height * cotangent, 0, columns - 1)
    left = position.astype(np.int32)
    right_share = position - left
    cells = (start + left).ravel()
    total = rows * columns
    diffuse = np.bincount(cells, (seen * (1 - right_share)).ravel(), minlength=total)
    diffuse += np.bincount(np.minimum(cells + 1, total - 1), (seen * right_share).ravel(), minlength=total)

    step = np.maximum(height[:, 1:] - height[:, :-1], 0) * (
        walls[:, 1:] & (height[:, 1:] > height[:, :-1] + 1)
    )
    row, column = np.nonzero(step)
    rise = step[row, column]
    foot = np.zeros((rows, columns), dtype=np.float32)
    foot[row, column] = bounce[row, column + 1] * rise

    # The wall lies over the ground in front of it: its power is spread from the foot towards the sensor.
    length = np.maximum(rise * cotangent, 1)
    near = np.clip(np.rint(column - length), 0, columns - 1).astype(np.int64)
    ends = np.zeros((rows, columns + 1), dtype=np.float64)
    np.add.at(ends, (row, near), facade * rise / length)
    np.add.at(ends, (row, column + 1), -facade * rise / length)
    diffuse_map = diffuse.reshape(rows, columns) + np.cumsum(ends, axis=1)[:, :-1].clip(0)
    return diffuse_map.astype(np.float32), foot


def _surface(layout: Layout, factors: dict[str, int | float], rng: np.random.Generator) -> Float:
    """Backscattered power of every pixel before geometry."""
    roughness = float(factors["roughness"])
    decibel = np.array(
        [_BACKSCATTER[c] + roughness * _ROUGHENS[c] for c in range(len(COVERS))], dtype=np.float32
    )
    crop_level = rng.normal(0, 2.4, size=CROPS)
    parcel_level = crop_level[layout.crop] + rng.normal(0, 0.9, size=PARCELS)
    roof_level = rng.normal(0, 2.5, size=layout.plots)
    wave = rng.uniform(3.5, 7.0, size=PARCELS).astype(np.float32)
    depth = (rng.uniform(0, 1.0, size=PARCELS) * roughness).astype(np.float32)

    sigma = decibel[layout.cover]
    farmed = layout.cover == FIELD
    rows = np.sin(layout.furrow * (np.float32(2 * np.pi) / wave)[layout.parcel]) * depth[layout.parcel]
    sigma += np.where(farmed, parcel_level.astype(np.float32)[layout.parcel] + rows, np.float32(0))
    sigma += np.where(
        layout.cover == MEADOW, np.float32(0.4) * parcel_level.astype(np.float32)[layout.parcel], 0
    )
    sigma += np.where(layout.cover == BUILDING, roof_level.astype(np.float32)[layout.plot], np.float32(0))
    sigma += np.float32(0.7) * smooth_noise(rng, sigma.shape, 12) * (layout.cover != WATER)
    return _power(sigma)


def _walls_facing(height: Float, buildings: NDArray[np.bool_]) -> Float:
    """How squarely walls face the sensor on the left, 0 to 1, from the slope of the smoothed heights."""
    smooth = ndimage.gaussian_filter(np.where(buildings, height, np.float32(0)), 1.2)
    down, across = np.gradient(smooth)
    facing: Float = np.clip(across / (np.hypot(down, across) + np.float32(1e-6)), 0, 1)
    return facing


def _points(layout: Layout, density: float, rng: np.random.Generator) -> Float:
    """Bright points: vehicles, poles and roof fittings, most of them where people are."""
    share = np.array([0.0012, 0.0008, 0.0010, 0.0002, 0.003, 0.010, 0.004], dtype=np.float32)
    found = rng.random(layout.cover.shape, dtype=np.float32) < np.float32(2 * density) * share[layout.cover]
    points = np.zeros(layout.cover.shape, dtype=np.float32)
    points[found] = _power(rng.normal(4.0, 4.0, size=int(found.sum())))
    return points


def render_sar(
    seed: int, layout: Layout, factors: dict[str, int | float], shift: tuple[float, float], nuisance: float
) -> tuple[NDArray[np.uint8], Float]:
    """Images a layout by radar.

    Args:
        seed: Seed of the pair.
        layout: The ground at the SAR date.
        factors: Roughness, scatterers, incidence, look direction, looks and calibration.
        shift: Rows and columns by which the picture is displaced against the ground.
        nuisance: Strength of the contrast variation, 0 to 1.

    Returns:
        The picture (H, W), and the speckled power it shows.
    """
    rng = stream(seed, "sar")
    incidence = np.deg2rad(float(factors["incidence"]))
    surface = _surface(layout, factors, rng)
    points = _points(layout, float(factors["scatterers"]), stream(seed, "scatterers"))
    strength = _power(rng.normal(rng.normal(-1.5, 3.0), 3.0, size=layout.plots))[layout.plot]
    buildings = layout.cover == BUILDING
    height = layout.height
    if factors["look_right"]:
        height, surface, points, strength, buildings = (
            array[:, ::-1] for array in (height, surface, points, strength, buildings)
        )
    facing = _walls_facing(height, buildings)
    bounce = strength * (np.float32(0.15) + np.float32(1.2) * facing**6)
    diffuse, foot = project(surface, height, buildings, bounce, incidence, facade=0.16)
    sharp = foot + points
    sharp = ndimage.convolve1d(ndimage.convolve1d(sharp, _RESPONSE, axis=0), _RESPONSE, axis=1)
    power = ndimage.gaussian_filter(diffuse, 0.45) + sharp + _NOISE_FLOOR
    if factors["look_right"]:
        power = power[:, ::-1]
    power = _displaced(power, shift)
    looks = float(factors["looks"])
    speckle = stream(seed, "speckle").standard_gamma(looks, size=power.shape, dtype=np.float32)
    power = power * speckle / np.float32(looks)

    gain = 10 ** (float(factors["calibration"]) / 20)
    contrast = 1.0 + nuisance * rng.uniform(-0.35, 0.25)
    amplitude = np.power(np.clip(np.sqrt(power) * np.float32(gain), 0, 1), np.float32(contrast))
    return np.rint(amplitude * 255).astype(np.uint8), power


def _displaced(power: Float, shift: tuple[float, float]) -> Float:
    """Cuts the picture out of the margin with its content moved by `shift`, bilinear between pixels."""
    for axis, amount in enumerate(shift):
        size = power.shape[axis] - 2 * MARGIN
        begin = MARGIN - float(np.clip(amount, 1 - MARGIN, MARGIN - 1))
        whole = int(np.floor(begin))
        share = np.float32(begin - whole)
        near = np.take(power, np.arange(whole, whole + size), axis=axis)
        if share:
            far = np.take(power, np.arange(whole + 1, whole + 1 + size), axis=axis)
            near = near * (1 - share) + far * share
        power = near
    return power
