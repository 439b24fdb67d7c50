"""A folder of result cards in the layout of the paper's tables, its figures in columns of their own."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from codemae.evaluation.card import CARD_NAME, Card, CardError
from codemae.evaluation.published import SOURCE, TABLES, Column, Table
from codemae.evaluation.tables import as_table

OURS = "CoDe-MAE"


def summarise(folder: str | Path, *, markdown: bool = False, peers: bool = False) -> str:
    """Sets all cards under a folder into the paper's Tables III, V and VI, and the rest into a list.

    A line is a column of the published table. A column holds the cards of one encoder under one protocol,
    selection and size, never mixed; the paper's figures stand in columns labelled as the paper's.

    Args:
        folder: Searched in depth for ``results.json``.
        markdown: Markdown in place of aligned columns.
        peers: Adds the other methods of the paper's tables, labelled alike.

    Raises:
        CardError: No card there, one is damaged, or two claim the same place.
    """
    paths = sorted(Path(folder).rglob(CARD_NAME))
    if not paths:
        raise CardError(f"no {CARD_NAME} under {folder}; evaluations write one in their --output_dir")
    cards = [(path, Card.load(path)) for path in paths]
    texts, placed = [], set()
    for table in TABLES:
        cells: dict[tuple[str, int], dict[Path, Card]] = defaultdict(dict)
        for path, card in cards:
            for number, column in enumerate(table.columns):
                if card.task == table.task and _belongs(card, column):
                    cells[_row_name(card), number][path] = card
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
        and card.modality == column.modality
        and card.metric == column.metric
        and card.shots == column.shots
    )


def _row_name(card: Card) -> str:
    drawn = f" {card.few_shot}" if card.few_shot else ""
    return f"{card.encoder} [{card.protocol}, {card.selected_by}{drawn}, {card.size} px]"


def _table(table: Table, cells: dict[tuple[str, int], dict[Path, Card]], markdown: bool, peers: bool) -> str:
    """One line a benchmark and one column an encoder, as many benchmarks do not fit a line."""
    names = sorted({name for name, _ in cells})
    others = [name for name in table.rows if name != OURS] if peers else []
    header = [f"Table {table.name}", *names, *(f"{name} ({SOURCE})" for name in (OURS, *others))]
    rows = [header]
    for number, column in enumerate(table.columns):
        measured = [_cell(cells.get((name, number), {})) for name in names]
        published = [table.rows[name][number] for name in (OURS, *others)]
        rows.append([column.title, *measured, *("-" if v is None else f"{v:g}" for v in published)])
    text = as_table(rows, markdown)
    note = f"{table.caption}. Columns marked ({SOURCE}) are its figures, not measured here."
    return f"Table {table.name}: {note}\n\n{text}"


def _cell(found: dict[Path, Card]) -> str:
    if not found:
        return "not yet run"
    cards = list(found.values())
    if any((card.values, card.split_hash) != (cards[0].values, cards[0].split_hash) for card in cards):
        raise CardError(
            f"several cards claim one place of the table: {', '.join(map(str, found))}; "
            "summarise them from folders of their own"
        )
    return f"{cards[0].mean:.2f} +- {cards[0].std:.2f}"


def _list(cards: Sequence[tuple[Path, Card]], markdown: bool) -> str:
    """Cards that no published table has a place for."""
    rows = [["task", "dataset", "modality", "shots", "encoder", "metric", "figure"]]
    for _, card in cards:
        shots = f"{card.shots} {card.few_shot}" if card.shots else "all"
        figure = f"{card.mean:.2f} +- {card.std:.2f}"
        names = [card.task, card.dataset, card.modality, shots, _row_name(card), card.metric, figure]
        rows.append(names)
    return f"No published table has a place for these:\n\n{as_table(rows, markdown)}"
