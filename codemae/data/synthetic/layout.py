"""The ground both sensors look at: land cover, parcels, roads, water, trees and buildings with heights."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codemae.data.synthetic.factors import (
    BUILDING,
    FIELD,
    FOREST,
    MARGIN,
    MEADOW,
    PAVED,
    ROAD,
    SCENES,
    WATER,
)
from codemae.data.synthetic.noise import Float, fractal_noise, smooth_noise, stream

PARCELS = 1024
CROPS = 5

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SceneRecipe:
    """Ranges from which one class of scene is drawn; they overlap between classes on purpose.

    Attributes:
        parcel: Width of field parcels in pixels.
        meadow: Share of parcels that are meadow.
        wood: Share of ground under closed forest.
        trees: Share of open ground under single trees.
        river: Width of the river in pixels; (0, 0) for none.
        cell: Side of a building plot in pixels.
        footprint: Share of the side of its plot that a building takes.
        storey: Height of buildings in pixels.
        built: Share of plots with a building, at density 0 and 1.
        street: Plots between two streets at density 1 and 0; (0, 0) for no street grid.
        street_width: Width of streets in pixels.
        lanes: Country roads at density 0 and 1.
        along_lanes: Whether buildings stand only beside country roads.
        paved: Share of the street grid's ground that is sealed.
    """

    parcel: Range = (18, 42)
    meadow: Range = (0.1, 0.5)
    wood: Range = (0.03, 0.2)
    trees: Range = (0.0, 0.06)
    river: Range = (0, 0)
    cell: Range = (13, 18)
    footprint: Range = (0.4, 0.75)
    storey: Range = (2.5, 5.0)
    built: Range = (0.0, 0.02)
    street: tuple[int, int] = (0, 0)
    street_width: Range = (3.0, 4.5)
    lanes: Range = (0.6, 3.0)
    along_lanes: bool = False
    paved: Range = (0.0, 0.0)


RECIPES: dict[str, SceneRecipe] = {
    "farmland": SceneRecipe(),
    "forest": SceneRecipe(wood=(0.45, 0.8), parcel=(25, 60), meadow=(0.4, 0.9), lanes=(0.3, 2.5)),
    "river": SceneRecipe(river=(9, 30), wood=(0.05, 0.4), meadow=(0.2, 0.7), built=(0.0, 0.04)),
    "village": SceneRecipe(built=(0.5, 0.95), along_lanes=True, lanes=(1.2, 3.0), trees=(0.03, 0.12)),
    "residential": SceneRecipe(
        built=(0.55, 0.95),
        street=(2, 5),
        trees=(0.05, 0.22),
        meadow=(0.8, 1.0),
        lanes=(0, 1),
        paved=(0.0, 0.25),
    ),
    "industrial": SceneRecipe(
        cell=(26, 44),
        footprint=(0.45, 0.85),
        storey=(4.0, 9.0),
        built=(0.5, 0.95),
        street=(1, 3),
        street_width=(4.0, 6.5),
        meadow=(0.5, 1.0),
        wood=(0.0, 0.12),
        trees=(0.0, 0.08),
        lanes=(0, 1.2),
        paved=(0.35, 0.9),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One date of one place. Maps cover the picture and `MARGIN` pixels around it; heights are in pixels.

    Attributes:
        cover: Land cover of each pixel, an index into `COVERS`.
        height: Height above ground.
        parcel: Parcel of each pixel, below `PARCELS`.
        crop: Crop of each parcel, below `CROPS`.
        furrow: Coordinate across the furrows, in pixels.
        plot: Building plot of each pixel.
        roof: Position across the ridge, -1 to 1, where there is a building.
        gable: Whether the buildings have pitched roofs.
        boxes: Left, top, right, bottom of the buildings, in pixels of the picture.
    """

    cover: NDArray[np.uint8]
    height: Float
    parcel: NDArray[np.int32]
    crop: NDArray[np.int64]
    furrow: Float
    plot: NDArray[np.int32]
    plots: int
    roof: Float
    gable: bool
    boxes: Float


@dataclass(frozen=True)
class _Plots:
    """Building plots on a regular grid: which plot a pixel is in, and where in it."""

    cell: float
    index: NDArray[np.int32]
    count: int
    across: Float
    along: Float
    centre_rows: Float
    centre_columns: Float


