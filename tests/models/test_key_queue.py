import pytest
import torch

from codemae.models.key_queue import KeyQueue


def unit(rows: list[list[float]]) -> torch.Tensor:
    keys = torch.tensor(rows)
    return keys / keys.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("lengths", [[2, 2, 2], [3, 4, 1], [5], [7, 12], [13, 2]])
def test_content_equals_a_plain_list_that_is_overwritten_in_turn(lengths: list[int]) -> None:
    torch.manual_seed(0)
    queue = KeyQueue(5, 3)
    expected, place = queue.keys.tolist(), 0
    for length in lengths:
        keys = torch.randn(length, 3)
        queue.add(keys)
        for key in unit(keys.tolist()).tolist():
            expected[place % 5] = key
            place += 1
    torch.testing.assert_close(queue.keys, torch.tensor(expected))
    assert queue.place.item() == place % 5


def test_it_begins_with_different_unit_vectors_and_is_all_in_its_state() -> None:
    torch.manual_seed(0)
    queue = KeyQueue(50, 8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(50))
    assert (queue.keys @ queue.keys.T).fill_diagonal_(0).max() < 0.99
    queue.add(torch.randn(7, 8))
    again = KeyQueue(50, 8)
    again.load_state_dict(queue.state_dict())
    assert torch.equal(again.keys, queue.keys) and again.place == 7
