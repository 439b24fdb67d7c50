import pytest
import torch

from codemae.models.masking import gather_tokens, random_masking


def test_kept_and_removed_partition_the_patches() -> None:
    masking = random_masking(torch.rand(3, 196), 0.75)
    assert masking.ids_keep.shape == (3, 49)
    for keep, removed, mask in zip(*masking, strict=True):
        assert sorted(torch.cat([keep, removed]).tolist()) == list(range(196))
        assert mask[keep].sum() == 0 and mask[removed].sum() == 147


def test_smallest_noise_is_kept() -> None:
    masking = random_masking(torch.tensor([[0.9, 0.1, 0.5, 0.2]]), 0.5)
    assert sorted(masking.ids_keep[0].tolist()) == [1, 3]


@pytest.mark.parametrize("ratio", [1.0, 0.999, -0.5])
def test_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        random_masking(torch.rand(1, 16), ratio)


def test_gather_picks_by_index() -> None:
    tokens = torch.arange(8.0).view(1, 4, 2)
    assert gather_tokens(tokens, torch.tensor([[3, 0]])).tolist() == [[[6, 7], [0, 1]]]