def _between(rng: np.random.Generator, bounds: Range) -> float:
    return float(rng.uniform(*bounds))


def _above_share(field: Float, share: float) -> NDArray[np.bool_]:
    """Marks the highest `share` of a unit normal field, by its known tail so that nothing is sorted."""
    clipped = min(max(share, 1e-4), 1 - 1e-4)
    # Logistic approximation of the normal quantile, good to 0.02 over the range in use.
    threshold = np.log((1 - clipped) / clipped) / 1.702
    return field > np.float32(threshold)


def _parcels(rng: np.random.Generator, u: Float, v: Float, width: float) -> tuple[NDArray[np.int32], Float]:
    """Divides the ground into rows of unequal parcels; returns the parcel and the distance to its edge."""
    reach = float(np.abs(v).max()) + 2 * width
    edges = -reach + np.cumsum(width * rng.uniform(0.6, 1.6, size=int(2 * reach / (0.6 * width)) + 2))
    row = np.searchsorted(edges, v.ravel()).reshape(v.shape).astype(np.int32)
    padded = np.concatenate([[edges[0] - 2 * width], edges]).astype(np.float32)
    lengths = (width * rng.uniform(0.9, 3.0, size=padded.size)).astype(np.float32)
    position = u / lengths[row] + rng.uniform(0, 1, size=padded.size).astype(np.float32)[row]
    column = np.floor(position)
    fraction = position - column
    below = v - padded[row]
    above = padded[np.minimum(row + 1, padded.size - 1)] - v
    edge = np.minimum(np.minimum(below, above), np.minimum(fraction, 1 - fraction) * lengths[row])
    return (row * 37 + column.astype(np.int32)) % PARCELS, edge


def _meander(rng: np.random.Generator, u: Float, amplitude: float) -> Float:
    """A winding course: how far it strays from a straight line at every u."""
    wave = rng.uniform(70, 160)
    first = np.sin(u * np.float32(2 * np.pi / wave) + np.float32(rng.uniform(0, 2 * np.pi)))
    second = np.sin(u * np.float32(4.4 * np.pi / wave) + np.float32(rng.uniform(0, 2 * np.pi)))
    course: Float = np.float32(amplitude) * (first + np.float32(0.4) * second)
    return course


