import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from codemae.analysis.reconstruction import reconstruction_grid
from codemae.analysis.report import INK, RULE, Report, draw_losses, draw_series, drawing, read_metrics, series

VOID = {"meta", "img", "br", "link", "input"}


class Nesting(HTMLParser):
    """Checks that every element is closed in order and remembers what the page asks a browser to load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "srcset"):
                self.loads.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


RECORDS = [
    {"step": s, "loss": 3.0 / (s + 1), "okd": 1.0 / (s + 1), "rank": 4.0 if s % 5 == 0 else None}
    for s in range(20)
]


def make_page() -> Report:
    report = Report("A run", "What <happened> & why")
    report.headline([("+8.1", "points on optical")])
    report.section("What ran", "With `codemae models`.")
    report.facts({"encoder": "hivit_tiny"})
    for _ in range(2):
        with drawing(1, 2) as (figure, axes):
            draw_losses(axes[:1], RECORDS, ["okd"])
            draw_series(axes[1], RECORDS, {"rank": "optical"}, "effective rank")
        report.figure(figure, "Falls.", alt='the "okd" curve')
    pictures = {"optical": torch.rand(2, 3, 8, 8), "sar": torch.rand(2, 3, 8, 8)}
    report.pictures(reconstruction_grid(pictures), "Pictures.")
    report.table(["modality", "random", "gain"], [["optical", "40.1", "+8.1"]], "Probe.", gains=[2])
    report.footer("End.")
    return report


def test_page_is_well_formed_and_loads_nothing(tmp_path: Path) -> None:
    page = make_page().write(tmp_path / "a" / "report.html").read_text()
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    assert parser.loads and all(load.startswith(("data:", "#")) for load in parser.loads)
    assert not re.search(r"@import|<script|<link|url\((?!#)", page)


def test_ids_of_different_figures_do_not_clash() -> None:
    page = make_page().html()
    parser = Nesting()
    parser.feed(page)
    assert len(parser.ids) > 20
    assert len(parser.ids) == len(set(parser.ids))
    references = re.findall(r"(?:url\(|href=\")#([^\")]+)", page)
    assert references and set(references) <= set(parser.ids)


def test_text_is_escaped_and_code_marked() -> None:
    page = make_page().html()
    assert "What &lt;happened&gt; &amp; why" in page
    assert "<code>codemae models</code>" in page
    assert 'aria-label="the &quot;okd&quot; curve"' in page


def test_figures_follow_the_page_colours() -> None:
    page = make_page().html()
    assert INK not in page and RULE not in page
    assert "currentColor" in page and "var(--rule)" in page


def test_series_skips_records_without_the_key() -> None:
    assert series(RECORDS, "rank") == ([0, 5, 10, 15], [4.0, 4.0, 4.0, 4.0])
    assert series([{"event": "resume"}], "loss") == ([], [])


def test_metrics_cut_off_at_the_end_are_read_and_in_the_middle_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"step": 2, "lo\n' + json.dumps({"step": 3}) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError, match="run folder"):
        read_metrics(tmp_path / "absent.jsonl")
