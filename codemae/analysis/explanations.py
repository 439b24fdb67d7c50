"""Sections of a report that explain features: dimensions, saliency, bands, attention, correspondence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import ConnectionPatch
from torch import Tensor

from codemae.analysis.attention import attention_received
from codemae.analysis.correspondence import found_in_place, match_patches, mirror_grid, without_place
from codemae.analysis.dimensions import (
    SET_COLOURS,
    SETS,
    dimension_alignment,
    draw_alignment_histogram,
    draw_dimension_map,
    evenly,
    map_dimensions,
    split_dimensions,
)
from codemae.analysis.pairs import encode_sides, take_pairs
from codemae.analysis.projection import Projection
from codemae.analysis.report import Report, display, drawing
from codemae.analysis.run_encoders import NotInThisEncoder
from codemae.analysis.saliency import (
    Score,
    band_importance,
    empty_share,
    grad_cam,
    mean_of_dimensions,
    overlap,
)
from codemae.data.batch import Batch
from codemae.modality import MODALITY_NAMES

ALL = "all"
MOST_PAIRS = 64
MOST_DIMENSIONS = 512
SHOWN_PAIRS = 3
LEAST_PAIRS = 4


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is explained.

    Attributes:
        encoder: With ``forward`` to tokens and ``pooled``, in eval mode.
        batch: Pairs, or images of one modality where the encoder takes no other or the index has no pairs.
        tokens: Of them, (B, N, D) by modality.
        projection: What the run's method compares modalities by, where it is not the encoder's own features.
        features: (B, K) by modality: means of the tokens, projected where there is a projection.
        sets: Numbers of the dimensions in each set: ``SETS``, or ``ALL`` where there is one modality.
        words: Which dimensions the sets are.
        spent: Leading pairs that chose the sets; what compares the sets is drawn from the others.
    """

    encoder: Any
    batch: Batch
    tokens: Mapping[str, Tensor]
    projection: Projection | None
    features: Mapping[str, Tensor]
    sets: Mapping[str, Tensor]
    words: str
    spent: int

    @property
    def modalities(self) -> tuple[str, ...]:
        """Sides of the pairs the encoder takes."""
        return tuple(self.tokens)

    @property
    def samples(self) -> str:
        """What the batch holds: pairs or images."""
        return "pairs" if len(self.tokens) > 1 else "images"

    def both(self) -> tuple[Tensor, Tensor]:
        """Features of both sides of the pairs that did not choose the sets.

        Raises:
            NotInThisEncoder: There is one side only.
        """
        self.need_both()
        return self.features["optical"][self.spent :], self.features["sar"][self.spent :]

    def need_both(self) -> None:
        """Refuses images of one modality.

        Raises:
            NotInThisEncoder: There are no others.
        """
        missing = [display(name) for name in MODALITY_NAMES if name not in self.tokens]
        if missing:
            raise NotInThisEncoder(
                f"there are no {' and no '.join(missing)} images the encoder takes, and this compares both"
            )

    def unspent(self, count: int) -> Batch:
        """Up to ``count`` of the pairs that did not choose the sets."""
        return take_pairs(self.batch, slice(self.spent, self.spent + count))

    def scores(self, modality: str) -> dict[str, Score]:
        """For each set of dimensions, the mean of its standardised dimensions."""
        features = self.features[modality]
        centre, scale = features.mean(0), features.std(0).clamp(min=1e-6)

        def score(pooled: Tensor, dimensions: Tensor) -> Tensor:
            embedded = self.projection(pooled, modality) if self.projection else pooled
            return mean_of_dimensions(embedded, dimensions, centre, scale)

        return {name: partial(score, dimensions=dimensions) for name, dimensions in self.sets.items()}