def _plot_grid(rng: np.random.Generator, u: Float, v: Float, cell: float, angle: float) -> _Plots:
    n = u.shape[0]
    side = 2 * int(np.ceil(0.75 * n / cell)) + 2
    shift_u, shift_v = rng.uniform(0, cell, size=2).astype(np.float32)
    pu, pv = (u + shift_u) / np.float32(cell), (v + shift_v) / np.float32(cell)
    iu, iv = np.floor(pu), np.floor(pv)
    index = ((iv + side // 2) * side + iu + side // 2).astype(np.int32)
    grid = (np.arange(side) - side // 2 + 0.5) * cell
    centre_u, centre_v = np.tile(grid - shift_u, side), np.repeat(grid - shift_v, side)
    columns = np.cos(angle) * centre_u - np.sin(angle) * centre_v + (n - 1) / 2
    rows = np.sin(angle) * centre_u + np.cos(angle) * centre_v + (n - 1) / 2
    return _Plots(
        cell=cell,
        index=index,
        count=side * side,
        across=(pu - iu - 0.5) * np.float32(cell),
        along=(pv - iv - 0.5) * np.float32(cell),
        centre_rows=rows.astype(np.float32),
        centre_columns=columns.astype(np.float32),
    )


def build_layouts(
    seed: int, size: int, factors: dict[str, int | float], change_fraction: float
) -> tuple[Layout, Layout]:
    """Builds the ground at the optical date and at the SAR date.

    Args:
        seed: Seed of the place.
        size: Side of the picture in pixels.
        factors: The shared factors, as `draw_factors` gives them.
        change_fraction: Share of buildings and parcels that differ between the dates.

    Returns:
        Both layouts; the same object twice if nothing changes.
    """
    recipe = RECIPES[SCENES[int(factors["scene"])]]
    n = size + 2 * MARGIN
    shape = (n, n)
    rng = stream(seed, "layout")
    angle = np.deg2rad(float(factors["orientation"]))
    axis = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    u = np.float32(np.cos(angle)) * axis[None, :] + np.float32(np.sin(angle)) * axis[:, None]
    v = np.float32(np.cos(angle)) * axis[:, None] - np.float32(np.sin(angle)) * axis[None, :]

    warp = np.float32(rng.uniform(0, 4)) * smooth_noise(rng, shape, 40)
    parcel, edge = _parcels(rng, u + warp, v + warp, _between(rng, recipe.parcel))
    meadow = rng.uniform(size=PARCELS) < _between(rng, recipe.meadow)
    cover = np.where(meadow, MEADOW, FIELD).astype(np.uint8)[parcel]
    hedged = (rng.uniform(size=PARCELS) < rng.uniform(0, 0.5))[parcel]
    furrow = np.where((rng.uniform(size=PARCELS) < 0.5)[parcel], u, v)
    crop = rng.integers(CROPS, size=PARCELS)

    crowns = smooth_noise(rng, shape, float(rng.uniform(2.2, 3.6)))
    wood = _above_share(fractal_noise(rng, shape, 44, 4), _between(rng, recipe.wood))
    trees = _above_share(crowns, _between(rng, recipe.trees)) | (hedged & (edge < 1.3) & (crowns > -0.7))

    lanes = _between(rng, (0.0, 1.0)) + recipe.lanes[0]
    lanes += float(factors["road_density"]) * (recipe.lanes[1] - recipe.lanes[0]) - 0.5
    lane_distance = np.full(shape, np.inf, dtype=np.float32)
    for number in range(3):
        straight, cross = (v, u) if number % 2 == 0 else (u, v)
        course = _meander(rng, cross, float(rng.uniform(0, 9)))
        offset, half = rng.uniform(-0.4 * size, 0.4 * size), rng.uniform(1.2, 2.3)
        if number < lanes:
            distance = np.abs(straight - course - np.float32(offset)) - np.float32(half)
            lane_distance = np.minimum(lane_distance, distance)

    stray = _meander(rng, u, float(rng.uniform(3, 16)))
    river_offset = rng.uniform(-0.3, 0.3) * size
    width = _between(rng, recipe.river if recipe.river[1] else (4, 9))
    if not recipe.river[1] and rng.uniform() > 0.15:
        width = 0.0
    bank = np.abs(v - stray - np.float32(river_offset)) - np.float32(width / 2)
    pond = fractal_noise(rng, shape, 30, 2) > (2.1 if rng.uniform() < 0.4 else np.inf)
    water = (bank < 0) if width else np.zeros(shape, dtype=bool)

    plots = _plot_grid(rng, u, v, _between(rng, recipe.cell), angle)
    cell = plots.cell
    road = lane_distance < 0
    if recipe.street[1]:
        dense, sparse = recipe.street
        every = [round(sparse + (dense - sparse) * float(factors["road_density"])), 0]
        every[1] = max(1, every[0] + int(rng.integers(0, 2)))
        half = _between(rng, recipe.street_width) / 2
        side = round(np.sqrt(plots.count))
        for position, number, step in (
            (plots.across, plots.index % side, every[0]),
            (plots.along, plots.index // side, every[1]),
        ):
            low = (number % step == 0) & (position + np.float32(cell / 2) < half)
            high = ((number + 1) % step == 0) & (np.float32(cell / 2) - position < half)
            road |= low | high
        sealed = rng.uniform(size=plots.count) < _between(rng, recipe.paved)
        cover[sealed[plots.index]] = PAVED
    cover[(wood & (cover != PAVED)) | (trees & (cover != FIELD))] = FOREST
    cover[trees & hedged] = FOREST
    cover[water | pond] = WATER
    cover[road] = ROAD

    built_share = recipe.built[0] + float(factors["building_density"]) * (recipe.built[1] - recipe.built[0])
    built = rng.uniform(size=plots.count) < built_share
    if recipe.along_lanes:
        rows = np.clip(np.rint(plots.centre_rows), 0, n - 1).astype(np.int64)
        columns = np.clip(np.rint(plots.centre_columns), 0, n - 1).astype(np.int64)
        built &= lane_distance[rows, columns] < rng.uniform(14, 26)
    ground = np.where(cover == FOREST, np.float32(3.4) + np.float32(0.65) * crowns, np.float32(0)).clip(0)
    base = Layout(
        cover=cover,
        height=ground.astype(np.float32),
        parcel=parcel,
        crop=crop,
        furrow=furrow,
        plot=plots.index,
        plots=plots.count,
        roof=np.zeros(shape, dtype=np.float32),
        gable=recipe.cell[1] < 20,
        boxes=np.zeros((0, 4), dtype=np.float32),
    )
    before = _with_buildings(base, plots, recipe, built, seed, size)
    if change_fraction == 0:
        return before, before
    later = stream(seed, "change")
    replanted = later.uniform(size=PARCELS) < change_fraction
    new_crop = (crop + later.integers(1, CROPS, size=PARCELS)) % CROPS
    # Drawn against the share that is built, so that about as much is raised as is torn down.
    rebuilt = later.uniform(size=plots.count) < change_fraction
    turned = later.uniform(size=plots.count)
    new_built = np.where(rebuilt, np.where(built, False, turned < max(built_share, 0.05)), built)
    after_base = replace(base, crop=np.where(replanted, new_crop, crop))
    return before, _with_buildings(after_base, plots, recipe, new_built, seed, size)


def _with_buildings(
    ground: Layout,
    plots: _Plots,
    recipe: SceneRecipe,
    built: NDArray[np.bool_],
    seed: int,
    size: int,
) -> Layout:
    """Raises buildings on the plots marked `built`, except where one would stand on a road or in water."""
    rng = stream(seed, "buildings")
    cell = plots.cell
    low, high = recipe.footprint
    half_u = (0.5 * cell * rng.uniform(low, high, size=plots.count)).astype(np.float32)
    half_v = (0.5 * cell * rng.uniform(low, high, size=plots.count)).astype(np.float32)
    room_u, room_v = 0.5 * cell - half_u - 1.0, 0.5 * cell - half_v - 1.0
    shift_u = (rng.uniform(-0.8, 0.8, size=plots.count) * room_u.clip(0)).astype(np.float32)
    shift_v = (rng.uniform(-0.8, 0.8, size=plots.count) * room_v.clip(0)).astype(np.float32)
    notch = np.where(rng.uniform(size=plots.count) < 0.35, rng.uniform(0, 0.4, size=plots.count), 2.0)
    storey = rng.uniform(*recipe.storey, size=plots.count).astype(np.float32)

    index = plots.index
    across = (plots.across - shift_u[index]) / half_u[index]
    along = (plots.along - shift_v[index]) / half_v[index]
    cut = notch.astype(np.float32)[index]
    inside = (np.abs(across) < 1) & (np.abs(along) < 1) & ~((across > cut) & (along > cut)) & built[index]
    blocked = inside & ((ground.cover == ROAD) | (ground.cover == WATER))
    standing = built & (np.bincount(index[blocked], minlength=plots.count) == 0)
    inside &= standing[index]

    roof = np.where(inside, along, np.float32(0))
    height = storey[index]
    if ground.gable:
        height = height * (np.float32(1.15) - np.float32(0.4) * np.abs(roof))
    cover = ground.cover.copy()
    cover[inside] = BUILDING
    return replace(
        ground,
        cover=cover,
        height=np.where(inside, height, ground.height),
        roof=roof,
        boxes=_boxes(index, inside, size, plots.count),
    )


def _boxes(index: NDArray[np.int32], inside: NDArray[np.bool_], size: int, count: int) -> Float:
    """Bounding boxes of the buildings, in pixels of the picture; at least 2 pixels wide and high."""
    window = slice(MARGIN, MARGIN + size)
    rows, columns = np.nonzero(inside[window, window])
    if rows.size == 0:
        return np.zeros((0, 4), dtype=np.float32)
    plot = index[window, window][rows, columns]
    low = np.full((2, count), size, dtype=np.int64)
    high = np.full((2, count), -1, dtype=np.int64)
    for line, values in enumerate((columns, rows)):
        np.minimum.at(low[line], plot, values)
        np.maximum.at(high[line], plot, values)
    boxes = np.stack([low[0], low[1], high[0] + 1, high[1] + 1], axis=1)
    kept = (boxes[:, 2] - boxes[:, 0] >= 2) & (boxes[:, 3] - boxes[:, 1] >= 2)
    return boxes[kept].astype(np.float32)
