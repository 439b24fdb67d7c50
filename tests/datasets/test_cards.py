import json
import os
import shutil
from pathlib import Path

import prepare
import pytest
import yaml
from data_makers import make_classes, make_ospretrain, make_pairs
from fake import benchmarks, pretraining
from fake.expected import Expected
from recipes.card import FOLDER, Card, card_names, read_card
from recipes.plan import PrepareError
from recipes.template import Template

from codemae.data.index import open_index

FAKES = pretraining.FAKES | benchmarks.FAKES
NAMES = card_names()
VERIFIED = [name for name in NAMES if "layout: verified" in (FOLDER / f"{name}.yaml").read_text()]
UNVERIFIED = [name for name in NAMES if name not in VERIFIED]


def run(*words: object) -> int:
    return prepare.main([*map(str, words), "--workers", "1"])


def copy(name: str, root: Path) -> tuple[Card, Expected, Path]:
    root.mkdir()
    expected = FAKES[name](root)
    return read_card(name), expected, expected.root or root


def rows_of(index_dir: Path, columns: list[str]) -> list[dict[str, object]]:
    index = open_index(index_dir)
    found = []
    for row in range(len(index)):
        cells = {name: index.cell(row, name) for name in columns if name not in ("window", "source")}
        cells |= {"source": index.source(row)} if "source" in columns else {}
        window = index.window(row)
        cells |= {"window": None if window is None else tuple(window)} if "window" in columns else {}
        found.append(cells)
    return found


def in_order(rows: list[dict[str, object]], columns: list[str]) -> list[dict[str, object]]:
    plain = [{name: row.get(name) for name in columns} for row in rows]
    for row in plain:
        row |= {name: tuple(value) for name, value in row.items() if isinstance(value, (list, tuple))}
    return sorted(plain, key=repr)


@pytest.mark.parametrize("name", NAMES)
def test_card_parses(name: str) -> None:
    card = read_card(name)
    assert card.title and card.citation and card.get
    assert card.layout == ("verified" if name in VERIFIED else "unverified")


@pytest.mark.parametrize("name", VERIFIED)
def test_fake_copy_becomes_the_expected_rows(name: str, tmp_path: Path) -> None:
    _, expected, root = copy(name, tmp_path / "data")
    assert run(name, "--root", root, "--out", tmp_path / "out", *expected.arguments) == 0
    columns = list(expected.rows[0])
    found = rows_of(tmp_path / "out", columns)
    assert in_order(found, columns) == in_order(expected.rows, columns)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    if expected.left_out is not None:
        assert len(report["left_out"]) == expected.left_out
    for split, count in expected.boxes.items():
        plain = json.loads((tmp_path / "out" / "annotations" / f"{split}.json").read_text())
        assert len(plain["annotations"]) == count
        assert all((root / image["file_name"]).is_file() for image in plain["images"])


@pytest.mark.parametrize("name", [name for name in VERIFIED if read_card(name).recipe.sides()])
def test_missing_folder_is_named_with_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card, expected, root = copy(name, tmp_path / "data")
    for templates in card.recipe.sides().values():
        for text in templates:
            away = tmp_path / "away"
            shutil.copytree(root, away)
            for _, path in list(Template(text).find(away)):
                (away / path).unlink()
            for folder, _, _ in sorted(os.walk(away), reverse=True):
                if not os.listdir(folder) and Path(folder) != away:
                    os.rmdir(folder)
            assert run(name, "--root", away, "--out", tmp_path / "out", *expected.arguments) == 2
            error = capsys.readouterr().err
            assert text in error, error
            assert f"python datasets/prepare.py {name} --root DIR --out INDEX_DIR" in error
            assert card.get in error
            assert not (tmp_path / "out").exists()
            shutil.rmtree(away)


@pytest.mark.parametrize("name", UNVERIFIED)
def test_unverified_layout_goes_through_its_generic_recipe(name: str, tmp_path: Path) -> None:
    card = read_card(name)
    root, side = tmp_path / "data", card.recipe.tile or 32
    words: list[object] = ["--root", root]
    if card.recipe.generic == "pairs":
        make_pairs(root, ["a", "b"], side)
        words = ["--optical", root / "opt", "--sar", root / "sar"]
    elif card.recipe.generic == "ospretrain":
        make_ospretrain(root)
    else:
        make_classes(root, ["a", "b"], 50 if card.recipe.split.draw else 2, side if side > 32 else 8)
        words += ["--modality", card.modalities[0]] if len(card.modalities) > 1 else []
    assert run(name, *words, "--out", tmp_path / "out") == 0
    index = open_index(tmp_path / "out")
    if card.recipe.generic != "ospretrain":
        assert {index.source(row) for row in range(len(index))} == {card.recipe.source}
    assert "unverified" in json.loads((tmp_path / "out" / "report.json").read_text())["layout"]


def written(folder: Path, **changes: object) -> Path:
    plain = {
        "title": "T", "use": ["benchmark"], "task": "pairs", "modalities": ["optical", "sar"],
        "resolution": "1 m", "samples": "2", "citation": "A", "homepage": "H", "get": "G",
        "layout": "verified", "layout_source": "L",
        "recipe": {"source": "S", "optical": "o/{key}.png", "sar": "s/{key}.png", "split": {"all": "train"}},
    }  # fmt: skip
    plain |= changes
    (folder / "made.yaml").write_text(yaml.safe_dump(plain))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"titel": "x"}, "unknown key titel"),
        ({"recipe": {"source": "S", "optical": "{key}.png", "tiles": 3}}, "unknown key tiles"),
        ({"recipe": {"optical": "{key}.png"}}, "lacks"),
        ({"recipe": {"source": "S", "optical": "{key.png"}}, "not closed"),
        ({"recipe": {"source": "S", "optical": "{key}.png", "tile": "wide"}}, "tile is a int"),
        ({"recipe": {"source": "S"}}, "neither optical nor sar"),
        (
            {"recipe": {"source": "S", "sar": "{key}.png", "split": {"all": "a", "path": {"b": "c"}}}},
            "exactly",
        ),
        ({"layout": "guessed"}, "layout is one of verified, unverified"),
        ({"layout": "unverified"}, "needs recipe.generic"),
        ({"layout_source": None}, "layout_source"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(PrepareError, match=words):
        read_card("made", written(tmp_path, **changes))


def test_a_single_template_is_a_list_of_one(tmp_path: Path) -> None:
    card = read_card("made", written(tmp_path))
    assert (card.recipe.optical, card.recipe.sar, card.licence) == (
        ("o/{key}.png",),
        ("s/{key}.png",),
        "not stated",
    )


def test_ospretrain_leaves_out_what_its_authors_do_unless_asked(tmp_path: Path) -> None:
    make_ospretrain(tmp_path / "data")
    pair = sorted((tmp_path / "data").glob("*/train.txt"))[0].parent
    shutil.copytree(pair, tmp_path / "data" / "SS4EO-S12")
    words = ["ospretrain", "--root", tmp_path / "data", "--workers", "1"]
    sources = []
    for number, more in enumerate(([], ["--include", "SS4EO-S12"])):
        assert run(*words, *more, "--out", tmp_path / str(number)) == 0
        index = open_index(tmp_path / str(number))
        sources.append({index.source(row) for row in range(len(index))})
    assert sources[1] - sources[0] == {"SS4EO-S12"} and pair.name in sources[0]