def add_dimensions(report: Report, subject: Subject, title: str) -> None:
    """Histogram of the dimensions' alignment, and their t-SNE."""
    optical, sar = subject.both()
    alignment = dimension_alignment(optical, sar)
    report.section(title)
    with drawing(height=3.0) as (figure, axes):
        draw_alignment_histogram(axes[0], alignment, subject.sets)
    aligned = float((alignment < 0.25).double().mean())
    means = ", ".join(f"{name} {float(alignment[subject.sets[name]].mean()):.2f}" for name in SETS)
    report.figure(
        figure,
        "Each dimension's correlation between the two sides of the pairs. Left: it says the same of both "
        f"images; at the dotted line it says nothing of the other one. {subject.words} Means: {means}.",
        alt=f"{aligned:.0%} of the dimensions correlate above one half between the modalities",
    )
    kept = evenly(len(alignment), MOST_DIMENSIONS)
    places = {name: torch.isin(kept, subject.sets[name]).nonzero().flatten() for name in SETS}
    with drawing(height=4.2) as (figure, axes):
        draw_dimension_map(axes[0], map_dimensions(optical[:, kept], sar[:, kept]), places)
    drawn = f", {len(kept)} of {len(alignment)}" if len(kept) < len(alignment) else ""
    report.figure(
        figure,
        f"t-SNE in which a point is a dimension{drawn}, described by its values over the pairs. A circle and "
        "a cross in one place: a dimension both modalities share.",
        alt="Map of the dimensions of both modalities",
    )


def add_saliency(report: Report, subject: Subject, title: str) -> None:
    """Overlap of the Grad-CAM maps of both modalities, beside that of images that are no pairs."""
    subject.need_both()
    batch = subject.unspent(MOST_PAIRS)
    maps = {
        (name, modality): grad_cam(
            subject.encoder,
            batch.normalised(modality),
            modality,
            score,
            centre=subject.tokens[modality].mean(dim=0),
        )
        for modality in MODALITY_NAMES
        for name, score in subject.scores(modality).items()
    }
    report.section(title)
    means = []
    with drawing(height=2.9) as (figure, axes):
        for name in SETS:
            optical, sar = maps[name, "optical"], maps[name, "sar"]
            matched, shuffled = overlap(optical, sar), overlap(optical, sar.roll(1, dims=0))
            style: dict[str, Any] = {"bins": 20, "range": (0, 1), "color": SET_COLOURS[name]}
            axes[0].hist(matched.numpy(), alpha=0.6, label=name, **style)
            axes[0].hist(shuffled.numpy(), histtype="step", linestyle=":", label=f"{name}, shuffled", **style)
            means.append(
                f"{name} {float(matched.mean()):.2f}, shuffled {float(shuffled.mean()):.2f}, "
                f"{empty_share(optical, sar):.0%} of the maps empty"
            )
        axes[0].set_xlabel("overlap of the optical and the SAR map")
        axes[0].set_ylabel("pairs")
        axes[0].legend()
    summary = "; ".join(means)
    report.figure(
        figure,
        "Grad-CAM of the mean of each set of dimensions, each modality's mean activation at each place taken "
        f"away first. {subject.words} Overlap is the cosine of the two maps, 0 elsewhere, 1 the "
        f"same place; shuffled: with the SAR map of another place, what chance gives. Means: {summary}.",
        alt=f"Histogram of the overlap; means {summary}",
    )
    _overlay(
        report, batch, {name: maps["common", name] for name in MODALITY_NAMES}, "Grad-CAM, common dimensions"
    )


