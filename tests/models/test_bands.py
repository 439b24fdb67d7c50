import torch

from codemae.models.bands import BandFilling, filling_for


def filled(filling: BandFilling | None, *values: float) -> list[float]:
    assert filling is not None
    return filling(torch.tensor(values)[:, None, None])[:, 0, 0].tolist()


def test_rgb_becomes_thirteen_bands_by_its_mean() -> None:
    filling = filling_for("optical", 3, 13)
    # B1 B2 B3 B4 B5 ...: blue 3, green 2 and red 1 at their places, their mean 2 elsewhere.
    assert filled(filling, 1.0, 2.0, 3.0) == [2, 3, 2, 1, *[2] * 9]
    assert str(filling).startswith("rgb_mean for B1 B5 ")
    assert filled(filling_for("optical", 3, 13, "zero"), 1.0, 2.0, 3.0) == [0, 3, 2, 1, *[0] * 9]


def test_named_bands_are_found_and_surplus_ones_left_out() -> None:
    filling = filling_for("optical", ["B02", "B03", "B04", "B08"], 3)
    assert filled(filling, 1.0, 2.0, 3.0, 4.0) == [3, 2, 1]
    assert str(filling) == "by name"
    assert filled(filling_for("optical", ["blue", "green", "red"], ["R", "G", "B"]), 1.0, 2.0, 3.0) == [
        3,
        2,
        1,
    ]


def test_vv_and_vh_get_their_mean_or_are_repeated() -> None:
    assert filled(filling_for("sar", 2, 3), 1.0, 3.0) == [1, 3, 2]
    assert filled(filling_for("sar", 2, 3, "repeat"), 1.0, 3.0) == [1, 3, 1]


def test_nothing_is_filled_where_the_bands_are_the_same() -> None:
    assert filling_for("optical", 3, 3) is None
    assert filling_for("optical", ["R", "G", "B"], ["B4", "B3", "B2"]) is None
    assert filling_for("sar", 1, 3) is None  # the encoder repeats a single band
    assert filled(filling_for("sar", 1, 3, "repeat"), 5.0) == [5, 5, 5]
