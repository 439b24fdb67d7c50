"""A self-contained HTML page about a run: figures inline, no script, nothing fetched."""

import base64
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from codemae.analysis.reconstruction import Picture, PictureGrid

INK, RULE = "#010203", "#010204"
"""Colours that figures are drawn in and the page replaces, so that they follow light and dark."""

COLOURS = {
    "reconstruction": "#2f7ed8",
    "okd": "#8a63d2",
    "ccl": "#d6588a",
    "cdr": "#1f9d77",
    "optical": "#2f7ed8",
    "sar": "#e07b39",
    "random": "#8a8f98",
}

STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{
  color-scheme: light dark;
  --paper: #fbfbf9; --panel: #ffffff; --ink: #1d2430; --soft: #5b6472; --rule: #e2e4e8; --accent: #2f6fbf;
  --good: #14795a; --bad: #b3362b;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #14171c; --panel: #1b1f26; --ink: #e8eaee; --soft: #a0a8b5; --rule: #333943; --accent: #7fb2f0;
    --good: #57c79f; --bad: #f08a80;
  }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}}
main {{ max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }}
h1 {{ font-size: clamp(1.7rem, 4vw, 2.4rem); line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .6rem; }}
h2 {{ font-size: 1.35rem; letter-spacing: -.01em; margin: 3.2rem 0 .4rem; padding-top: 1.4rem;
     border-top: 1px solid var(--rule); }}
p {{ margin: .5rem 0 1rem; max-width: 44rem; }}
.lead {{ font-size: 1.1rem; color: var(--soft); }}
.headline {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem;
            margin: 1.8rem 0 0; }}
.headline div {{ background: var(--panel); border: 1px solid var(--rule); border-radius: .7rem;
                padding: .9rem 1.1rem; }}
.headline b {{ display: block; font-size: 1.65rem; line-height: 1.25; letter-spacing: -.02em;
              font-variant-numeric: tabular-nums; }}
.headline span {{ color: var(--soft); font-size: .9rem; line-height: 1.35; display: block; }}
figure {{ margin: 1.3rem 0 2rem; background: var(--panel); border: 1px solid var(--rule);
         border-radius: .7rem; padding: 1.1rem 1.1rem .9rem; }}
