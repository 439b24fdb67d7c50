"""The page that the pair doctor writes."""

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pair_findings import FLAGS, Duplicate, Finding, displacements, read_side
from PIL import Image

from codemae.analysis.displacement import ALIGNED, LEAST_GROUP
from codemae.analysis.reconstruction import PictureGrid
from codemae.analysis.report import COLOURS, Report, drawing
from codemae.analysis.sides import RULES
from codemae.analysis.structure import SCALES
from codemae.data.images import ImageError
from codemae.data.index import Index

_SIDE = 192
_SQUARES = 8


def build(
    index: Index,
    findings: Sequence[Finding],
    duplicates: Sequence[Duplicate],
    names: Sequence[str],
    args: argparse.Namespace,
) -> Report:
    """The page about one index."""
    counts = Counter(flag for finding in findings for flag in finding.flags)
    sure = [
        f.registration for f in findings if f.registration and f.registration.confidence >= args.confidence
    ]
    lengths = np.array([registration.length for registration in sure])
    report = Report("Health of the pairs", f"{len(findings)} of {len(index)} rows of `{index.folders[0]}`.")
    numbers = [(str(sum(bool(finding.flags) for finding in findings)), "rows with a flag")]
    if len(lengths):
        numbers += [
            (
                f"{np.mean(lengths <= ALIGNED):.0%}",
                f"of the pairs with a sure offset lie within {ALIGNED:g} px",
            ),
            (f"{np.median(lengths):.1f} px", "is their median offset"),
        ]
    report.headline([*numbers, (str(len(duplicates)), "equal images")])
    _flags(report, counts, args)
    if len(lengths):
        _offsets(report, findings, args)
        _common(report, index, findings, args)
    _similarity(report, findings)
    _worst(report, index, findings, names, args)
    _duplicates(report, duplicates, names)
    report.footer("Every row is in `pairs.parquet`; rows to leave out are in `exclude.txt`.")
    return report


def _flags(report: Report, counts: "Counter[str]", args: argparse.Namespace) -> None:
    report.section("Flags")
    rules = RULES | {
        "unreadable": "a side cannot be decoded",
        "unrelated": f"the correlation peak stands less than {args.confidence:g} deviations above the rest",
        "shifted": f"the offset is sure and above {args.max_offset:g} px, or on the border of the search",
        "duplicate": "an image of it is elsewhere too, and this row is the one to leave out",
    }
    rows = [(flag, str(counts[flag]), rules[flag]) for flag in FLAGS]
    report.table(("flag", "rows", "rule"), rows, "How many rows meet each rule.", words=(2,))


def _offsets(report: Report, findings: Sequence[Finding], args: argparse.Namespace) -> None:
    report.section(
        "Offsets", "How far the SAR image lies to the right of and below the optical one, in pixels."
    )
    found = [finding.registration for finding in findings if finding.registration]
    with drawing(1, 2) as (figure, (place, sureness)):
        sure = [registration for registration in found if registration.confidence >= args.confidence]
        place.scatter([r.x for r in sure], [r.y for r in sure], s=9, alpha=0.5, color=COLOURS["sar"])
        place.set(xlabel="right", ylabel="below", title="Pairs with a sure offset")
        place.set_aspect("equal", "datalim")
        place.invert_yaxis()
        sureness.hist([r.confidence for r in found], bins=30, color=COLOURS["optical"])
        sureness.axvline(args.confidence, color=COLOURS["random"], linestyle="--")
        sureness.set(xlabel="confidence", ylabel="pairs", title="Confidence of all pairs")
    report.figure(
        figure,
        "Left of the dashed line an offset means nothing.",
        "offsets and their confidence of all pairs",
    )


def _common(report: Report, index: Index, findings: Sequence[Finding], args: argparse.Namespace) -> None:
    report.section(
        "What the offsets have in common",
        "An offset that a whole source or scene shares can be taken out by moving its SAR side. Pairs of one "
        "scene that differ along one line, and hardly across it, are displaced by relief: SAR that was not "
        "corrected for terrain shows high ground too near to the sensor. What is left across that line "
        "bounds the error of the offsets themselves.",
    )
    rows = []
    for source, found in displacements(index, findings, args.confidence).items():
        line = "too few pairs a scene"
        if found.direction is not None:
            line = f"{found.along:.1f} px at {found.direction:.0f} degrees, {found.across:.1f} px across"
        scene = "none" if found.aligned_scene is None else f"{found.aligned_scene:.0%}"
        shares = f"{found.aligned:.0%}", f"{found.aligned_source:.0%}", scene
        rows.append(
            (source, str(found.pairs), f"{found.right:+.1f}, {found.below:+.1f}", *shares, line),
        )
    report.table(
        (
            "source",
            "sure",
            "median offset",
            "as they are",
            "without that",
            "without the scene's",
            "within scenes",
        ),
        rows,
        f"Shares of pairs within {ALIGNED:g} px: as they are, with the source's median offset taken off, and "
        f"with that of the other pairs of the scene taken off (scenes of {LEAST_GROUP} pairs or more). "
        "Angles run from the right over below.",
        words=(6,),
    )


