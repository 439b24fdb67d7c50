import pytest

from codemae.data.views import View, Views


def test_views_of_one_group_must_crop_alike():
    optical = View(modality="optical", size=32, scale=(0.2, 1.0))
    with pytest.raises(ValueError, match="'sar' shares crop group 'pair' but crops by another rule"):
        Views({"optical": optical, "sar": View(modality="sar", size=32, scale=(0.5, 1.0))})
    views = Views({"optical": optical, "sar": View(modality="sar", size=16)})
    assert views.modalities == ("optical", "sar")


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.5)},
        {"horizontal_flip": 1.2},
        {"size": 0},
        {"ratio": (2.0, 1.0)},
    ],
)
def test_impossible_views_are_refused(wrong):
    with pytest.raises(ValueError):
        View(**{"modality": "sar", "size": 8} | wrong)


def test_unknown_modality_is_refused():
    with pytest.raises(KeyError, match="infrared"):
        View(modality="infrared", size=8)