figure svg {{ display: block; width: 100%; min-width: 34rem; height: auto; color: var(--ink); }}
figure svg text {{ font-family: inherit !important; }}
figcaption {{ color: var(--soft); font-size: .93rem; line-height: 1.5; margin-top: .8rem; max-width: 50rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: right; padding: .5rem .8rem; white-space: nowrap;
         border-bottom: 1px solid var(--rule); }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
thead th {{ color: var(--soft); font-weight: 600; font-size: .9rem; }}
tbody tr:last-child td {{ border-bottom: 0; }}
td.gain {{ font-weight: 700; color: var(--good); }}
td.loss {{ font-weight: 700; color: var(--bad); }}
th.words, td.words {{ text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1.4rem; margin: 1rem 0; }}
dt {{ color: var(--soft); }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
@media (max-width: 34rem) {{ dl {{ grid-template-columns: 1fr; gap: 0; }} dd {{ margin-bottom: .6rem; }} }}
.pictures {{ display: grid; gap: .3rem; align-items: center; min-width: 34rem; }}
.pictures span {{ color: var(--soft); font-size: .86rem; line-height: 1.25; padding: .2rem 0; }}
.pictures img {{ width: 100%; aspect-ratio: 1; display: block; border-radius: .25rem;
                image-rendering: pixelated; }}
.pictures .place {{ grid-column: 1 / -1; height: .5rem; }}
code {{ font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
footer {{ margin-top: 3.5rem; padding-top: 1.2rem; border-top: 1px solid var(--rule); color: var(--soft);
         font-size: .9rem; }}
</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
</header>
{body}
</main>
</body>
</html>
"""


class Report:
    """Collects sections and writes them as one HTML file.

    All text is escaped; back-quoted words become code.

    Args:
        title: Heading of the page.
        lead: One or two sentences under it.
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._parts: list[str] = []

    def headline(self, numbers: Sequence[tuple[str, str]]) -> None:
        """Adds large numbers side by side, each (number, what it is)."""
        cells = "".join(f"<div><b>{_text(n)}</b><span>{_text(what)}</span></div>" for n, what in numbers)
        self._parts.append(f'<div class="headline">{cells}</div>')

    def section(self, title: str, *paragraphs: str) -> None:
        """Starts a section."""
        self._parts.append(f"<h2>{_text(title)}</h2>")
        self._parts += [f"<p>{_text(paragraph)}</p>" for paragraph in paragraphs]

    def facts(self, facts: Mapping[str, object]) -> None:
        """Adds a list of terms and what they are."""
        rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(str(v))}</dd>" for k, v in facts.items())
        self._parts.append(f"<dl>{rows}</dl>")

    def figure(self, figure: Figure, caption: str, alt: str) -> None:
        """Adds a figure drawn inside ``drawing`` as SVG; ``alt`` is for those who cannot see it."""
        svg = _svg(figure, f"figure{len(self._parts)}")
        label = html.escape(alt, quote=True)
        svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        self._add_figure(f'<div class="scroll">{svg}</div>', caption)

    def pictures(self, grid: PictureGrid, caption: str) -> None:
        """Adds a grid of pictures under column titles; a gap sets each place apart from the next."""
        cells = ["<span></span>", *(f"<span>{_text(c)}</span>" for c in grid.columns)]
        for i, (label, row) in enumerate(grid.rows):
            if i and label == grid.rows[0][0]:
                cells.append('<span class="place"></span>')
            cells.append(f"<span>{_text(display(label))}</span>")
            for column, picture in zip(grid.columns, row, strict=True):
                alt = html.escape(f"{label}, {column}", quote=True)
                cells.append(
                    "<span></span>" if picture is None else f'<img alt="{alt}" src="{_data_uri(picture)}">'
                )
        columns = f"grid-template-columns: 4rem repeat({len(grid.columns)}, 1fr)"
        self._add_figure(
            f'<div class="scroll"><div class="pictures" style="{columns}">{"".join(cells)}</div></div>',
            caption,
        )

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        caption: str,
        gains: Sequence[int] = (),
        words: Sequence[int] = (),
    ) -> None:
        """Adds a table.

        Args:
            header: Titles of the columns.
            rows: Cells, row by row.
            caption: What the table shows.
            gains: Columns whose cells are green, or red below 0.
            words: Columns of text, which are set left and wrapped.
        """

        def cell(tag: str, column: int, text: str) -> str:
            kind = "words" if column in words else ""
            if tag == "td" and column in gains:
                kind = "loss" if text.startswith("-") else "gain"
            shown = f' class="{kind}"' if kind else ""
            return f"<{tag}{shown}>{_text(text)}</{tag}>"

        head = "".join(cell("th", i, text) for i, text in enumerate(header))
        body = "".join(
            f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows
        )
        self._add_figure(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>',
            caption,
        )

    def footer(self, text: str) -> None:
        """Adds the last lines of the page."""
        self._parts.append(f"<footer>{_text(text)}</footer>")

    def html(self) -> str:
        """The whole page."""
        return PAGE.format(title=_text(self.title), lead=_text(self.lead), body="\n".join(self._parts))

    def write(self, path: Path) -> Path:
        """Writes the page and returns its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        return path

    def _add_figure(self, content: str, caption: str) -> None:
        self._parts.append(f"<figure>{content}<figcaption>{_text(caption)}</figcaption></figure>")


@contextmanager
def drawing(
    rows: int = 1, columns: int = 1, *, width: float = 9.0, height: float = 3.6
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure in the page's style and its axes, row by row; draw inside the block."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
        yield figure, axes


def display(name: str) -> str:
    """A modality's name as readers know it; any other text as it is."""
    return "SAR" if name == "sar" else name


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; a last line cut off in the middle is left out.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; a run folder of pretrain/main.py holds one")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines):
                raise ValueError(f"{path}, line {number} is not JSON: {line[:60]!r}") from None
    return records


def series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of one key, from the records that have it."""
    found = [(int(r["step"]), float(r[key])) for r in records if r.get(key) is not None and "step" in r]
    return [step for step, _ in found], [value for _, value in found]


def draw_losses(axes: Sequence[Axes], records: Sequence[Mapping[str, Any]], terms: Sequence[str]) -> None:
    """Draws one term an axes: each logged value faint, their running mean strong."""
    for axis, term in zip(axes[: len(terms)], terms, strict=True):
        steps, values = series(records, term)
        colour = COLOURS.get(term, COLOURS["reconstruction"])
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axis.plot(steps, _running_mean(values), color=colour, linewidth=2)
        axis.set_title(term)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")


def draw_series(
    axes: Axes, records: Sequence[Mapping[str, Any]], keys: Mapping[str, str], ylabel: str
) -> None:
    """Draws several logged values into one axes.

    Args:
        axes: Where to draw.
        records: From ``read_metrics``.
        keys: Logged key to label.
        ylabel: What the vertical axis is.
    """
    for key, label in keys.items():
        steps, values = series(records, key)
        axes.plot(
            steps,
            values,
            marker="o",
            markersize=3.5,
            linewidth=1.6,
            label=display(label),
            color=COLOURS.get(label),
        )
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    if keys:
        axes.legend()


def _running_mean(values: Sequence[float]) -> list[float]:
    span = max(1, len(values) // 20)
    return [float(np.mean(values[max(0, i - span) : i + span + 1])) for i in range(len(values))]


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def _data_uri(picture: Picture) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg(figure: Figure, salt: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{salt}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{salt}-", text)
    return text.replace(INK, "currentColor").replace(RULE, "var(--rule)")