def _similarity(report: Report, findings: Sequence[Finding]) -> None:
    levels = [(s, [v for f in findings if (v := f.similarity.get(s)) is not None]) for s in SCALES]
    levels = [(scale, values) for scale, values in levels if values]
    if not levels:
        return
    report.section("Structural similarity by scale")
    with drawing() as (figure, (axes,)):
        scales = [scale for scale, _ in levels]
        low, middle, high = (np.array([np.percentile(v, q) for _, v in levels]) for q in (10, 50, 90))
        axes.fill_between(scales, low, high, alpha=0.2, color=COLOURS["optical"], linewidth=0)
        axes.plot(scales, middle, marker="o", color=COLOURS["optical"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(scales, [f"{scale} x" for scale in scales])
        axes.set(xlabel="pixel spacing", ylabel="SSIM")
    report.figure(
        figure,
        "Median over the pairs, and the range from the 10th to the 90th percentile.",
        "structural similarity over pixel spacing",
    )


def _worst(
    report: Report,
    index: Index,
    findings: Sequence[Finding],
    names: Sequence[str],
    args: argparse.Namespace,
) -> None:
    flagged = [finding for finding in findings if finding.flags]
    # One of each kind comes before the second of any kind.
    turns: Counter[str] = Counter()
    ranked = []
    for finding in sorted(flagged, key=_badness, reverse=True):
        kind = min(finding.flags, key=FLAGS.index)
        ranked.append((turns[kind], FLAGS.index(kind), finding))
        turns[kind] += 1
    chosen = [finding for *_, finding in sorted(ranked, key=lambda entry: entry[:2])][: args.pictures]
    if not chosen:
        return
    report.section("Worst pairs", "On the chessboard, lines that cross from square to square should go on.")
    rows = tuple((str(place), _pictures(index, finding.row)) for place, finding in enumerate(chosen, 1))
    report.pictures(PictureGrid(columns=("optical", "SAR", "chessboard"), rows=rows), "Numbered as below.")
    lines = []
    for place, finding in enumerate(chosen, 1):
        found = finding.registration
        where = f"{found.x:+.1f}, {found.y:+.1f}" if found else "none"
        sure = f"{found.confidence:.1f}" if found else "none"
        lines.append((str(place), names[finding.row], ", ".join(sorted(finding.flags)), where, sure))
    report.table(
        ("pair", "key", "flags", "offset", "confidence"), lines, "Offsets are right, below.", words=(1, 2)
    )


def _badness(finding: Finding) -> float:
    """Orders rows of one flag."""
    found = finding.registration
    if found is None:
        return float("inf")
    return -found.confidence if "unrelated" in finding.flags else found.length


def _pictures(index: Index, row: int) -> tuple[npt.NDArray[np.uint8] | None, ...]:
    shown: dict[str, npt.NDArray[np.uint8]] = {}
    for modality in ("optical", "sar"):
        if index.cell(row, modality) is None:
            continue
        try:
            values = read_side(index, row, modality)[1]
        except ImageError:
            continue
        colours = values[..., :3] if values.shape[-1] >= 3 else np.repeat(values[..., :1], 3, axis=-1)
        stretched = np.clip(np.nan_to_num(colours) / max(float(np.nanpercentile(values, 99)), 1e-6), 0, 1)
        picture = Image.fromarray(np.round(stretched * 255).astype(np.uint8))
        picture.thumbnail((_SIDE, _SIDE))
        shown[modality] = np.asarray(picture)
    optical, sar = shown.get("optical"), shown.get("sar")
    if optical is None or sar is None or optical.shape != sar.shape:
        return optical, sar, None
    rows, columns = np.indices(optical.shape[:2])
    length = max(1, max(optical.shape[:2]) // _SQUARES)
    board = ((rows // length + columns // length) % 2 == 0)[..., None]
    return optical, sar, np.where(board, optical, sar)


def _duplicates(report: Report, duplicates: Sequence[Duplicate], names: Sequence[str]) -> None:
    if not duplicates:
        return
    report.section("Equal images")
    rows = [
        (
            names[found.row],
            found.other if found.reason != "between indexes" else f"{found.other} in {found.other_index}",
            found.modality,
            found.reason,
            found.match.kind + (f", {found.match.bits} bits" if found.match.kind == "near" else ""),
        )
        for found in sorted(duplicates, key=lambda found: (found.reason, found.row))[:200]
    ]
    report.table(
        ("row", "equal to", "side", "where", "how"), rows, f"{len(rows)} of {len(duplicates)}.", words=(1,)
    )
