"""Reads every image once: can it be read, how large is it, what does its source look like."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
import pyarrow.compute as pc

from codemae.data.images import (
    ImageError,
    Location,
    Picture,
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
from recipes.candidates import Candidate
from recipes.labels import LabelError, size_of_mask
from recipes.left_out import LeftOut
from recipes.parallel import Workers
from recipes.plan import Plan, PrepareError
from recipes.progress import phase

_CHUNK = 32

SourceModality = tuple[str, str]

_SECOND_DATE = "sar"
"""Modality of the images of the second date."""


@dataclass
class Scan:
    """What reading the images showed; what cannot be used is in the plan's ``left_out``.

    Attributes:
        sizes: (number of candidates, 2) int32: height and width; -1 where the candidate cannot be used.
        statistics: Source to modality to statistics.
    """

    sizes: np.ndarray
    statistics: dict[str, dict[str, SourceStatistics]] = field(default_factory=dict)

    @property
    def usable(self) -> np.ndarray:
        """(number of candidates,) bool."""
        return self.sizes[:, 0] >= 0


@dataclass
class _Findings:
    """What one worker found in one chunk."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    surveys: dict[SourceModality, Survey] = field(default_factory=dict)


def scan(
    plan: Plan,
    scalings: dict[str, str],
    workers: int,
    tile: int = 0,
    chosen: dict[str, Selection] | None = None,
) -> Scan:
    """Reads all candidates of a plan; only a few chunks of them are under way at a time.

    Statistics are of the ``train`` rows of a source where it has any, so that test images stay out of them.

    Args:
        plan: The candidates.
        scalings: Modality to scaling rule (``auto``, ``linear``, ``db``, or a rule with its range).
        workers: Processes that read.
        tile: Side of a window that every image has to hold.
        chosen: Modality to the channels to read; all where not given.

    Raises:
        PrepareError: The images of a source do not go together.
    """
    candidates = plan.candidates
    trained = _trained(plan)
    result = Scan(np.full((len(candidates), 2), -1, dtype=np.int32))
    surveys: dict[SourceModality, Survey] = {}
    channels = chosen or dict.fromkeys(MODALITY_NAMES, Selection())
    with Workers(workers) as run:
        with phase("reading images", "read {} samples", len(candidates), always=True) as advance:
            survey_chunk = partial(_survey, str(plan.root), trained, tile, channels)
            start = 0
            for chunk, findings in run.map(survey_chunk, _chunks(candidates)):
                result.sizes[start : start + len(chunk)] = findings.sizes
                start += len(chunk)
                plan.left_out.extend(findings.left_out)
                for key, survey in findings.surveys.items():
                    surveys.setdefault(key, channels[key[1]].survey(key[1])).merge(survey)
                advance(len(chunk))
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
            usable = (
                candidate
                for candidate, fits in zip(candidates, result.usable, strict=True)
                if fits and _measured(candidate, trained)
            )
            total = int(result.usable.sum())
            with phase("measuring float images", "measured {} samples", total) as advance:
                count = partial(_moments, str(plan.root), moments)
                for chunk, counted in run.map(count, _chunks(usable)):
                    for key, part in counted.items():
                        moments[key].merge(part)
                    advance(len(chunk))
            for (source, modality), whole in moments.items():
                result.statistics.setdefault(source, {})[modality] = whole.statistics()
    return result


def _trained(plan: Plan) -> set[str]:
    """Sources that have training rows."""
    found: set[str] = set()
    for batch in plan.candidates.batches():
        train = pc.equal(batch.column("split"), "train")
        found |= set(pc.unique(batch.column("source").filter(train)).to_pylist())
    return found


def _chunks(items: Iterable[Candidate]) -> Iterator[list[Candidate]]:
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
    root: str, trained: set[str], tile: int, chosen: dict[str, Selection], chunk: list[Candidate]
) -> _Findings:
    findings = _Findings()
    for candidate in chunk:
        locations = _locations(root, candidate)
        try:
            pictures = {side: read_picture(location) for side, location in locations.items()}
            size = _common_size(root, candidate, pictures, tile)
        except (ImageError, LabelError) as error:
            size = LeftOut(candidate.key, "unreadable", str(error))
        if isinstance(size, LeftOut):
            findings.left_out.append(size)
            findings.sizes.append((-1, -1))
            continue
        findings.sizes.append(size)
        if _measured(candidate, trained):
            for side, picture in pictures.items():
                key = candidate.source, _modality(side)
                survey = findings.surveys.setdefault(key, chosen[key[1]].survey(key[1]))
                survey.add(picture, _native(locations[side]))
    return findings


def _common_size(
    root: str, candidate: Candidate, pictures: dict[str, Picture], tile: int
) -> tuple[int, int] | LeftOut:
    """Height and width of all images of a sample, or why it cannot be used."""
    sizes = {side: size_of(picture) for side, picture in pictures.items()}
    if candidate.mask is not None:
        sizes["mask"] = size_of_mask(resolve_inside(root, candidate.mask))
    if len(set(sizes.values())) > 1:
        words = " but ".join(f"{modality} is {h} x {w}" for modality, (h, w) in sizes.items())
        return LeftOut(candidate.key, "different sizes", f"{words} (height x width)")
    height, width = next(iter(sizes.values()))
    if min(height, width) < tile:
        reason = f"{height} x {width} (height x width) holds no window of {tile}"
        return LeftOut(candidate.key, "smaller than a tile", reason)
    return height, width


def _native(location: Location) -> str | None:
    """Pixel type in the file, which nodata hides in the picture."""
    return stored_type(location) if is_geotiff(location.path) else None


def _moments(
    root: str, blank: dict[SourceModality, Moments], chunk: list[Candidate]
) -> dict[SourceModality, Moments]:
    counted: dict[SourceModality, Moments] = {}
    for candidate in chunk:
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
