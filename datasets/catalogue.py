"""Writes the table of all cards into the README beside it: python datasets/catalogue.py [--check]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.card import FOLDER, USES, Card, read_card
from recipes.plan import PrepareError, write_whole

README = Path(__file__).resolve().parent / "README.md"
BEGIN = "<!-- catalogue: written by python datasets/catalogue.py -->"
END = "<!-- end of the catalogue -->"
COMMAND = "python datasets/catalogue.py"

_TITLES = {"pretraining": "For pretraining", "benchmark": "Benchmarks"}
_HEAD = (
    "source",
    "task",
    "modality",
    "resolution",
    "counts",
    "size",
    "licence",
    "citation",
    "how to get it",
    "prepare it",
    "layout",
)


def table(cards: Sequence[Card]) -> str:
    """All cards as Markdown, those for pretraining first; a card of both uses stands in both tables."""
    parts = []
    for use in USES:
        rows = [_row(card) for card in cards if use in card.use]
        if rows:
            head = [f"| {' | '.join(_HEAD)} |", "|" + "---|" * len(_HEAD)]
            parts.append("\n".join([f"### {_TITLES[use]}", "", *head, *rows]))
    return "\n\n".join(parts) + "\n"


def _row(card: Card) -> str:
    layout = f"[learned here]({card.layout_source})" if card.layout == "verified" else "unverified"
    cells = (
        f"[{_plain(card.title)}]({card.homepage})",
        card.task,
        " + ".join(card.modalities),
        card.resolution,
        card.samples,
        card.size or "unknown",
        card.licence,
        card.citation,
        " ".join(filter(None, (card.get, card.notes))),
        f"`{card.command}`",
        layout,
    )
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Text that stays inside its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def rewritten(readme: str, cards: Sequence[Card]) -> str:
    """The README with the table of these cards between its markers.

    Raises:
        PrepareError: It has no such markers.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise PrepareError(f"the README needs one line {BEGIN!r} and, below it, one line {END!r}")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(cards)}\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; returns its exit code: 1 for a stale table under ``--check``, 2 for an error."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the table is stale")
    parser.add_argument("--cards", type=Path, default=FOLDER, metavar="DIR", help="folder of the cards")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE", help="file with the markers")
    args = parser.parse_args(argv)
    try:
        names = sorted(path.stem for path in args.cards.glob("*.yaml"))
        if not names:
            raise PrepareError(f"no card in {args.cards}")
        cards = [read_card(name, args.cards) for name in names]
        present = args.readme.read_text()
        wanted = rewritten(present, cards)
    except (PrepareError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if wanted == present:
        print(f"{args.readme} is up to date with {len(cards)} cards")
        return 0
    if args.check:
        print(f"{args.readme} is not what the cards say; run {COMMAND}", file=sys.stderr)
        return 1
    write_whole(args.readme, wanted)
    print(f"wrote {len(cards)} cards into {args.readme}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
