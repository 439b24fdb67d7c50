from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.logging import HistoryBuffer  # noqa: E402

from codemae.checkpoint import WeightsError  # noqa: E402
from codemae.mm.checkpoints import encoder_of, read_mm_checkpoint  # noqa: E402

pytestmark = pytest.mark.mm


class Trap:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], tuple(self.call[1:])


def test_a_log_comes_back_as_it_was(tmp_path: Path) -> None:
    curve = HistoryBuffer([1.0, 2.0, 6.0], [1, 1, 1])
    state = {"state_dict": {"w": torch.ones(2)}, "meta": {"epoch": 1}, "message_hub": {"loss": curve}}
    torch.save(state, tmp_path / "a.pth")
    back = read_mm_checkpoint(tmp_path / "a.pth")
    assert back["message_hub"]["loss"].mean() == 3.0 and back["message_hub"]["loss"].current() == 6.0
    assert torch.equal(back["state_dict"]["w"], torch.ones(2)) and back["meta"] == {"epoch": 1}


@pytest.mark.parametrize("way", ["call", "getattr"])
def test_what_a_checkpoint_asks_for_is_not_run(tmp_path: Path, way: str) -> None:
    touched = tmp_path / "executed"
    trap = Trap(Path.touch, touched) if way == "call" else Trap(getattr, torch.Tensor, "numpy")
    torch.save({"state_dict": {}, "meta": trap}, tmp_path / "trap.pth")
    with pytest.raises(WeightsError):
        read_mm_checkpoint(tmp_path / "trap.pth")
    assert not touched.exists()


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint at"):
        read_mm_checkpoint(tmp_path / "no.pth")
    torch.save({"model": {}}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="no state_dict"):
        read_mm_checkpoint(tmp_path / "b.pth")
    torch.save({"state_dict": {"backbone.encoder.w": torch.ones(1)}, "meta": {}}, tmp_path / "c.pth")
    with pytest.raises(WeightsError, match="no encoder of codemae"):
        encoder_of(read_mm_checkpoint(tmp_path / "c.pth"))


def test_a_config_inside_a_checkpoint_is_not_kept(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "meta": {"config": "import os", "epoch": 2}}, tmp_path / "d.pth")
    assert read_mm_checkpoint(tmp_path / "d.pth")["meta"] == {"epoch": 2}
