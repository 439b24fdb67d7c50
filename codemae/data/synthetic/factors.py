"""What varies in a synthetic pair, which side shows it, and the options that pin it."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from codemae.data.synthetic.noise import stream

COVERS: tuple[str, ...] = ("field", "meadow", "forest", "water", "road", "building", "paved")
FIELD, MEADOW, FOREST, WATER, ROAD, BUILDING, PAVED = range(len(COVERS))

SCENES: tuple[str, ...] = ("farmland", "forest", "river", "village", "residential", "industrial")

PALETTES = 4
PAINTS = 4

# Pixels of ground rendered around the picture: shadows, layover and misregistration reach in from outside.
MARGIN = 12

Side = Literal["shared", "optical", "sar"]

FACTOR_SIDES: Mapping[str, Side] = MappingProxyType(
    {
        "scene": "shared",
        "orientation": "shared",
        "road_density": "shared",
        "building_density": "shared",
        "palette": "optical",
        "paint": "optical",
        "sun_azimuth": "optical",
        "cloud_cover": "optical",
        "roughness": "sar",
        "scatterers": "sar",
        "incidence": "sar",
        "look_right": "sar",
        "looks": "sar",
        "calibration": "sar",
    }
)


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How pairs are made. A factor left at None is drawn from the seed.

    Attributes:
        looks: Range the number of looks of the speckle is drawn from; the higher, the smoother.
        cloud_fraction: Share of ground under cloud, on average over pairs.
        change_fraction: Share of buildings and parcels that differ at the SAR date from the optical one.
        misregistration: Rows and columns by which the SAR picture is displaced against the optical one.
        misregistration_jitter: Standard deviation of a further displacement drawn for each pair, in pixels.
        nuisance: Strength of what tells nothing of the ground (light, haze, calibration, contrast), 0 to 1.
        scene: Scene class, an index into `SCENES` (shared).
        road_density: From 0, sparse, to 1, dense (shared).
        building_density: From 0, sparse, to 1, dense (shared).
        palette: Colours of the season, 0 to 3 (optical only).
        paint: Family of roof colours, 0 to 3 (optical only).
        roughness: Roughness of soil and water, 0 to 1 (SAR only).
        scatterers: Density of bright points, 0 to 1 (SAR only).
    """

    looks: tuple[float, float] = (2.0, 6.0)
    cloud_fraction: float = 0.05
    change_fraction: float = 0.0
    misregistration: tuple[float, float] = (0.0, 0.0)
    misregistration_jitter: float = 0.0
    nuisance: float = 1.0
    scene: int | None = None
    road_density: float | None = None
    building_density: float | None = None
    palette: int | None = None
    paint: int | None = None
    roughness: float | None = None
    scatterers: float | None = None

    def __post_init__(self) -> None:
        low, high = self.looks
        if not 0 < low <= high:
            raise ValueError(f"looks must be a range low <= high above 0, got {self.looks}")
        if max(abs(shift) for shift in self.misregistration) > MARGIN - 2:
            raise ValueError(
                f"misregistration {self.misregistration} reaches beyond the ground that is rendered around a "
                f"picture; choose at most {MARGIN - 2} pixels"
            )
        if self.misregistration_jitter < 0:
            raise ValueError(f"misregistration_jitter is {self.misregistration_jitter}; give 0 or more")
        for name in (
            "cloud_fraction",
            "change_fraction",
            "nuisance",
            "road_density",
            "building_density",
            "roughness",
            "scatterers",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        for name, count in (("scene", len(SCENES)), ("palette", PALETTES), ("paint", PAINTS)):
            value = getattr(self, name)
            if value is not None and not 0 <= value < count:
                raise ValueError(f"{name} must be one of 0 to {count - 1}, got {value}")


def draw_factors(seed: int, options: SynthesisOptions) -> dict[str, int | float]:
    """Draws the factors of one pair; every one has its own stream, so pinning one leaves the others alone."""

    def uniform(name: str, low: float, high: float) -> float:
        return float(stream(seed, f"factor {name}").uniform(low, high))

    def integer(name: str, count: int) -> int:
        return int(stream(seed, f"factor {name}").integers(count))

    low, high = options.looks
    drawn: dict[str, int | float] = {
        "scene": integer("scene", len(SCENES)),
        "orientation": uniform("orientation", 0.0, 180.0),
        "road_density": uniform("road_density", 0.0, 1.0),
        "building_density": uniform("building_density", 0.0, 1.0),
        "palette": integer("palette", PALETTES),
        "paint": integer("paint", PAINTS),
        "sun_azimuth": uniform("sun_azimuth", 0.0, 360.0),
        # The mean of 3 u^2 is 1: many clear pictures, a few overcast ones.
        "cloud_cover": min(0.9, options.cloud_fraction * 3 * uniform("cloud_cover", 0.0, 1.0) ** 2),
        "roughness": uniform("roughness", 0.0, 1.0),
        "scatterers": uniform("scatterers", 0.0, 1.0),
        "incidence": uniform("incidence", 30.0, 50.0),
        "look_right": integer("look_right", 2),
        "looks": low * (high / low) ** uniform("looks", 0.0, 1.0),
        "calibration": options.nuisance * uniform("calibration", -4.0, 3.0),
    }
    pinned = ("scene", "road_density", "building_density", "palette", "paint", "roughness", "scatterers")
    for name in pinned:
        value = getattr(options, name)
        if value is not None:
            drawn[name] = value
    return drawn
