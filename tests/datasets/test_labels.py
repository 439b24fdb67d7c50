import json

import numpy as np
import prepare
import pytest
import yaml
from data_makers import picture, save
from recipes import card as card_module
from recipes.boxes import CocoBoxes
from recipes.labels import LabelError, from_json, from_npy
from recipes.plan import PrepareError

from codemae.data.index import open_index

CLASSES = ["car", "ship", "tree"]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Writes a card, prepares tmp_path / "r" by it, returns the exit code."""
    cards = tmp_path / "cards"
    cards.mkdir()
    monkeypatch.setattr(card_module, "FOLDER", cards)
    monkeypatch.setattr(card_module.read_card, "__defaults__", (cards,))

    def run(recipe, task="multilabel"):
        plain = {
            "title": "T", "use": ["benchmark"], "task": task, "modalities": ["optical"],
            "resolution": "1 m", "samples": "2", "citation": "A", "homepage": "H", "get": "Ask them.",
            "layout": "verified", "layout_source": "L", "classes": CLASSES,
            "recipe": {"source": "S", "optical": "img/{key}.png", "split": {"all": "train"}, **recipe},
        }  # fmt: skip
        (cards / "made.yaml").write_text(yaml.safe_dump(plain))
        words = ["made", "--root", tmp_path / "r", "--out", tmp_path / "out", "--workers", 1]
        return prepare.main(list(map(str, words)))

    return run


def images(tmp_path, *names):
    for seed, name in enumerate(names):
        save(tmp_path / "r/img" / f"{name}.png", picture(seed, (10, 20)))


def labels(tmp_path):
    index = open_index(tmp_path / "out")
    return {index.cell(row, "group"): list(index.cell(row, "label")) for row in range(len(index))}


def reasons(tmp_path):
    report = json.loads((tmp_path / "out/report.json").read_text())
    return {entry["sample"]: (entry["kind"], entry["reason"]) for entry in report["left_out"]}


def test_multi_hot_vectors(tmp_path, prepared):
    images(tmp_path, *"abcdefg")
    vectors = {
        "a": np.array([0, 1, 1]),
        "b": np.array([[1.0, 0.0, 0.0]]),
        "c": np.array([0, 0, 0]),
        "d": np.array([0, 0, 0, 1]),
        "e": np.array([0, 2, 0]),
        "f": np.array([0, 1], dtype=object),
    }
    (tmp_path / "r/label").mkdir()
    for name, vector in vectors.items():
        np.save(tmp_path / f"r/label/{name}.npy", vector)
    assert prepared({"label": {"npy": "label/{key}.npy"}}) == 0
    assert labels(tmp_path) == {"a": [1, 2], "b": [0]}
    found = reasons(tmp_path)
    assert {kind for kind, _ in found.values()} == {"no label"}
    assert found["c"][1] == "c.npy names none of the classes"
    assert found["d"][1].endswith("d.npy has 4 entries for 3 classes")
    assert "no vector of zeros and ones" in found["e"][1]
    assert "allow_pickle=False" in found["f"][1] and "No such file" in found["g"][1]


def test_a_vector_that_is_too_short_is_left_out(tmp_path, prepared):
    images(tmp_path, "a", "b")
    (tmp_path / "r/label").mkdir()
    np.save(tmp_path / "r/label/a.npy", np.array([1, 0, 0]))
    np.save(tmp_path / "r/label/b.npy", np.array([1, 0]))
    assert prepared({"label": {"npy": "label/{key}.npy"}}) == 0
    assert labels(tmp_path) == {"a": [0]}
    ((kind, reason),) = reasons(tmp_path).values()
    assert kind == "no label" and reason.endswith("b.npy has 2 entries for 3 classes")


def test_vectors_alone(tmp_path):
    np.save(tmp_path / "a.npy", np.array([True, False, True]))
    assert from_npy(tmp_path / "a.npy", 3) == [0, 2]
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(LabelError, match=r"b\.npy"):
        from_npy(tmp_path / "b.npy", 3)


def test_names_in_json(tmp_path, prepared):
    images(tmp_path, *"abcdefgh")
    texts = {
        "a": {"names": ["boat", "car"]},
        "b": {"names": ["haze", "tree"]},
        "c": {"names": ["haze"]},
        "d": {"names": ["plane"]},
        "e": {"labels": ["car"]},
        "f": ["car"],
        "g": {"names": "car"},
    }
    for name, content in texts.items():
        (tmp_path / f"r/img/{name}.json").write_text(json.dumps(content))
    (tmp_path / "r/img/h.json").write_text('{"names": ["car"')
    label = {"json": "img/{key}.json", "field": "names", "map": {"boat": "ship", "haze": None}}
    assert prepared({"label": label}) == 0
    assert labels(tmp_path) == {"a": [0, 1], "b": [2]}
    found = reasons(tmp_path)
    assert found["c"][1] == "c.json names none of the classes"
    assert found["d"][1].endswith("d.json names plane, which is no class")
    for name, kind in (("e", "KeyError"), ("f", "TypeError"), ("h", "JSONDecodeError")):
        assert found[name][1].endswith(f"{name}.json: no list under 'names' ({kind})"), name
    assert found["g"][1].endswith("g.json: under 'names' stands 'car', which is no list of names")


def test_names_alone(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"x": ["b", "a", "b"]}')
    assert from_json(path, "x", {}, {"a": 4, "b": 2}) == [2, 4]
    path.write_text('{"x": [["b"], 3]}')
    with pytest.raises(LabelError, match="which is no list of names"):
        from_json(path, "x", {}, {"a": 4, "b": 2})
    with pytest.raises(LabelError, match="FileNotFoundError"):
        from_json(tmp_path / "b.json", "x", {}, {})


def coco(tmp_path, **changes):
    """Two images, one of them with three boxes of which one is of no class of the card."""
    plain = {
        "categories": [{"id": 7, "name": "ship"}, {"id": 3, "name": "car"}, {"id": 9, "name": "cloud"}],
        "images": [
            {"id": 50, "file_name": "sub\\a.png", "width": 20, "height": 10},
            {"id": 60, "file_name": "b.png", "width": 20, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 50, "category_id": 7, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
            {"id": 2, "image_id": 50, "category_id": 9, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0},
            {"id": 5, "image_id": 50, "category_id": 3, "bbox": [5, 1, 2, 2], "area": 4, "iscrowd": 1},
        ],
    }
    path = tmp_path / "r/boxes.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain | changes))
    return path


COCO = {"boxes": {"coco": {"train": "boxes.json"}}}


def test_coco_categories_are_renumbered(tmp_path, prepared):
    save(tmp_path / "r/img/sub/a.png", picture(0, (10, 20)))
    images(tmp_path, "b", "c")
    coco(tmp_path)
    assert prepared({**COCO, "optical": "img/{key:[a-z/]+}.png"}, task="detection") == 0
    plain = json.loads((tmp_path / "out/annotations/train.json").read_text())
    assert plain["categories"] == [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)]
    names = {image["id"]: image["file_name"] for image in plain["images"]}
    assert sorted(names.values()) == ["img/b.png", "img/c.png", "img/sub/a.png"]
    assert all((image["height"], image["width"]) == (10, 20) for image in plain["images"])
    found = [
        (names[box["image_id"]], box["category_id"], box["bbox"], box["area"], box["iscrowd"])
        for box in plain["annotations"]
    ]
    assert found == [("img/sub/a.png", 2, [1, 2, 3, 4], 12, 0), ("img/sub/a.png", 1, [5, 1, 2, 2], 4, 1)]
    assert [box["id"] for box in plain["annotations"]] == [1, 2]
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["boxes"] == {"train": 2}
    assert report["images that no annotation file names"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"annotations": [{"image_id": 50, "category_id": 4, "bbox": [0, 0, 1, 1]}]}, "not a COCO file"),
        ({"annotations": [{"category_id": 7, "bbox": [0, 0, 1, 1]}]}, "'image_id'"),
        ({"annotations": [{"image_id": 50, "bbox": [0, 0, 1, 1]}]}, "'category_id'"),
        ({"annotations": [{"image_id": 50, "category_id": 7}]}, "'bbox'"),
        ({"annotations": [{"image_id": 50, "category_id": 7, "bbox": [1, 2, 3]}]}, "four numbers"),
        ({"images": [{"id": 50}]}, "'file_name'"),
        ({"categories": [{"id": 7, "name": "cloud"}, {"id": 3, "name": "fog"}, {"id": 9, "name": "x"}]},
         "the categories cloud, fog, x, none of which is a class"),
        ({"categories": None}, "not a COCO file"),
    ],
)  # fmt: skip
def test_a_coco_file_that_is_none_is_named(tmp_path, prepared, capsys, changes, words):
    images(tmp_path, "b")
    coco(tmp_path, **changes)
    assert prepared(COCO, task="detection") == 2
    error = capsys.readouterr().err
    assert "boxes.json" in error and words in error and "Traceback" not in error


def test_a_coco_file_that_is_broken_or_missing_is_named(tmp_path):
    path = coco(tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(PrepareError, match=r"boxes\.json is not a COCO file: JSONDecodeError"):
        CocoBoxes([path], {"ship": 0})
    path.unlink()
    with pytest.raises(PrepareError, match=r"no annotations .*boxes\.json: No such file"):
        CocoBoxes([path], {"ship": 0})
