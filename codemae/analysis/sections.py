"""The sections of a report: a figure each, with the words that say what to see in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from codemae.analysis.alignment import Alignment, draw_alignment, retrieval
from codemae.analysis.embedding import MODALITY_COLOURS, draw_pairs, project_pairs
from codemae.analysis.reconstruction import PictureGrid
from codemae.analysis.report import Report, display, draw_losses, draw_series, drawing, series
from codemae.analysis.spectrum import Spectrum, draw_spectra
from codemae.engine.sentinel import modality_gap
from codemae.modality import MODALITY_NAMES

TERMS = {
    "reconstruction": "masked patches of the same image",
    "okd": "the teacher's features",
    "ccl": "which SAR image belongs to which optical one",
    "cdr": "masked gray patches of the other modality",
}

_COLOURS = ("#2f7ed8", "#8a8f98", "#1f9d77")

RANK, GAP, COSINE = "effective_rank_", "modality_gap", "gradient_cosine_"


def pair_headline(pooled: Mapping[str, Tensor], alignment: Alignment) -> list[tuple[str, str]]:
    """The numbers that sum up features of pairs."""
    optical, sar = (pooled[name] for name in MODALITY_NAMES)
    return [
        (
            f"{100 * retrieval(optical, sar):.0f}%",
            f"of {len(optical)} optical images find their own SAR image",
        ),
        (f"{alignment.excess:+.3f}", "cosine of matching patches above chance"),
        (f"{modality_gap(optical, sar):.2f}", "distance between the two modalities' centres, 0 to 2"),
    ]


def term_ends(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Each logged loss term's mean over the first and over the last tenth of the run."""
    ends = {}
    for term in [term for term in TERMS if series(records, term)[0]] or ["loss"]:
        values = series(records, term)[1]
        edge = max(1, len(values) // 10)
        ends[term] = sum(values[:edge]) / edge, sum(values[-edge:]) / edge
    return ends


def add_curves(report: Report, records: Sequence[Mapping[str, Any]]) -> None:
    """Loss curves, a panel a term."""
    ends = term_ends(records)
    terms = list(ends)
    changes = [f"{term} {first:.3f} to {last:.3f}" for term, (first, last) in ends.items()]
    report.section(
        "Loss curves",
        "What each term asks for: "
        + "; ".join(f"{term}, {TERMS[term]}" for term in terms if term in TERMS)
        + ".",
    )
    rows = (len(terms) + 1) // 2
    columns = min(2, len(terms))
    with drawing(rows, columns, height=2.6 * rows) as (figure, axes):
        draw_losses(axes, records, terms)
        for spare in axes[len(terms) :]:
            spare.remove()
    caption = (
        f"Each logged value faint, their running mean strong. First to last tenth: {', '.join(changes)}."
    )
    report.figure(figure, caption, alt=f"Loss against step: {', '.join(changes)}")


def add_sentinel(report: Report, records: Sequence[Mapping[str, Any]]) -> None:
    """The collapse sentinel's curves, where it ran."""
    keys = sorted({key for record in records for key in record})
    ranks = {key: key.removeprefix(RANK) for key in keys if key.startswith(RANK)}
    cosines = {key: key.removeprefix(COSINE).replace("_", " and ") for key in keys if key.startswith(COSINE)}
    panels = [
        (ranks, "effective rank"),
        ({GAP: "optical to SAR"} if GAP in keys else {}, "modality gap"),
    ]
    shown = [(lines, label) for lines, label in panels if lines]
    if not shown:
        return
    report.section("Collapse sentinel")
    with drawing(1, len(shown), height=2.9) as (figure, axes):
        for axis, (lines, label) in zip(axes, shown, strict=True):
            draw_series(axis, records, lines, label)
            axis.set_title(label)
    report.figure(
        figure,
        "Measured on a fixed batch while training. Effective rank: directions in use, by modality; near 1 "
        "the features have collapsed. Modality gap: distance between the modalities' centres, from 0 to 2.",
        alt="Effective rank and modality gap against step",
    )
    if cosines:
        with drawing(height=2.9) as (figure, axes):
            draw_series(axes[0], records, cosines, "cosine of the gradients")
            axes[0].axhline(0, color="#8a8f98", linewidth=1, linestyle=":")
            axes[0].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        report.figure(
            figure,
            "Do the losses pull together? Cosine between the gradients of each two of them in the encoder: "
            "above 0 they help each other, near 0 they mind their own business, below 0 they are at odds.",
            alt="Cosine between the gradients of each pair of losses against step",
        )


def add_reconstructions(report: Report, grid: PictureGrid) -> None:
    """Self and cross reconstructions."""
    report.section("Reconstructions")
    report.pictures(
        grid,
        "Gray squares of the masked input are what the encoder never saw. Self: they are filled in from the "
        "visible patches of the same modality. Cross: from the visible patches of the other modality alone, "
        "towards a target degraded to gray, so the model need not invent colour. Where the loss standardises "
        "its targets, filled-in patches are shown with the brightness and contrast of the true ones.",
    )


def add_spectra(
    report: Report, spectra: Mapping[str, Spectrum], references: Mapping[str, Spectrum] | None = None
) -> None:
    """Singular value spectra by modality, with those of a reference encoder dashed."""
    references = references or {}
    report.section("Singular value spectra")
    with drawing(1, len(spectra), height=3.3) as (figure, axes):
        for axis, (name, spectrum) in zip(axes, spectra.items(), strict=True):
            lines = {"pretrained": spectrum} if name in references else {name: spectrum}
            lines |= {"random weights": references[name]} if name in references else {}
            colours = {key: MODALITY_COLOURS.get(name, "#2f7ed8") for key in lines}
            draw_spectra(axis, lines, colours | {"random weights": "#8a8f98"}, dashed=("random weights",))
            axis.set_title(display(name))
    summary = ", ".join(f"{name} {spectrum.effective_rank:.1f}" for name, spectrum in spectra.items())
    report.figure(
        figure,
        "Singular values of the centred features, the largest set to 1. A line that falls steeply at once "
        "means that a few directions carry everything (collapse); a slow fall means that many directions are "
        "in use. The effective rank counts them: the exponential of the entropy of the values. It is no "
        "score: random weights spread over many directions too.",
        alt=f"Singular values against their index; effective ranks: {summary}",
    )


def add_alignment(report: Report, alignments: Mapping[str, Alignment]) -> None:
    """Embedding cosine against structural similarity."""
    report.section("Alignment of patches")
    colours = {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(alignments)}
    with drawing(height=3.4) as (figure, axes):
        draw_alignment(axes[0], alignments, colours)
    trends = ", ".join(f"{label} {a.trend:+.2f}" for label, a in alignments.items())
    report.figure(
        figure,
        "Patches sorted by how alike their optical and SAR images are (SSIM), in bins of equal count. Each "
        "modality's mean is taken away first. Dotted: chance, the cosine with the same position of another "
        "place. The distance of a line from its dotted level is alignment by content; a line that falls to "
        f"the right aligns unlike patches more. Rank correlation: {trends}.",
        alt=f"Cosine of the embeddings against structural similarity; rank correlations: {trends}",
    )


def add_map(report: Report, pooled: Mapping[str, Tensor]) -> None:
    """UMAP of both modalities together."""
    report.section("Map of the pairs")
    pairs = project_pairs(*(pooled[name] for name in MODALITY_NAMES))
    with drawing(height=4.8) as (figure, axes):
        draw_pairs(axes[0], pairs)
    report.figure(
        figure,
        "One point an image, a thin line between the two sides of a pair. Two clouds with parallel lines: "
        "the modalities keep what is their own and order the places alike. Crossing lines: they disagree.",
        alt="Two-dimensional map of optical and SAR features, pairs joined by lines",
    )
