"""The newest keys a momentum teacher gave, kept as negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """A ring of L2-normalised keys; the oldest are overwritten. It begins with random directions.

    Content and place are buffers, so a checkpoint restores them exactly.

    Args:
        size: Keys held, K.
        dim: Width of a key, D.
    """

    keys: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, keys: Tensor) -> None:
        """Writes keys (n, D) of any length at the current place; of more than K, the last K remain.

        On several processes, all must add the same keys in the same order.
        """
        size = len(self.keys)
        places = (self.place + torch.arange(len(keys), device=self.keys.device)) % size
        self.keys[places[-size:]] = F.normalize(keys[-size:].float(), dim=1)
        self.place.copy_((self.place + len(keys)) % size)
