from pathlib import Path
from typing import Any

import pytest
from data_makers import ROOT, make_card

from codemae.cli import main
from codemae.evaluation.card import CardError, NotComparableError
from codemae.evaluation.side_by_side import BEGIN, END, load_cards, side_by_side, write_into


def write(folder: Path, **changes: Any) -> Path:
    make_card(**changes).save(folder / "results.json")
    return folder


def test_a_line_is_a_measurement_and_a_column_an_encoder(tmp_path: Path) -> None:
    knn = {"neighbours": 20}
    write(
        tmp_path / "a", encoder="random:x", settings=knn, metrics={"knn_overall_accuracy": [30.0, 30.0, 33.0]}
    )
    write(
        tmp_path / "b",
        encoder="timm:y",
        values=[50.0, 50.0, 53.0],
        settings=knn,
        metrics={"knn_overall_accuracy": [29.0, 29.0, 29.0]},
    )
    write(tmp_path / "c", encoder="own.safetensors", task="classification", shots=40)
    write(tmp_path / "d", encoder="random:x", shots=None, few_shot=None, selected_by="val")
    write(
        tmp_path / "e", encoder="random:x", shots=None, few_shot=None, protocol="official", selected_by="test"
    )
    lines = side_by_side(tmp_path, markdown=True).splitlines()
    all_labels = "| eurosat | optical 128 px | all, epoch best on"
    assert lines == [
        "| dataset | images | labels | measured | random:x | own.safetensors | timm:y |",
        "|---|---|---|---|---|---|---|",
        "| eurosat | optical 128 px | 10-shot, last epoch | linear probe, overall accuracy "
        "| 42.00 ± 2.00 | - | **51.00 ± 1.73** |",
        "| eurosat | optical 128 px | 10-shot, last epoch | 20 nearest neighbours, overall accuracy "
        "| **31.00 ± 1.73** | - | 29.00 ± 0.00 |",
        f"{all_labels} test | linear probe, overall accuracy | 42.00 ± 2.00 | - | - |",
        f"{all_labels} validation | linear probe, overall accuracy | 42.00 ± 2.00 | - | - |",
        "| eurosat | optical 128 px | 40-shot, last epoch | fine-tuned, overall accuracy "
        "| - | 42.00 ± 2.00 | - |",
    ]
    plain = side_by_side(tmp_path).splitlines()
    assert len(plain) == 6 and "*" not in "".join(plain)


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"statistics_hash": "other"}, "statistics_hash"), ({"split_hash": "other"}, "split_hash")],
)
def test_unlike_cards_never_share_a_line(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", encoder="another", **changes)
    with pytest.raises(NotComparableError, match=f"differ in {name}, .*: (aaaa|bbbb) against other"):
        side_by_side(tmp_path)


def test_two_cards_of_one_place_and_no_card_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no results.json under"):
        load_cards(tmp_path)
    write(tmp_path / "a")
    write(tmp_path / "b")
    with pytest.raises(CardError, match="a/results.json and .*b/results.json claim one place"):
        side_by_side(tmp_path)


def test_the_table_is_written_between_the_markers_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards, readme = write(tmp_path / "cards"), tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main(["summary", str(cards), "--into", str(readme)]) == 0
    table = side_by_side(cards, markdown=True)
    assert readme.read_text() == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"
    write_into(readme, table)
    assert readme.read_text() == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"
    assert main(["summary", str(cards), "--side-by-side"]) == 0
    assert capsys.readouterr().out == side_by_side(cards) + "\n"
    readme.write_text("no markers\n")
    assert main(["summary", str(cards), "--into", str(readme)]) == 1
    assert "add these two lines" in capsys.readouterr().err and readme.read_text() == "no markers\n"
    with pytest.raises(CardError, match="no such file"):
        write_into(tmp_path / "none.md", table)


@pytest.mark.parametrize("folder", ["linearprobing", "classification"])
def test_the_tables_of_the_readmes_are_what_the_committed_cards_say(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    table = text.split(BEGIN)[1].split(END)[0].strip()
    assert table == side_by_side(ROOT / folder / "results", markdown=True)
    for _, card in load_cards(ROOT / folder / "results"):
        assert len(card.seeds) == 5 and card.protocol == "clean" and not card.encoder.startswith("/")
