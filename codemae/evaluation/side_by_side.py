"""A folder of result cards as one table: a line a measurement, a column an encoder."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from codemae.evaluation.card import CARD_NAME, MUST_AGREE, Card, CardError, NotComparableError, sample_std
from codemae.evaluation.tables import as_table

BEGIN = "<!-- results: begin; written by `codemae summary DIR --side-by-side --into THIS_FILE` -->"
END = "<!-- results: end -->"

EPOCHS = {"last": "last epoch", "val": "epoch best on validation", "test": "epoch best on test"}
TASKS = {"linear_probing": "linear probe", "classification": "fine-tuned"}


def load_cards(folder: str | Path) -> list[tuple[Path, Card]]:
    """All cards under a folder, in the order of their paths.

    Raises:
        CardError: There are none, or one is damaged.
    """
    paths = sorted(Path(folder).rglob(CARD_NAME))
    if not paths:
        raise CardError(f"no {CARD_NAME} under {folder}; evaluations write one in their --output_dir")
    return [(path, Card.load(path)) for path in paths]


def side_by_side(folder: str | Path, *, markdown: bool = False) -> str:
    """Sets all cards under a folder side by side; the best mean of a line is bold in Markdown.

    Cards of one line answer one question: whatever ``codemae compare`` wants equal is equal in them. The
    nearest-neighbour figure of a linear probe has a line of its own.

    Raises:
        CardError: No card, a damaged one, or two of one encoder claim one place.
        NotComparableError: Two cards of one line differ in a field that must agree; it is named.
    """
    lines: dict[tuple[str, ...], dict[str, tuple[Path, Card]]] = {}
    for path, card in load_cards(folder):
        found = lines.setdefault(_question(card), {})
        if card.encoder in found:
            raise CardError(
                f"{found[card.encoder][0]} and {path} claim one place; keep them in folders apart"
            )
        found[card.encoder] = path, card
    for found in lines.values():
        _check_comparable(list(found.values()))
    encoders = sorted({name for found in lines.values() for name in found}, key=_rank)
    rows = [["dataset", "images", "labels", "measured", *encoders]]
    for question in sorted(lines, key=_line_rank):
        cards = {name: card for name, (_, card) in lines[question].items()}
        task, dataset, modality, labels, metric = question
        shown = [dataset, modality, labels]
        measured = f"{TASKS.get(task, task)}, {metric.replace('_', ' ')}"
        rows.append(
            [*shown, measured, *_figures({n: c.values for n, c in cards.items()}, encoders, markdown)]
        )
        for extra in sorted({name for card in cards.values() for name in card.metrics if name[:4] == "knn_"}):
            values = {name: card.metrics[extra] for name, card in cards.items() if extra in card.metrics}
            neighbours = next(iter(cards.values())).settings.get("neighbours", "k")
            what = f"{neighbours} nearest neighbours, {extra[4:].replace('_', ' ')}"
            rows.append([*shown, what, *_figures(values, encoders, markdown)])
    return as_table(rows, markdown)


def write_into(path: str | Path, table: str) -> None:
    """Puts a Markdown table between the two markers of a file, in place of what stands there.

    Raises:
        CardError: The file is missing or has no such markers.
    """
    path = Path(path)
    if not path.is_file():
        raise CardError(f"{path}: no such file")
    text = path.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise CardError(f"{path} has no place for the table; add these two lines:\n{BEGIN}\n{END}")
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


def _question(card: Card) -> tuple[str, ...]:
    """What makes a line: task, dataset, images, labels and the rule that chose the epoch, metric."""
    fraction = card.settings.get("fraction", 1)
    drawn = "" if card.few_shot in (None, "per_class") else f" {card.few_shot}"
    labels = f"{card.shots}-shot{drawn}" if card.shots else "all" if fraction == 1 else f"{fraction:.0%}"
    images = f"{card.modality} {card.size} px"
    return card.task, card.dataset, images, f"{labels}, {EPOCHS[card.selected_by]}", card.metric


def _check_comparable(found: Sequence[tuple[Path, Card]]) -> None:
    first_path, first = found[0]
    for path, card in found[1:]:
        for name in MUST_AGREE:
            if getattr(card, name) != getattr(first, name):
                raise NotComparableError(
                    f"{first_path} and {path} differ in {name}, so they do not stand in one line of a table: "
                    f"{getattr(first, name)} against {getattr(card, name)}"
                )


def _rank(encoder: str) -> tuple[bool, bool, str]:
    """Random weights first, encoder files next, ready-made models last."""
    return not encoder.startswith("random:"), not encoder.endswith(".safetensors"), encoder


def _line_rank(question: tuple[str, ...]) -> tuple[object, ...]:
    """By dataset, the fewest labels first."""
    task, dataset, modality, labels, metric = question
    shots = re.match(r"(\d+)-shot", labels)
    return dataset, modality, task != "linear_probing", int(shots[1]) if shots else 10**9, labels, metric


def _figures(values: dict[str, list[float]], encoders: Sequence[str], markdown: bool) -> list[str]:
    best = max(statistics.fmean(seeds) for seeds in values.values())
    cells = []
    for name in encoders:
        if name not in values:
            cells.append("-")
            continue
        mean = statistics.fmean(values[name])
        cell = f"{mean:.2f} ± {sample_std(values[name]):.2f}"
        cells.append(f"**{cell}**" if markdown and len(values) > 1 and mean == best else cell)
    return cells
