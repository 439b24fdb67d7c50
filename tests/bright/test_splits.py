from pathlib import Path
from typing import Any

import pytest
from data_makers import load_script

load_script("tests/bright/conftest.py")
from damage_config import DamageError, DataConfig  # noqa: E402
from damage_splits import Splits  # noqa: E402

EVENT = "turkey-earthquake"


def names(splits: Splits, rows: Any) -> set[str]:
    return {splits.key(int(row)) for row in rows}


def of(index: Path, **more: Any) -> Splits:
    return Splits(DataConfig(index=[str(index)], **more), seed=3)


def test_the_published_lists_stand_as_they_are(index: Path) -> None:
    splits = of(index)
    assert len(splits.train) == 5 and len(splits.select) == 2
    assert "bata-explosion_00000049" in names(splits, splits.train) - names(splits, splits.select)
    assert (
        splits.report_names() == ["val", "test"]
        and splits.events.of(int(splits.train[0])) == "bata-explosion"
    )


def test_zero_shot_never_shows_a_tile_of_the_disaster(index: Path) -> None:
    splits = of(index, held_out_event=EVENT)
    assert not any(name.startswith(EVENT) for name in names(splits, splits.train))
    with pytest.raises(DamageError, match="'holdout' has tiles of 'turkey-earthquake' alone"):
        len(splits.select)
    other = of(index, held_out_event=EVENT, select_split="val")
    assert names(other, other.select) == {"bata-explosion_00000050"}
    assert names(splits, splits.report(EVENT)) == {f"{EVENT}_0000000{n}" for n in (1, 2, 3)}
    assert splits.report_names() == [EVENT] and "zero-shot" in splits.rule()
    only_val = of(index, held_out_event=EVENT, cross_event_report="split", report_splits=["val"])
    assert names(only_val, only_val.report("val")) == {f"{EVENT}_00000003"}


def test_one_shot_takes_one_tile_for_training_and_another_for_selection(index: Path) -> None:
    splits = of(index, held_out_event=EVENT, shots=1)
    trained = {name for name in names(splits, splits.train) if name.startswith(EVENT)}
    chosen = {name for name in names(splits, splits.select) if name.startswith(EVENT)}
    reported = names(splits, splits.report(EVENT))
    assert len(trained) == len(chosen) == len(reported) == 1
    assert len(trained | chosen | reported) == 3
    assert names(of(index, held_out_event=EVENT, shots=1), splits.train) == names(splits, splits.train)


def test_the_authors_lists_name_the_shots(index: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"{EVENT}_00000003\nbata-explosion_00000000\n")
    (tmp_path / "val.txt").write_text(f"{EVENT}_00000001\n")
    lists = {"shot_train": str(tmp_path / "train.txt"), "shot_select": str(tmp_path / "val.txt")}
    splits = of(index, held_out_event=EVENT, shots=1, **lists)
    assert names(splits, splits.report(EVENT)) == {f"{EVENT}_00000002"}
    (tmp_path / "val.txt").write_text(f"{EVENT}_00000003\n")
    with pytest.raises(DamageError, match="same tile"):
        of(index, held_out_event=EVENT, shots=1, **lists)
