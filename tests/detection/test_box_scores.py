import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")

from box_pictures import draw_predictions  # noqa: E402
from box_scores import score, write_table  # noqa: E402
from data_makers import save  # noqa: E402
from detection_data import coco_content, ship_picture  # noqa: E402
from PIL import Image  # noqa: E402

pytestmark = pytest.mark.mm


def predicted(image: int, category: int, box: list[float], value: float) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": value}


def test_figures_of_a_case_worked_by_hand(tmp_path: Path) -> None:
    # Two classes in turn: image 1 has a ship and a harbor, image 2 a ship and a harbor.
    boxes = [[[10, 10, 20, 20], [50, 50, 20, 20]], [[10, 10, 20, 20], [50, 50, 20, 20]]]
    content = coco_content(boxes, ("ship", "harbor"))
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = [
        predicted(1, 1, [10, 10, 20, 20], 0.9),  # right
        predicted(2, 1, [60, 10, 20, 20], 0.8),  # wrong place
        predicted(2, 1, [10, 10, 20, 20], 0.7),  # right, after a mistake: precision 2/3
        predicted(1, 2, [50, 50, 20, 14], 0.9),  # overlap 14/20 = 0.7 with the harbor: right up to 0.7
    ]
    (tmp_path / "p.json").write_text(json.dumps(found))
    scores = score(tmp_path / "a.json", tmp_path / "p.json", ["ship", "harbor"])
    ship, harbor = scores.classes
    # 101 recall points: precision 1 up to recall 0.5 (51 points), then 2/3 (50 points).
    assert ship.ap50 == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert ship.ap == pytest.approx(ship.ap50) and ship.ar == 100 and ship.boxes == 2
    # One of two harbors: precision 1 up to recall 0.5, none after; at 5 of the 10 overlaps.
    assert harbor.ap50 == pytest.approx(100 * 51 / 101) and harbor.ap75 == 0
    assert harbor.ap == pytest.approx(harbor.ap50 / 2)
    assert scores.figures["box_ap50"] == pytest.approx((ship.ap50 + harbor.ap50) / 2)
    assert "box_ap_large" not in scores.figures
    write_table(scores, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "class,boxes,ap,ap50,ap75,ar"


def test_no_prediction_at_all_scores_zero_and_a_class_without_boxes_is_left_out(tmp_path: Path) -> None:
    content = coco_content([[[10, 10, 20, 20]]], ("ship", "harbor"))
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "p.json").write_text("[]")
    scores = score(tmp_path / "a.json", tmp_path / "p.json", ["ship", "harbor"])
    assert scores.figures["box_ap50"] == 0
    assert scores.classes[0].ap50 == 0 and np.isnan(scores.classes[1].ap50)


def test_pictures_show_annotated_and_predicted_boxes(tmp_path: Path) -> None:
    boxes = [[[10, 10, 20, 20]], [[30, 30, 20, 20]], [[5, 5, 20, 20]]]
    for number, listed in enumerate(boxes, start=1):
        save(tmp_path / f"{number}.png", ship_picture(number, listed))
    (tmp_path / "a.json").write_text(json.dumps(coco_content(boxes)))
    found = [predicted(1, 1, [50, 40, 30, 30], 0.9), predicted(1, 1, [0, 60, 20, 20], 0.1)]
    (tmp_path / "p.json").write_text(json.dumps(found))
    paths = draw_predictions(
        tmp_path / "a.json", tmp_path / "p.json", tmp_path, ["ship"], tmp_path / "out", count=2
    )
    assert [path.name for path in paths] == ["1_1.jpg", "3_3.jpg"]
    pixels = np.asarray(Image.open(paths[0])).astype(int)
    red, green = pixels[55, 50], pixels[20, 10]
    assert red[0] > 150 and red[1] < 110
    assert green[1] > 150 and green[0] < 110
    assert pixels[70, 0].max() < 110
