"""Sections of a report that explain features: dimensions, saliency, bands, attention, correspondence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from codemae.analysis.attention import attention_received
from codemae.analysis.correspondence import found_in_place, match_patches
from codemae.analysis.dimensions import (
    SET_COLOURS,
    SETS,
    dimension_alignment,
    draw_alignment_histogram,
    draw_dimension_map,
    map_dimensions,
    split_dimensions,
)
from codemae.analysis.pairs import PairTokens, first_pairs
from codemae.analysis.report import Report, display, drawing
from codemae.analysis.saliency import Score, band_importance, grad_cam, mean_of_dimensions, overlap
from codemae.data.batch import Batch
from codemae.modality import MODALITY_NAMES

MOST_PAIRS = 64
SHOWN_PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is explained.

    Attributes:
        encoder: With ``forward`` to tokens and ``pooled``, in eval mode.
        batch: Pairs.
        tokens: Of the pairs.
    """

    encoder: Any
    batch: Batch
    tokens: PairTokens

    def scores(self, modality: str) -> dict[str, Score]:
        """For each set of dimensions, the mean of its standardised dimensions."""
        pooled = self.tokens.pooled()
        sets = split_dimensions(pooled["optical"], pooled["sar"])
        features = pooled[modality]
        centre, scale = features.mean(0), features.std(0).clamp(min=1e-6)
        return {
            name: partial(mean_of_dimensions, dimensions=sets[name], centre=centre, scale=scale)
            for name in SETS
        }


def add_dimensions(report: Report, subject: Subject) -> None:
    """Histogram of the dimensions' alignment, and their t-SNE."""
    pooled = subject.tokens.pooled()
    optical, sar = pooled["optical"], pooled["sar"]
    sets, alignment = split_dimensions(optical, sar), dimension_alignment(optical, sar)
    report.section("Dimensions one by one")
    with drawing(height=3.0) as (figure, axes):
        draw_alignment_histogram(axes[0], alignment, sets)
    aligned = float((alignment < 0.25).double().mean())
    report.figure(
        figure,
        "Each dimension's correlation between the two sides of the pairs. Left: it says the same of both "
        "images; at the dotted line it says nothing of the other one. Blue is the better aligned half.",
        alt=f"{aligned:.0%} of the dimensions correlate above one half between the modalities",
    )
    with drawing(height=4.2) as (figure, axes):
        draw_dimension_map(axes[0], map_dimensions(optical, sar), sets)
    report.figure(
        figure,
        "t-SNE in which a point is a dimension, described by its values over the pairs. A circle and a cross "
        "in one place: a dimension both modalities share.",
        alt="Map of the dimensions of both modalities",
    )


def add_saliency(report: Report, subject: Subject) -> None:
    """Overlap of the Grad-CAM maps of both modalities."""
    batch = first_pairs(subject.batch, MOST_PAIRS)
    report.section("Where the features come from")
    overlaps: dict[str, Tensor] = {}
    maps: dict[tuple[str, str], Tensor] = {}
    for modality in MODALITY_NAMES:
        for name, score in subject.scores(modality).items():
            maps[name, modality] = grad_cam(subject.encoder, batch.normalised(modality), modality, score)
    for name in SETS:
        overlaps[name] = overlap(*(maps[name, modality] for modality in MODALITY_NAMES))
    with drawing(height=2.9) as (figure, axes):
        for name in SETS:
            axes[0].hist(
                overlaps[name].numpy(), bins=20, range=(0, 1), alpha=0.6, color=SET_COLOURS[name], label=name
            )
        axes[0].set_xlabel("overlap of the optical and the SAR map")
        axes[0].set_ylabel("pairs")
        axes[0].legend()
    means = ", ".join(f"{name} {float(overlaps[name].mean()):.2f}" for name in SETS)
    report.figure(
        figure,
        "Grad-CAM of the better aligned half of the dimensions (common) and of the other (unique), for each "
        f"modality; overlap is the cosine of the two maps, 0 elsewhere, 1 the same place. Means: {means}.",
        alt=f"Histogram of the overlap; means {means}",
    )
    _overlay(
        report, batch, {name: maps["common", name] for name in MODALITY_NAMES}, "Grad-CAM, common dimensions"
    )


