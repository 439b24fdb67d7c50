"""CoDe-MAE: one encoder for optical and SAR images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codemae.models.factory import load_encoder

__all__ = ["load_encoder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded on first use, so that reading an index or a config does not import the model code.
    if name == "load_encoder":
        from codemae.models.factory import load_encoder

        return load_encoder
    raise AttributeError(f"module 'codemae' has no attribute {name!r}")
