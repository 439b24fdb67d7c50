"""Reads every image once: can it be read, how large is it, what does its source look like."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from codemae.data.images import (
    ImageError,
    Location,
    is_geotiff,
    read_picture,
    resolve_inside,
    size_of,
    stored_type,
)
from codemae.data.measuring import Moments, Survey
from codemae.data.statistics import SourceStatistics, StatisticsError
from codemae.modality import MODALITY_NAMES
from recipes.bands import Selection
from recipes.labels import LabelError, size_of_mask
from recipes.plan import Candidate, LeftOut, Plan, PrepareError

_CHUNK = 32

Advance = Callable[[int], None]
SourceModality = tuple[str, str]

_SECOND_DATE = "sar"
"""Modality of the images of the second date."""


@dataclass
class Scan:
    """What reading the images showed.

    Attributes:
        sizes: Height and width of each readable candidate, by its place in the plan.
        left_out: Candidates that cannot be used.
        statistics: Source to modality to statistics.
    """

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    statistics: dict[str, dict[str, SourceStatistics]] = field(default_factory=dict)


@dataclass
class _Findings:
    """What one worker found in one chunk."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    surveys: dict[SourceModality, Survey] = field(default_factory=dict)


_Numbered = list[tuple[int, Candidate]]


def scan(
    plan: Plan,
    scalings: dict[str, str],
    workers: int,
    advance: Advance,
    tile: int = 0,
    chosen: dict[str, Selection] | None = None,
) -> Scan:
    """Reads all candidates of a plan.

    Statistics are of the ``train`` rows of a source where it has any, so that test images stay out of them.

    Args:
        plan: The candidates.
        scalings: Modality to scaling rule (``auto``, ``linear``, ``db``, or a rule with its range).
        workers: Processes that read.
        advance: Told how many candidates were read.
        tile: Side of a window that every image has to hold.
        chosen: Modality to the channels to read; all where not given.

    Raises:
        PrepareError: The images of a source do not go together.
    """
    trained = {candidate.source for candidate in plan.candidates if candidate.split == "train"}
    result = Scan()
    surveys: dict[SourceModality, Survey] = {}
    numbered = list(enumerate(plan.candidates))
    channels = chosen or dict.fromkeys(MODALITY_NAMES, Selection())
    with _Pool(workers) as run:
        for findings in run(partial(_survey, str(plan.root), trained, tile, channels), _chunks(numbered)):
            result.sizes |= findings.sizes
            result.left_out += findings.left_out
            for key, survey in findings.surveys.items():
                surveys.setdefault(key, channels[key[1]].survey(key[1])).merge(survey)
            advance(len(findings.sizes) + len(findings.left_out))
        moments: dict[SourceModality, Moments] = {}
        for (source, modality), survey in sorted(surveys.items()):
            published = plan.published.get(source, {}).get(modality)
            if published is not None:
                _check_published(source, modality, survey, published)
                result.statistics.setdefault(source, {})[modality] = published
                continue
            try:
                scaling = survey.scaling(scalings[modality])
                if survey.native == "float32":
                    moments[source, modality] = survey.moments(scaling)
                else:
                    result.statistics.setdefault(source, {})[modality] = survey.statistics(scaling)
            except StatisticsError as error:
                raise PrepareError(f"source {source!r}: {error}") from None
        if moments:
            usable = [item for item in numbered if item[0] in result.sizes and _measured(item[1], trained)]
            for counted in run(partial(_moments, str(plan.root), moments), _chunks(usable)):
                for key, part in counted.items():
                    moments[key].merge(part)
            for (source, modality), whole in moments.items():
                result.statistics.setdefault(source, {})[modality] = whole.statistics()
    return result


class _Pool:
    """Maps over chunks in this process or in several, in order."""

    def __init__(self, workers: int) -> None:
        self._executor = ProcessPoolExecutor(workers) if workers > 1 else None

    def __enter__(self) -> Callable[..., Iterator]:
        return self._executor.map if self._executor else map

    def __exit__(self, *error: object) -> None:
        if self._executor:
            self._executor.shutdown(cancel_futures=True)


def _chunks(items: _Numbered) -> Iterator[_Numbered]:
    remaining = iter(items)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def _measured(candidate: Candidate, trained: Iterable[str]) -> bool:
    return candidate.split == "train" or candidate.source not in trained


def _locations(root: str, candidate: Candidate) -> dict[str, Location]:
    """Side to place of the images; the second date is there as ``post``."""
    paths = candidate.paths | ({"post": candidate.post} if candidate.post is not None else {})
    return {side: Location(resolve_inside(root, path)) for side, path in paths.items()}


def _modality(side: str) -> str:
    return _SECOND_DATE if side == "post" else side


def _survey(
    root: str, trained: set[str], tile: int, chosen: dict[str, Selection], chunk: _Numbered
) -> _Findings:
    findings = _Findings()
    for place, candidate in chunk:
        locations = _locations(root, candidate)
        try:
            pictures = {side: read_picture(location) for side, location in locations.items()}
            sizes = {side: size_of(picture) for side, picture in pictures.items()}
            if candidate.mask is not None:
                sizes["mask"] = size_of_mask(resolve_inside(root, candidate.mask))
        except (ImageError, LabelError) as error:
            findings.left_out.append(LeftOut(candidate.key, "unreadable", str(error)))
            continue
        if len(set(sizes.values())) > 1:
            words = " but ".join(f"{modality} is {h} x {w}" for modality, (h, w) in sizes.items())
            findings.left_out.append(LeftOut(candidate.key, "different sizes", f"{words} (height x width)"))
            continue
        height, width = next(iter(sizes.values()))
        if min(height, width) < tile:
            reason = f"{height} x {width} (height x width) holds no window of {tile}"
            findings.left_out.append(LeftOut(candidate.key, "smaller than a tile", reason))
            continue
        findings.sizes[place] = height, width
        if _measured(candidate, trained):
            for side, picture in pictures.items():
                key = candidate.source, _modality(side)
                survey = findings.surveys.setdefault(key, chosen[key[1]].survey(key[1]))
                survey.add(picture, _native(locations[side]))
    return findings


def _native(location: Location) -> str | None:
    """Pixel type in the file, which nodata hides in the picture."""
    return stored_type(location) if is_geotiff(location.path) else None


def _moments(
    root: str, blank: dict[SourceModality, Moments], chunk: _Numbered
) -> dict[SourceModality, Moments]:
    counted: dict[SourceModality, Moments] = {}
    for _, candidate in chunk:
        for side, location in _locations(root, candidate).items():
            key = candidate.source, _modality(side)
            if key in blank:
                fresh = blank[key].fresh()
                counted.setdefault(key, fresh).add(read_picture(location))
    return counted


def _check_published(source: str, modality: str, survey: Survey, published: SourceStatistics) -> None:
    """Published numbers hold for bytes of the published channel count.

    Raises:
        PrepareError: These are other images.
    """
    try:
        fits = survey.native == "uint8" and survey.channels in (1, published.channels)
        found = f"{survey.channels} channels of {survey.native}"
    except StatisticsError as error:
        fits, found = False, str(error)
    if not fits:
        raise PrepareError(
            f"the {modality} images of {source!r} are not those the published statistics belong to "
            f"({found}, not {published.channels} of uint8); add --stats measure"
        )
