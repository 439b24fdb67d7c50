"""A folder of result cards in the layout of the paper's tables, its figures in columns of their own."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from codemae.evaluation.card import Card, CardError, sample_std
from codemae.evaluation.published import TABLES, Column, Table
from codemae.evaluation.side_by_side import load_cards
from codemae.evaluation.tables import as_table


def summarise(folder: str | Path, *, markdown: bool = False, peers: bool = False) -> str:
    """Sets all cards under a folder into the tables of CoDe-MAE and Fus-MAE, and the rest into a list.

    A line is a column of the published table. A column holds the cards of one encoder under one protocol,
    selection and size, never mixed; the paper's figures stand in columns labelled as the paper's.

    Args:
        folder: Searched in depth for ``results.json``.
        markdown: Markdown in place of aligned columns.
        peers: Adds the other methods of the paper's tables, labelled alike.

    Raises:
        CardError: No card there, one is damaged, or two claim the same place.
    """
    cards = load_cards(folder)
    texts, placed = [], set()
    for table in TABLES:
        cells: dict[tuple[str, int], dict[Path, Card]] = defaultdict(dict)
        for path, card in cards:
            for number, column in enumerate(table.columns):
                if card.task == table.task and _belongs(card, column):
                    cells[_row_name(card, column), number][path] = card
                    placed.add(path)
        if cells:
            texts.append(_table(table, cells, markdown, peers))
    others = [(path, card) for path, card in cards if path not in placed]
    if others:
        texts.append(_list(others, markdown))
    return "\n\n".join(texts)


def _belongs(card: Card, column: Column) -> bool:
    name = "".join(letter for letter in card.dataset.lower() if letter.isalnum())
    return (
        name.startswith(column.dataset)
        and column.modality in (None, card.modality)
        and column.metric in (card.metric, *card.metrics)
        and card.shots == column.shots
        and card.settings.get("fraction", 1.0) == column.fraction
    )


def _row_name(card: Card, column: Column | None = None) -> str:
    drawn = f" {card.few_shot}" if card.few_shot else ""
    images = f"{card.modality} " if column is not None and column.modality is None else ""
    return f"{card.encoder} [{card.protocol}, {card.selected_by}{drawn}, {images}{card.size} px]"


def _table(table: Table, cells: dict[tuple[str, int], dict[Path, Card]], markdown: bool, peers: bool) -> str:
    """One line a benchmark and one column an encoder, as many benchmarks do not fit a line."""
    names = sorted({name for name, _ in cells})
    others = [name for name in table.rows if name != table.method] if peers else []
    shown = (table.method, *others)
    header = [f"Table {table.name}", *names, *(f"{name} ({table.source})" for name in shown)]
    rows = [header]
    for number, column in enumerate(table.columns):
        measured = [_cell(cells.get((name, number), {}), column.metric) for name in names]
        published = [table.rows[name][number] for name in shown]
        rows.append([column.title, *measured, *("-" if v is None else f"{v:g}" for v in published)])
    text = as_table(rows, markdown)
    note = f"{table.caption}. Columns marked ({table.source}) are its figures, not measured here."
    return f"Table {table.name}: {note}\n\n{text}"


def _cell(found: dict[Path, Card], metric: str) -> str:
    if not found:
        return "not yet run"
    cards = list(found.values())
    if any((card.values, card.split_hash) != (cards[0].values, cards[0].split_hash) for card in cards):
        raise CardError(
            f"several cards claim one place of the table: {', '.join(map(str, found))}; "
            "summarise them from folders of their own"
        )
    values = cards[0].values if cards[0].metric == metric else cards[0].metrics[metric]
    return f"{statistics.fmean(values):.2f} +- {sample_std(values):.2f}"


def _list(cards: Sequence[tuple[Path, Card]], markdown: bool) -> str:
    """Cards that no published table has a place for."""
    rows = [["task", "dataset", "modality", "shots", "encoder", "metric", "figure"]]
    for _, card in cards:
        shots = f"{card.shots} {card.few_shot}" if card.shots else "all"
        figure = f"{card.mean:.2f} +- {card.std:.2f}"
        names = [card.task, card.dataset, card.modality, shots, _row_name(card), card.metric, figure]
        rows.append(names)
    return f"No published table has a place for these:\n\n{as_table(rows, markdown)}"
