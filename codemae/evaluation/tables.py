"""Rows of text as a terminal table or as Markdown."""

from collections.abc import Sequence


def as_table(rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Aligned columns, or a Markdown table whose first row is the header.

    Args:
        rows: Of equal length.
        markdown: Which of the two.
    """
    if markdown:
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
