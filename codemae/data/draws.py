"""What a sampler asks of a dataset."""

from typing import NamedTuple


class Draw(NamedTuple):
    """One sample of a batch.

    Attributes:
        epoch: The epoch.
        repeat: How often this row was drawn before in the epoch.
        optical_row: Index row of the optical side, -1 for none.
        sar_row: Index row of the SAR side, -1 for none; the same row when paired.
        paired: Whether the two sides show the same ground.
    """

    epoch: int
    repeat: int
    optical_row: int
    sar_row: int
    paired: bool

    def row(self, modality: str) -> int:
        """Index row of one side."""
        return self.optical_row if modality == "optical" else self.sar_row
