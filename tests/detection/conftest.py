import sys
from pathlib import Path

import pytest
from data_makers import ROOT

sys.path[:0] = [str(ROOT / "detection"), str(Path(__file__).parent)]


@pytest.fixture
def ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy of the ship set, to which the config's variables point."""
    from detection_data import make_ships

    root = make_ships(tmp_path / "ships")
    monkeypatch.setenv("SHIP_OPTICAL_ROOT", str(root))
    monkeypatch.setenv("SHIP_OPTICAL_INDEX", str(root / "index"))
    return root
