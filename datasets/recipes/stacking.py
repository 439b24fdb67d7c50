"""One GeoTIFF a sample out of files of one band each, for datasets that store the bands apart.

    INDEX_DIR/images/optical-3f2a9c01/<key>.tif     the bands of a sample, all of one size

The folder is named after the bands and the size, a file appears by renaming and counts as done while no band
is newer than it: a second run writes only what is missing.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.transform import from_bounds

from codemae.data.images import resolve_inside
from recipes.candidates import Candidate, Candidates
from recipes.left_out import LeftOut
from recipes.parallel import Workers
from recipes.plan import Plan
from recipes.progress import phase
from recipes.template import Template

FOLDER = "images"

_CHUNK = 16
_SIDES = ("optical", "sar", "mask", "post")
_STORED = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Bands:
    """How the bands of one side become one image.

    Attributes:
        templates: Files of the bands, in their order; the first finds the samples, and the others have no
            field that it lacks.
        names: Name of each band.
        side: Height and width of the image; bands of another size are resampled bilinearly.
    """

    templates: tuple[str, ...]
    names: tuple[str, ...]
    side: int

    def folder(self, modality: str) -> str:
        """Folder of the images, relative to the index folder."""
        text = "\0".join((*self.templates, *self.names, str(self.side)))
        return f"{FOLDER}/{modality}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def paths(self, first: str) -> list[str]:
        """Files of all bands, given that of the first."""
        fields = Template(self.templates[0]).match(first)
        return [first, *(Template(text).fill(fields) for text in self.templates[1:])]


class StackError(Exception):
    """The bands of a sample do not make an image; the message says why."""


def stack(plan: Plan, bands: dict[str, Bands], out: Path, workers: int) -> None:
    """Writes the stacked images of a plan and puts them in the place of their bands.

    The root of the plan becomes the index folder, or where some sides are not stacked the folder above it
    and the root. Samples whose bands cannot be read are left out.

    Args:
        plan: The samples, each stacked side being the file of its first band.
        bands: Modality to bands.
        out: The index folder.
        workers: Processes that write.
    """
    out = out.resolve()
    apart = [side for side in _SIDES if side not in bands]
    whole = all(plan.candidates.column(side).null_count == len(plan.candidates) for side in apart)
    root = out if whole else Path(os.path.commonpath([plan.root, out]))
    stacked = Candidates()
    work = partial(_stack_chunk, str(plan.root), str(out), bands)
    below = "" if plan.root == root else f"{os.path.relpath(plan.root, root)}/"
    above = "" if out == root else f"{os.path.relpath(out, root)}/"
    with (
        Workers(workers) as run,
        phase("stacking bands", "stacked {} samples", len(plan.candidates)) as advance,
    ):
        for chunk, errors in run.map(work, _chunks(plan.candidates)):
            for candidate, error in zip(chunk, errors, strict=True):
                if error is not None:
                    plan.left_out.append(LeftOut(candidate.key, "unreadable", error))
                    continue
                paths = {
                    side: f"{above}{bands[side].folder(side)}/{candidate.key}.tif"
                    if side in bands
                    else below + path
                    for side, path in _sides(candidate).items()
                }
                stacked.append(replace(candidate, **paths))
            advance(len(chunk))
    plan.candidates = stacked
    plan.root = root


def _sides(candidate: Candidate) -> dict[str, str]:
    return {side: path for side in _SIDES if (path := getattr(candidate, side)) is not None}


def _chunks(candidates: Candidates) -> Iterator[list[Candidate]]:
    remaining = iter(candidates)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk


def _stack_chunk(root: str, out: str, bands: dict[str, Bands], chunk: list[Candidate]) -> list[str | None]:
    """Why each sample cannot be stacked; None: it is."""
    found: list[str | None] = []
    for candidate in chunk:
        try:
            for modality, rule in bands.items():
                first = getattr(candidate, modality)
                if first is not None:
                    files = [resolve_inside(root, path) for path in rule.paths(first)]
                    target = Path(out, rule.folder(modality), f"{candidate.key}.tif")
                    if not _is_done(target, files):
                        write_stack(files, rule, target)
            found.append(None)
        except StackError as error:
            found.append(str(error))
    return found


def _is_done(target: Path, files: list[str]) -> bool:
    try:
        written = target.stat().st_mtime_ns
        return all(os.stat(file).st_mtime_ns <= written for file in files)
    except OSError:
        return False


def write_stack(files: list[str], rule: Bands, target: Path) -> None:
    """Writes the bands of a sample as one GeoTIFF, whole or not at all.

    Stored types are kept where all bands are uint8 or all uint16; other numbers, mixtures and bands with
    nodata (which becomes NaN) are float32. The place on the ground is that of the finest band.

    Raises:
        StackError: A band is missing or cannot be read, has several channels or is not square.
    """
    planes: list[np.ndarray] = []
    finest, placed = 0, dict[str, Any]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for file in files:
            try:
                with rasterio.open(file) as band:
                    if band.count != 1 or band.height != band.width:
                        raise StackError(
                            f"{file}: a band is one square channel, this is {band.count} of {band.height} x "
                            f"{band.width}"
                        )
                    planes.append(_plane(band, rule.side))
                    if band.height > finest:
                        finest, placed = band.height, _place(band, rule.side)
            except RasterioError as error:
                reason = "no such file" if not os.path.exists(file) else str(error)
                raise StackError(f"{file}: {reason}") from None
        kind = np.result_type(*planes)
        if kind.name not in _STORED:
            kind = np.dtype(np.float32)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(prefix=".writing-", suffix=".tif", dir=target.parent)
        os.close(handle)
        try:
            shape = {"height": rule.side, "width": rule.side, "count": len(planes), "dtype": kind.name}
            with rasterio.open(staged, "w", driver="GTiff", **shape, **placed) as image:
                for number, (plane, name) in enumerate(zip(planes, rule.names, strict=True), 1):
                    image.write(plane.astype(kind), number)
                    image.set_band_description(number, name)
            os.replace(staged, target)
        finally:
            Path(staged).unlink(missing_ok=True)


def _place(band: rasterio.DatasetReader, side: int) -> dict[str, Any]:
    """Where the image lies on the ground, if the band says it."""
    if band.crs is None:
        return {}
    return {"crs": band.crs, "transform": from_bounds(*band.bounds, side, side)}


def _plane(band: rasterio.DatasetReader, side: int) -> np.ndarray:
    """(side, side): a band in the wanted size; with nodata float32, NaN where it lies."""
    shape = (side, side)
    if band.nodata is None:
        return band.read(1, out_shape=shape, resampling=Resampling.bilinear)
    values = band.read(1, out_shape=shape, resampling=Resampling.bilinear, masked=True)
    return values.astype(np.float32).filled(np.nan)
