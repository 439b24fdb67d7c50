from pathlib import Path
from typing import Any

import pytest
from data_makers import make_card

from codemae.cli import main
from codemae.evaluation.card import CardError
from codemae.evaluation.published import TABLES
from codemae.evaluation.summary import summarise


def write(folder: Path, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "encoder": "enc",
        "protocol": "official",
        "selected_by": "test",
        "few_shot": "official",
        "metrics": {"knn_overall_accuracy": [30.0, 30.0, 33.0]},
    }
    make_card(**(fields | changes)).save(folder / "results.json")
    return folder


def test_cards_stand_in_the_papers_table_beside_its_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", modality="sar", values=[50.0, 50.0, 50.0])
    write(tmp_path / "c", task="classification", dataset="mstar10_soc", modality="sar", shots=40)
    write(tmp_path / "d", dataset="elsewhere")
    text = summarise(tmp_path, markdown=True)
    assert "| EuroSat Opt. | 42.00 +- 2.00 | 81.18 |" in text
    assert "| EuroSat SAR | 50.00 +- 0.00 | 59.88 |" in text
    assert "| MSTAR | 42.00 +- 2.00 | 98.7 |" in text
    assert "| PIE Opt. | not yet run | 91.27 |" in text
    assert "CoDe-MAE (CoDe-MAE paper)" in text
    assert "elsewhere" in text.split("No published table")[1]


def test_protocols_are_never_mixed_in_a_column(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", protocol="clean", selected_by="val", values=[10.0, 10.0, 10.0])
    line = next(line for line in summarise(tmp_path).splitlines() if line.startswith("EuroSat Opt."))
    assert line.split() == ["EuroSat", "Opt.", "10.00", "+-", "0.00", "42.00", "+-", "2.00", "81.18"]
    write(tmp_path / "c", values=[1.0, 2.0, 3.0])
    with pytest.raises(CardError, match="several cards claim one place"):
        summarise(tmp_path)


def test_every_published_row_has_a_figure_a_column() -> None:
    for table in TABLES:
        assert {len(figures) for figures in table.rows.values()} == {len(table.columns)}


def test_fus_mae_tables_take_the_share_of_labels_and_the_further_figures(tmp_path: Path) -> None:
    many = {"dataset": "bigearthnet_mm", "metric": "micro_average_precision", "shots": None, "few_shot": None}
    probed = {"modality": "sar", "settings": {"fraction": 0.01}, "metrics": {}}
    write(tmp_path / "a", **many, **probed)
    write(tmp_path / "b", **many, modality="both", task="classification", settings={"fraction": 1.0})
    figures = {"top3": [90.0, 92.0, 94.0], "weighted_f1": [50.0, 50.0, 53.0]}
    figures |= {"weighted_precision": [1.0] * 3, "weighted_recall": [2.0] * 3}
    sen12ms = {"dataset": "SEN12MS", "shots": None, "few_shot": None, "task": "classification"}
    write(tmp_path / "c", **sen12ms, modality="both", metrics=figures)
    text = summarise(tmp_path, markdown=True)
    assert "| BEN-MM S1 | 42.00 +- 2.00 | 57.8 |" in text  # 1 % of the labels
    assert "| BEN-MM S1+S2 | 42.00 +- 2.00 | 87.9 |" in text  # all of them
    assert "enc [official, test, both 128 px] | Fus-MAE w/ XAE&D (Fus-MAE paper) |" in text
    assert "| SEN12MS top-1 | 42.00 +- 2.00 | 59.6 |" in text
    assert "| SEN12MS top-3 | 92.00 +- 2.00 | 93.6 |" in text
    assert "| SEN12MS F1 | 51.00 +- 1.73 | 60.1 |" in text
    assert "No published table" not in text


def test_the_commands_print_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path / n, values=[40.0 + i] * 3) for i, n in enumerate("abc")]
    assert main(["compare", *map(str, folders), "--markdown"]) == 0
    out = capsys.readouterr().out
    assert "| figure | 40.00 +- 0.00 % | 41.00 +- 0.00 % | 42.00 +- 0.00 % |" in out
    assert "| knn_overall_accuracy | 31.00 +- 1.73 % |" in out
    assert f"1. {folders[2]}: 42.00 (+2.00)" in out
    write(tmp_path / "b", statistics_hash="other")
    assert main(["compare", *map(str, folders)]) == 1
    assert "statistics_hash: bbbb against other against bbbb" in capsys.readouterr().err
    assert main(["summary", str(tmp_path / "a"), "--peers"]) == 0
    assert "DOFA (CoDe-MAE paper)" in capsys.readouterr().out
    assert main(["summary", str(tmp_path / "nowhere")]) == 1