def add_bands(report: Report, subject: Subject, title: str) -> None:
    """Importance of each input band by integrated gradients."""
    batch = subject.unspent(MOST_PAIRS // 4)
    rows = []
    for modality in subject.modalities:
        images = batch.normalised(modality)
        shares = {
            name: torch.std_mean(100 * band_importance(subject.encoder, images, modality, score), dim=0)
            for name, score in subject.scores(modality).items()
        }
        for band in range(images.shape[1]):
            cells = [f"{mean[band]:.1f} ± {std[band]:.1f}%" for std, mean in shares.values()]
            rows.append([f"{display(modality)} {band + 1}", *cells])
    report.section(title)
    report.table(
        ["band", *subject.sets],
        rows,
        "Share of each band in the absolute integrated gradients from the mean image, of the mean of each "
        f"set of dimensions; mean and deviation over {len(batch)} {subject.samples}. {subject.words}",
    )


def add_attention(report: Report, subject: Subject, title: str) -> None:
    """Attention maps of the last layer."""
    batch = take_pairs(subject.batch, slice(SHOWN_PAIRS))
    maps = {
        name: attention_received(subject.encoder, batch.normalised(name), name) for name in subject.modalities
    }
    report.section(title)
    _overlay(report, batch, maps, "Attention each patch receives, mean over heads and tokens")


def add_correspondence(report: Report, subject: Subject, title: str) -> None:
    """Patches that find their partners: in the other modality or, where there is one, in the mirrored image.

    CMID's figure matches two augmented views of an image, or two images of a class, by the third stage of its
    encoder; here it is the last map, in which every patch has a known partner.
    """
    first, *others = subject.modalities
    images = subject.batch.unit(first)
    if others:
        tokens, partners = subject.tokens[first], subject.tokens[others[0]]
        pictures, names = (images, subject.batch.unit(others[0])), (display(first), display(others[0]))
        other = f"{display(others[0])} image"
    else:
        mirrored = replace(subject.batch, images={first: subject.batch.images[first].flip(-1)})
        tokens, partners = subject.tokens[first], encode_sides(subject.encoder, mirrored)[first]
        pictures, names = (images, images.flip(-1)), (display(first), f"{display(first)}, mirrored")
        other = "mirrored image"
    tokens, partners = without_place(tokens), without_place(partners)
    found, chance = found_in_place(tokens, partners if others else mirror_grid(partners))
    report.section(title)
    with drawing(SHOWN_PAIRS, 2, height=3.4 * SHOWN_PAIRS, width=7.0) as (figure, axes):
        for row in range(SHOWN_PAIRS):
            left, right = axes[2 * row : 2 * row + 2]
            for axis, picture, name in zip((left, right), pictures, names, strict=True):
                _show(axis, shown(picture[row : row + 1])[0], name if row == 0 else "")
            _draw_matches(left, right, tokens[row], partners[row], images.shape[-1])
    report.figure(
        figure,
        f"Lines join the twelve most similar pairs of patches that are each other's nearest in the {other}, "
        f"the mean at each place over all images of a side taken away first. Over {len(subject.batch)} "
        f"{subject.samples}, {found:.1%} of the {display(first)} patches find a patch of the {other} at most "
        f"one patch from the place that shows the same ground; in that of another place, {chance:.1%} do.",
        alt=f"Matches between patches of two images; {found:.1%} in place, {chance:.1%} by chance",
    )


EXPLANATIONS: Mapping[str, tuple[str, Callable[[Report, Subject, str], None]]] = {
    "dimensions": ("Dimensions one by one", add_dimensions),
    "saliency": ("Where the features come from", add_saliency),
    "bands": ("Which bands the features come from", add_bands),
    "attention": ("What the last layer attends to", add_attention),
    "correspondence": ("Feature correspondence", add_correspondence),
}


def explain(report: Report, subject: Subject, names: Sequence[str]) -> None:
    """Adds the sections asked for, in their own order.

    Args:
        report: What they are added to.
        subject: What they are about.
        names: Of ``EXPLANATIONS``, or ``ALL``: then a section that asks for what the encoder lacks says so
            instead.

    Raises:
        ValueError: There are too few pairs to show.
        NotInThisEncoder: The encoder lacks what a section asked for by name needs.
    """
    if names and len(subject.batch) < LEAST_PAIRS:
        raise ValueError(
            f"--explain needs at least {LEAST_PAIRS} {subject.samples}, the index gave {len(subject.batch)}"
        )
    for name, (title, add) in EXPLANATIONS.items():
        if name not in names and ALL not in names:
            continue
        try:
            add(report, subject, title)
        except NotInThisEncoder as error:
            if name in names:
                raise
            report.section(title, f"Not drawn: {error}.")


def shown(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) in [0, 1] of (B, C, H, W) with one, three or more bands (the first three)."""
    three = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    return np.asarray(three.permute(0, 2, 3, 1).clamp(0, 1))


def _overlay(report: Report, batch: Batch, maps: Mapping[str, Tensor], title: str) -> None:
    rows, columns = min(SHOWN_PAIRS, len(batch)), 2 * len(maps)
    with drawing(rows, columns, height=2.3 * rows) as (figure, axes):
        for row in range(rows):
            for place, name in enumerate(maps):
                plain, coloured = axes[columns * row + 2 * place : columns * row + 2 * place + 2]
                picture = shown(batch.unit(name)[row : row + 1])[0]
                side = round(maps[name].shape[1] ** 0.5)
                small = maps[name][row].view(1, 1, side, side)
                large = F.interpolate(small, size=picture.shape[:2], mode="bilinear")[0, 0]
                _show(plain, picture, display(name) if row == 0 else "")
                _show(coloured, picture)
                coloured.imshow(large.detach().numpy(), cmap="magma", alpha=0.55)
    same = " The same places for both modalities." if len(maps) > 1 else ""
    report.figure(figure, f"{title}; bright is more.{same}", alt=title)


def _show(axis: Axes, picture: np.ndarray, title: str = "") -> None:
    axis.imshow(picture)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    axis.set_title(title)


def _draw_matches(left: Axes, right: Axes, first: Tensor, second: Tensor, size: int) -> None:
    matches, side = match_patches(first, second), round(len(first) ** 0.5)
    patch = size / side
    for one, other in zip(matches.first.tolist(), matches.second.tolist(), strict=True):
        start, end = (((place % side + 0.5) * patch, (place // side + 0.5) * patch) for place in (one, other))
        line = ConnectionPatch(
            xyA=start, xyB=end, coordsA="data", coordsB="data", axesA=left, axesB=right, color="#d6588a", lw=1
        )
        right.add_artist(line)


def as_subject(
    encoder: Any, batch: Batch, tokens: Mapping[str, Tensor], projection: Projection | None = None
) -> Subject:
    """A subject whose encoder is frozen and in eval mode.

    The sets of dimensions are those the method trained; where it trained none, the first half of the pairs
    chooses them. They cannot be chosen on the pairs they are shown on: sorted by their own alignment, the
    dimensions of any encoder fall apart into two sets.

    Args:
        encoder: With ``forward`` to tokens and ``pooled``.
        batch: Pairs.
        tokens: Of the pairs, (B, N, D) by modality.
        projection: What the run's method compares modalities by.
    """
    encoder.eval().requires_grad_(False)
    features = {name: values.mean(dim=1) for name, values in tokens.items()}
    if projection:
        features = {name: projection(values, name) for name, values in features.items()}
    sets, words, spent = _sets_of(features, projection)
    return Subject(
        encoder=encoder,
        batch=batch,
        tokens=tokens,
        projection=projection,
        features=features,
        sets=sets,
        words=words,
        spent=spent,
    )


def _sets_of(
    features: Mapping[str, Tensor], projection: Projection | None
) -> tuple[dict[str, Tensor], str, int]:
    count, width = next(iter(features.values())).shape
    of = "projected dimensions" if projection else "dimensions"
    if len(features) < len(MODALITY_NAMES):
        return {ALL: torch.arange(width)}, f"All {of}: with one modality nothing tells them apart.", 0
    if projection and projection.common_share is not None:
        common = round(projection.common_share * width)
        if 0 < common < width:
            numbers = torch.arange(width)
            words = f"Common: the first {common} of {width} {of}, which training aligned; unique: the others."
            return {"common": numbers[:common], "unique": numbers[common:]}, words, 0
    spent = count // 2
    sets = split_dimensions(features["optical"][:spent], features["sar"][:spent])
    words = f"Common: the half of the {of} that {spent} other pairs align better; unique: the other half."
    return sets, words, spent
