import hashlib
import json
from pathlib import Path

import numpy as np
import prepare
import pytest
import yaml
from data_makers import make_classes, make_pairs, picture, save
from recipes import card as card_module
from recipes.candidates import Candidate, Candidates
from recipes.plan import PrepareError
from recipes.splits import Lists, draw

from codemae.data.index import open_index


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Writes a card, prepares tmp_path / "r" by it, returns the exit code."""
    cards = tmp_path / "cards"
    cards.mkdir()
    monkeypatch.setattr(card_module, "FOLDER", cards)
    monkeypatch.setattr(card_module.read_card, "__defaults__", (cards,))

    def run(recipe, *words, **more):
        plain = {
            "title": "T", "use": ["benchmark"], "task": "pairs", "modalities": ["optical", "sar"],
            "resolution": "1 m", "samples": "2", "citation": "A", "homepage": "H", "get": "Ask them.",
            "layout": "verified", "layout_source": "L", "recipe": {"source": "S", **recipe},
        }  # fmt: skip
        (cards / "made.yaml").write_text(yaml.safe_dump(plain | more))
        fixed = ("made", "--root", tmp_path / "r", "--out", tmp_path / "out", "--workers", 1)
        return prepare.main([*map(str, fixed), *map(str, words)])

    return run


def report(tmp_path):
    return json.loads((tmp_path / "out" / "report.json").read_text())


PAIRS = {"optical": "opt/{key}.png", "sar": "sar/{key}.png"}


def test_sides_without_partner_and_texts_of_no_split_are_counted(tmp_path, prepared, capsys):
    for split in ("train", "val", "spare"):
        make_pairs(tmp_path / "r" / split, ["a", "b"])
    (tmp_path / "r/train/sar/b.png").unlink()
    (tmp_path / "r/val/opt/a.png").unlink()
    recipe = {
        "optical": "{split}/opt/{key}.png", "sar": "{split}/sar/{key}.png",
        "split": {"path": {"train": "train", "val": "test"}}, "group": "{split}-{key}",
    }  # fmt: skip
    assert prepared(recipe, expected={"train": 2, "test": 2}) == 0
    assert "split train: 1, 2 in a complete copy" in capsys.readouterr().out
    index = open_index(tmp_path / "out")
    cells = {tuple(index.cell(row, name) for name in ("split", "group", "sar")) for row in range(len(index))}
    assert cells == {("train", "train-a", "train/sar/a.png"), ("test", "val-b", "val/sar/b.png")}
    assert {entry["sample"] for entry in report(tmp_path)["left_out"]} == {"train/opt/b", "val/sar/a"}
    assert report(tmp_path)["samples of no split that is used"] == {"spare": 2}


def test_split_of_a_card_that_is_not_there(tmp_path, prepared, capsys):
    make_pairs(tmp_path / "r/train", ["a"])
    recipe = {
        "optical": "{split}/opt/{key}.png", "sar": "{split}/sar/{key}.png",
        "split": {"path": {"train": "train", "val": "test"}},
    }  # fmt: skip
    assert prepared(recipe) == 2
    assert "no file is like 'val/opt/{key}.png'" in capsys.readouterr().err


def test_test_rows_stay_out_of_pretraining(tmp_path, prepared):
    make_pairs(tmp_path / "r", ["a", "b", "c"])
    (tmp_path / "r/train.txt").write_text("a.png\n")
    (tmp_path / "r/extra.txt").write_text("b.png 7\nlost.png 7\n")
    lists = {"lists": {"train": "train.txt", "extra": "extra.txt"}}
    assert prepared(PAIRS | {"split": lists, "exclude_splits": ["extra"]}) == 0
    assert report(tmp_path)["rows_by_split"] == {"test": 1, "train": 1}
    assert report(tmp_path)["samples of no split that is used"] == {"of no list": 1}
    assert [entry["sample"] for entry in report(tmp_path)["left_out"]] == ["lost.png 7"]


def test_draw_is_the_stated_rule_and_its_lists_can_be_passed_in(tmp_path, prepared):
    make_classes(tmp_path / "r", ["b", "a"], 10)
    recipe = {
        "optical": "{class}/{key}.png", "label": {"path": "class"}, "group": "{class}/{key}",
        "split": {"draw": {"train": 3, "val": 0.2, "rest": "test", "seed": 5}},
    }  # fmt: skip
    more = {"classes": ["b", "a"], "task": "classification"}
    assert prepared(recipe, **more) == 0
    index = open_index(tmp_path / "out")
    found = {index.cell(row, "optical"): index.cell(row, "split") for row in range(len(index))}
    for number, name in enumerate(("b", "a")):
        order = np.random.default_rng([5, number]).permutation(10)
        for place, item in enumerate(order):
            expected = "train" if place < 3 else "val" if place < 5 else "test"
            assert found[f"{name}/{item:03d}.png"] == expected
    facts = report(tmp_path)["split lists"]
    assert {split: entry["lines"] for split, entry in facts.items()} == {"train": 6, "val": 4, "test": 10}
    words = []
    for split, entry in facts.items():
        file = tmp_path / "out" / entry["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]
        words += [f"--{split}-list", file.rename(tmp_path / f"{split}.txt")]
    before = index.hash()
    assert prepared(recipe, *words, **more) == 0
    assert open_index(tmp_path / "out").hash() == before


def test_draw_refuses_more_than_there_is():
    candidates = Candidates([Candidate("a", "s", "", "a", label=0)])
    with pytest.raises(PrepareError, match="class 0 has 1 samples"):
        draw(candidates, {"train": 2}, "test", 0)
    with pytest.raises(PrepareError, match="got 1.5"):
        draw(candidates, {"train": 1.5}, "test", 0)


def test_a_name_in_two_lists_is_refused(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text("a\n")
    with pytest.raises(PrepareError, match="in the train list and in the test list"):
        Lists({split: [tmp_path / f"{split}.txt"] for split in ("train", "test")})


def test_labels_of_masks_by_window(tmp_path, prepared):
    save(tmp_path / "r/opt/a.png", picture(0, 40))
    mask = np.full((40, 40), 255, np.uint8)
    mask[:20, :20] = 10
    mask[:2, 20:] = 20
    mask[2:3, 20:30] = 10
    mask[20:, 20:] = 20
    save(tmp_path / "r/mask/a.png", mask)
    recipe = {
        "optical": "opt/{key}.png", "mask": "mask/{key}.png", "label": {"mask": 0.1},
        "split": {"all": "train"}, "tile": 20,
    }  # fmt: skip
    assert prepared(recipe, classes=["x", "y"], class_values=[10, 20], ignore=[255]) == 0
    index = open_index(tmp_path / "out")
    assert [list(index.cell(row, "label")) for row in range(4)] == [[0], [1], [], [1]]
    assert index.cell(0, "mask") == "mask/a.png"


def test_voc_boxes_become_coco(tmp_path, prepared):
    save(tmp_path / "r/img/a.png", picture(0, (30, 40)))
    corners = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>13</xmax><ymax>24</ymax></bndbox>"
    (tmp_path / "r/a.xml").write_text(f"<annotation><object><name>ship</name>{corners}</object></annotation>")
    recipe = {"optical": "img/{key}.png", "boxes": {"voc": "{key}.xml"}, "split": {"all": "train"}}
    assert prepared(recipe, classes=["car", "ship"], task="detection") == 0
    plain = json.loads((tmp_path / "out/annotations/train.json").read_text())
    assert plain["images"] == [{"id": 1, "file_name": "img/a.png", "width": 40, "height": 30}]
    assert plain["categories"] == [{"id": 1, "name": "car"}, {"id": 2, "name": "ship"}]
    (box,) = plain["annotations"]
    assert (box["bbox"], box["area"], box["category_id"], box["image_id"]) == ([3, 4, 10, 20], 200, 2, 1)
    assert prepared(recipe, classes=["car"], task="detection") == 2


def test_images_of_one_folder(tmp_path):
    save(tmp_path / "r/sub/a.png", picture(0, 64))
    words = (
        "images",
        "--root",
        tmp_path / "r",
        "--modality",
        "optical",
        "--tile",
        32,
        "--out",
        tmp_path / "out",
    )
    assert prepare.main([*map(str, words), "--workers", "1"]) == 0
    index = open_index(tmp_path / "out")
    assert [index.window(row) for row in range(4)] == [
        (0, 0, 32, 32),
        (32, 0, 32, 32),
        (0, 32, 32, 32),
        (32, 32, 32, 32),
    ]
    assert Path(index.cell(0, "optical")) == Path("sub/a.png")