def add_bands(report: Report, subject: Subject) -> None:
    """Importance of each input band by integrated gradients."""
    batch = first_pairs(subject.batch, MOST_PAIRS // 4)
    report.section("Which bands the features come from")
    rows = []
    for modality in MODALITY_NAMES:
        images = batch.normalised(modality)
        shares = {
            name: band_importance(subject.encoder, images, modality, score).mean(0)
            for name, score in subject.scores(modality).items()
        }
        for band in range(images.shape[1]):
            cells = [f"{100 * float(shares[name][band]):.1f}%" for name in SETS]
            rows.append([f"{display(modality)} {band + 1}", *cells])
    report.table(
        ["band", *SETS],
        rows,
        "Share of each band in the absolute integrated gradients from the mean image, over "
        f"{len(batch)} pairs, for the better aligned half of the dimensions and the other.",
    )


def add_attention(report: Report, subject: Subject) -> None:
    """Attention maps of the last layer."""
    batch = first_pairs(subject.batch, SHOWN_PAIRS)
    report.section("What the last layer attends to")
    maps = {
        name: attention_received(subject.encoder, batch.normalised(name), name) for name in MODALITY_NAMES
    }
    _overlay(report, batch, maps, "Attention each patch receives, mean over heads and tokens")


def add_correspondence(report: Report, subject: Subject) -> None:
    """Patches of one modality that find their partners in the other."""
    tokens = {"optical": subject.tokens.optical, "sar": subject.tokens.sar}
    # Each modality's mean token is taken away first: it says which modality, not which place.
    tokens = {name: values - values.mean(dim=(0, 1)) for name, values in tokens.items()}
    found, chance = found_in_place(tokens["optical"], tokens["sar"])
    report.section("Feature correspondence")
    pictures = {name: shown(subject.batch.unit(name)) for name in MODALITY_NAMES}
    with drawing(SHOWN_PAIRS, 2, height=3.4 * SHOWN_PAIRS, width=7.0) as (figure, axes):
        for row in range(SHOWN_PAIRS):
            left, right = axes[2 * row : 2 * row + 2]
            _draw_matches(left, right, {name: value[row] for name, value in pictures.items()}, tokens, row)
    report.figure(
        figure,
        "Lines join the twelve most similar pairs of patches that are each other's nearest in the other "
        f"modality's image. Over {len(subject.batch)} pairs, {found:.1%} of the optical patches find a SAR "
        f"patch at most one patch from their own place; drawing at random would give {chance:.1%}.",
        alt=f"Matches between optical and SAR patches; {found:.1%} in place",
    )


EXPLANATIONS: Mapping[str, Callable[[Report, Subject], None]] = {
    "dimensions": add_dimensions,
    "saliency": add_saliency,
    "bands": add_bands,
    "attention": add_attention,
    "correspondence": add_correspondence,
}


def explain(report: Report, subject: Subject, names: Sequence[str]) -> None:
    """Adds the sections asked for, in their own order.

    Raises:
        ValueError: The encoder lacks what a section needs, or there are too few pairs to show.
    """
    if names and len(subject.batch) < SHOWN_PAIRS:
        raise ValueError(f"--explain needs at least {SHOWN_PAIRS} pairs, the index gave {len(subject.batch)}")
    for name, add in EXPLANATIONS.items():
        if name in names:
            add(report, subject)


def shown(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1] of (B, C, H, W) with one, three or more bands (the first three)."""
    three = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return np.asarray(three.permute(0, 2, 3, 1).clamp(0, 1))


def _overlay(report: Report, batch: Batch, maps: Mapping[str, Tensor], title: str) -> None:
    with drawing(SHOWN_PAIRS, 4, height=2.3 * SHOWN_PAIRS) as (figure, axes):
        for row in range(SHOWN_PAIRS):
            for place, name in enumerate(MODALITY_NAMES):
                plain, coloured = axes[4 * row + 2 * place : 4 * row + 2 * place + 2]
                picture = shown(batch.unit(name)[row : row + 1])[0]
                side = round(maps[name].shape[1] ** 0.5)
                small = maps[name][row].view(1, 1, side, side)
                large = F.interpolate(small, size=picture.shape[:2], mode="bilinear")[0, 0]
                for axis in (plain, coloured):
                    axis.imshow(picture)
                    axis.set_xticks([])
                    axis.set_yticks([])
                    axis.grid(visible=False)
                coloured.imshow(large.detach().numpy(), cmap="magma", alpha=0.55)
                if row == 0:
                    plain.set_title(display(name))
    report.figure(figure, f"{title}; bright is more. The same places for both modalities.", alt=title)


def _draw_matches(
    left: Axes, right: Axes, pictures: Mapping[str, np.ndarray], tokens: Mapping[str, Tensor], row: int
) -> None:
    matches = match_patches(tokens["optical"][row], tokens["sar"][row])
    side = round(tokens["optical"].shape[1] ** 0.5)
    for axis, name in ((left, "optical"), (right, "sar")):
        axis.imshow(pictures[name])
        axis.set_xticks([])
        axis.set_yticks([])
        axis.grid(visible=False)
        if row == 0:
            axis.set_title(display(name))
    patch = pictures["optical"].shape[0] / side
    for first, second in zip(matches.first.tolist(), matches.second.tolist(), strict=True):
        start, end = (
            ((place % side + 0.5) * patch, (place // side + 0.5) * patch) for place in (first, second)
        )
        line = ConnectionPatch(
            xyA=start, xyB=end, coordsA="data", coordsB="data", axesA=left, axesB=right, color="#d6588a", lw=1
        )
        right.add_artist(line)


def as_subject(encoder: Any, batch: Batch, tokens: PairTokens) -> Subject:
    """A subject whose encoder is frozen and in eval mode."""
    encoder.eval().requires_grad_(False)
    # Tensors made in inference mode cannot take part in gradients; copies of them can.
    copied = PairTokens(
        optical=tokens.optical.clone(), sar=tokens.sar.clone(), similarity=tokens.similarity.clone()
    )
    return Subject(encoder=encoder, batch=batch, tokens=copied)
