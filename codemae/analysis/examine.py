"""Everything that can be said about an encoder or a run from the pairs of an index, on one page."""

from collections.abc import Sequence
from pathlib import Path

from codemae.analysis.alignment import align
from codemae.analysis.explanations import as_subject, explain
from codemae.analysis.features import input_size
from codemae.analysis.pairs import encode_sides, modalities_of, pair_tokens, read_for, read_pairs
from codemae.analysis.projection import projection_of
from codemae.analysis.reconstruction import PictureGrid, reconstruction_grid
from codemae.analysis.report import Report, display, read_metrics
from codemae.analysis.run_encoders import load_run_encoder
from codemae.analysis.sections import (
    add_alignment,
    add_curves,
    add_map,
    add_reconstructions,
    add_sentinel,
    add_spectra,
    pair_headline,
)
from codemae.analysis.spectrum import singular_spectrum
from codemae.checkpoint import load_run_state, load_strictly
from codemae.config import build_config, read_yaml
from codemae.data.index import Index, open_index
from codemae.engine.settings import PretrainConfig
from codemae.methods.base import METHODS, Method
from codemae.modality import MODALITY_NAMES

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"


def examine(
    target: str,
    folders: Sequence[str | Path],
    out: Path,
    *,
    split: str | None = None,
    count: int = 256,
    size: int | None = None,
    with_map: bool = True,
    explanations: Sequence[str] = (),
) -> Path:
    """Writes ``report.html`` about an encoder, or about a run with its pictures.

    Of an encoder of one modality, or with an index without pairs, what compares two is left out.

    Args:
        target: A run folder, or what ``load_encoder`` takes.
        folders: Index folders.
        out: Where to write.
        split: One split only.
        count: How many pairs to look at, or images of one modality.
        size: Side in pixels; the encoder's own when not given.
        with_map: Whether to fit the UMAP.
        explanations: Names of the further sections, of ``EXPLANATIONS``, or ``ALL``.

    Returns:
        The page's path.
    """
    run = Path(target) if Path(target).is_dir() else None
    encoder = load_run_encoder(target)
    index = open_index(folders, split)
    batch = read_for(encoder, index, count, size or input_size(encoder))
    sides = encode_sides(encoder, batch)
    pooled = {name: tokens.mean(dim=1) for name, tokens in sides.items()}
    spectra = {name: singular_spectrum(features) for name, features in pooled.items()}
    pairs = pair_tokens(sides, batch) if len(sides) == len(MODALITY_NAMES) else None
    alignment = align(pairs.optical, pairs.sar, pairs.similarity, centre=True) if pairs else None

    shown = f"{len(batch)} {'pairs' if batch.paired else 'images'} of {', '.join(map(str, folders))}."
    if len(modalities_of(encoder)) < len(MODALITY_NAMES):
        shown += f" The encoder takes {' and '.join(map(display, sides))} images only."
    elif alignment is None:
        shown += f" There are no pairs among them: {' and '.join(map(display, sides))} images only."
    report = Report(f"What {Path(target).name} learned", shown)
    if alignment:
        report.headline(pair_headline(pooled, alignment))
    if run and (run / METRICS_FILE).is_file():
        records = read_metrics(run / METRICS_FILE)
        add_curves(report, records)
        add_sentinel(report, records)
    method = load_method(run) if run else None
    pictures = picture_method(method, index) if method else None
    if pictures:
        pictures.save(out / "reconstructions.png")
        add_reconstructions(report, pictures)
    add_spectra(report, spectra)
    if alignment:
        add_alignment(report, {"this encoder": alignment})
        if with_map:
            add_map(report, pooled)
    if explanations:
        projection = projection_of(method) if method else None
        explain(report, as_subject(encoder, batch, sides, projection), explanations)
    return report.write(out / "report.html")


def load_method(run: Path) -> Method:
    """The method of a run folder with the weights of its last checkpoint, in eval mode.

    Raises:
        codemae.checkpoint.CheckpointError: The folder holds no run state.
    """
    path = run / CONFIG_FILE
    config = build_config(PretrainConfig, [(str(path), read_yaml(path))], variants={"method": METHODS.config})
    method: Method = METHODS.get(config.method.name)(config.method)
    load_strictly(method, load_run_state(run)["method"])
    return method.eval()


def picture_run(run: Path, index: Index, count: int = 4) -> PictureGrid | None:
    """Reconstructions of a run's last checkpoint; None where its method reconstructs nothing.

    Args:
        run: The run folder.
        index: Where the pairs come from.
        count: How many pairs.
    """
    return picture_method(load_method(run), index, count)


def picture_method(method: Method, index: Index, count: int = 4) -> PictureGrid | None:
    """Reconstructions of a method; None where it reconstructs nothing, or there are no pairs.

    Args:
        method: In eval mode.
        index: Where the pairs come from.
        count: How many pairs.
    """
    reconstruct = getattr(method, "reconstruct", None)
    if reconstruct is None or len(index.paired_rows) < 2:
        return None
    size = next(iter(method.views.values())).size
    batch = read_pairs(index, count, size, num_patches=method.views.num_patches)
    return reconstruction_grid(reconstruct(batch), count)
