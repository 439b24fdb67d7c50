"""The catalogue table of datasets/README.md cannot go stale."""

import shutil
from pathlib import Path

import catalogue
import pytest
from recipes.card import FOLDER, card_names, read_card


@pytest.fixture
def copy(tmp_path: Path) -> list[str]:
    """Arguments that name copies of the cards and of the README, which are then up to date."""
    shutil.copytree(FOLDER, tmp_path / "cards")
    shutil.copy(catalogue.README, tmp_path / "README.md")
    arguments = ["--cards", str(tmp_path / "cards"), "--readme", str(tmp_path / "README.md")]
    assert catalogue.main(arguments) == 0
    return arguments


def test_the_committed_readme_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_card_makes_the_table_stale(
    tmp_path: Path, copy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "cards" / "aid.yaml"
    card.write_text(card.read_text().replace("10,000 images", "10,001 images"))
    before = (tmp_path / "README.md").read_text()
    assert catalogue.main(["--check", *copy]) == 1
    assert catalogue.COMMAND in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == before
    assert catalogue.main(copy) == 0
    assert catalogue.main(["--check", *copy]) == 0
    after = (tmp_path / "README.md").read_text()
    assert after.replace("10,001 images", "10,000 images") == before


def test_a_removed_card_leaves_the_table(tmp_path: Path, copy: list[str]) -> None:
    line = "`python datasets/prepare.py aid --root DIR --out INDEX_DIR`"
    assert (tmp_path / "README.md").read_text().count(line) == 1
    (tmp_path / "cards" / "aid.yaml").unlink()
    assert catalogue.main(["--check", *copy]) == 1
    assert catalogue.main(copy) == 0
    assert line not in (tmp_path / "README.md").read_text()


def test_each_card_has_its_row_with_as_many_cells_as_the_head() -> None:
    cards = [read_card(name) for name in card_names()]
    rows = [line for line in catalogue.table(cards).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    for card in cards:
        uses = len(card.use)
        assert sum(f"`{card.command}`" in row and card.task in row for row in rows) == uses, card.name


def test_a_readme_without_markers_is_an_error(
    tmp_path: Path, copy: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Data\n")
    assert catalogue.main(copy) == 2
    assert catalogue.BEGIN in capsys.readouterr().err
    assert readme.read_text() == "# Data\n"
