"""The files a run's config names beside its samples: known by their content, so that they may move."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from codemae.downloads import file_hash
from codemae.engine.settings import MOVABLE_KEYS, PretrainConfig
from codemae.models.vault import DESCRIPTION


def named_files(config: PretrainConfig) -> dict[str, str]:
    """Hash of what each of ``MOVABLE_KEYS`` names, for those that name something which is there.

    A file's own hash; of a teacher vault its key. Released names have none.
    """
    found = {}
    for key in MOVABLE_KEYS:
        if (path := _named(config, key)) and (identity := _identity(Path(path))):
            found[key] = identity
    return found


def initial_weights(config: PretrainConfig) -> str:
    """The file or released name that a new run starts from; empty for random weights."""
    return _named(config, "method.encoder.init")


def without_initial_weights(method: Any) -> Any:
    """A method's config that builds the same method from random weights."""
    encoder: Any = getattr(method, "encoder", None)
    if not getattr(encoder, "init", ""):
        return method
    return dataclasses.replace(method, encoder=dataclasses.replace(encoder, init=""))


def _named(config: Any, key: str) -> str:
    for name in key.split("."):
        config = getattr(config, name, None)
    return config or ""


def _identity(path: Path) -> str:
    try:
        if path.is_dir():
            return json.loads((path / DESCRIPTION).read_text())["key"]
        return file_hash(path)
    except OSError:
        # Whoever needs the file says what is wrong with it; a run that has begun needs no initial weights.
        return ""
