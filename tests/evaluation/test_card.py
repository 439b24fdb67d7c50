import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_makers import make_card

from codemae.evaluation.card import MUST_AGREE, Card, CardError, NotComparableError, compare


def saved(folder: Path, name: str, card: Card) -> Path:
    card.save(folder / name / "results.json")
    return folder / name


def test_a_card_survives_the_disk_and_holds_mean_and_std(tmp_path: Path) -> None:
    card = make_card()
    folder = saved(tmp_path, "a", card)
    assert Card.load(folder) == card
    content = json.loads((folder / "results.json").read_text())
    assert content["mean"] == 42.0
    assert content["std"] == 2.0  # sqrt((4 + 0 + 4) / 2)
    assert make_card(seeds=[0], values=[40.0]).std == 0.0
    assert "42.00 +- 2.00 %" in card.sentence()
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_compare_ranks_seed_by_seed(tmp_path: Path) -> None:
    a = saved(tmp_path, "a", make_card())
    b = saved(tmp_path, "b", make_card(encoder="timm:x", checkpoint_hash="dddd", values=[45.0, 48.0, 48.0]))
    verdict = compare(a, b)
    # Differences 5, 6, 4: mean 5, sample std 1.
    assert verdict.endswith("the second is higher by 5.00 points (seed by seed, std 1.00).")
    assert compare(b, a).endswith("the first is higher by 5.00 points (seed by seed, std 1.00).")
    assert compare(a, a).endswith("the figures are equal.")
    assert re.search(r"encoder +random:hivit_tiny +timm:x", verdict)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", "classification"),
        ("dataset", "mstar"),
        ("split_hash", "0000"),
        ("statistics_hash", "0000"),
        ("protocol", "official"),
        ("selected_by", "test"),
        ("metric", "micro_average_precision"),
        ("shots", None),
        ("few_shot", "official"),
        ("settings", {"epochs": 100}),
    ],
)
def test_compare_refuses_and_names_the_field(tmp_path: Path, field: str, value: Any) -> None:
    a = saved(tmp_path, "a", make_card())
    b = saved(tmp_path, "b", make_card(**{field: value}))
    with pytest.raises(NotComparableError) as refusal:
        compare(a, b)
    message = str(refusal.value)
    reasons = message.split("they differ in\n")[1].splitlines()
    assert [line.strip().split(":")[0] for line in reasons if line.startswith("  ")] == [field]
    assert "42.00 +- 2.00 %" in message


def test_of_settings_only_the_difference_is_shown(tmp_path: Path) -> None:
    a = saved(tmp_path, "a", make_card(settings={"epochs": 50, "lr": 0.5}))
    b = saved(tmp_path, "b", make_card(settings={"epochs": 60, "lr": 0.5}))
    with pytest.raises(NotComparableError, match="settings: epochs=50 against epochs=60\n"):
        compare(a, b)


def test_each_field_that_must_agree_is_tested() -> None:
    marker = test_compare_refuses_and_names_the_field.pytestmark[0]  # type: ignore[attr-defined]
    assert {case[0] for case in marker.args[1]} == set(MUST_AGREE)


def test_a_difference_that_can_be_ranked_is_mentioned(tmp_path: Path) -> None:
    a = saved(tmp_path, "a", make_card())
    b = saved(tmp_path, "b", make_card(size=224, seeds=[5, 6], values=[41.0, 42.0]))
    assert compare(a, b).endswith(
        "the first is higher by 0.50 points (different seeds; stds 2.00 and 0.71). "
        "Mind that they differ in size."
    )


def test_what_is_no_card_is_said(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="no result card at"):
        Card.load(tmp_path)
    broken = saved(tmp_path, "a", make_card()) / "results.json"
    broken.write_text(broken.read_text()[:50])
    with pytest.raises(CardError, match="is not a result card"):
        Card.load(broken)
    broken.write_text("[]")
    with pytest.raises(CardError, match="it holds a list"):
        Card.load(broken)
    broken.write_text('{"task": "x"}')
    with pytest.raises(CardError, match="missing"):
        Card.load(broken)
    broken.write_text('{"tusk": "x"}')
    with pytest.raises(CardError, match="fields no card has: tusk"):
        Card.load(broken)


def test_a_card_without_a_figure_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="not finite"):
        make_card(values=[1.0, float("nan"), 2.0]).save(tmp_path / "results.json")
    with pytest.raises(CardError, match="2 values, 3 seeds"):
        make_card(values=[1.0, 2.0]).save(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())
