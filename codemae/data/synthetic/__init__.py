"""Synthetic optical/SAR pairs: a digital twin whose labels and factors are known."""

from codemae.data.synthetic.factors import (
    COVERS,
    FACTOR_SIDES,
    SCENES,
    SynthesisOptions,
    draw_factors,
)
from codemae.data.synthetic.pair import SyntheticPair, synthesise
from codemae.data.synthetic.writer import write_dataset

__all__ = [
    "COVERS",
    "FACTOR_SIDES",
    "SCENES",
    "SynthesisOptions",
    "SyntheticPair",
    "draw_factors",
    "synthesise",
    "write_dataset",
]
