"""Which patch of one image finds which patch of another by its features alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The most certain matches between two images.

    Attributes:
        first: (n,) patches of the first image.
        second: (n,) their partners.
        similarity: (n,) cosine, falling.
    """

    first: Tensor
    second: Tensor
    similarity: Tensor


def match_patches(first: Tensor, second: Tensor, count: int = 12) -> Matches:
    """Pairs of patches that are each other's nearest by cosine, the most similar ``count`` of them.

    Args:
        first: (N, D) tokens of one image.
        second: (L, D) tokens of the other.
        count: How many at most.
    """
    cosine = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T
    partner = cosine.argmax(dim=1)
    mutual = (cosine.argmax(dim=0)[partner] == torch.arange(len(first))).nonzero().flatten()
    similarity = cosine[mutual, partner[mutual]]
    order = similarity.argsort(descending=True)[:count]
    return Matches(first=mutual[order], second=partner[mutual[order]], similarity=similarity[order])


def without_place(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) less their mean over the images at each place: what the image shows there.

    Two tokens of one place share what the encoder adds for the place, whatever their images show. A single
    mean token takes away the modality only.
    """
    return tokens - tokens.mean(dim=0)


def mirror_grid(tokens: Tensor) -> Tensor:
    """Tokens (B, N, D) of a square grid with its columns in reverse order.

    Raises:
        ValueError: The tokens are no square grid.
    """
    side = round(tokens.shape[1] ** 0.5)
    if side * side != tokens.shape[1]:
        raise ValueError(f"{tokens.shape[1]} tokens are no square grid")
    return tokens.unflatten(1, (side, side)).flip(2).flatten(1, 2)


def found_in_place(first: Tensor, second: Tensor, reach: int = 1) -> tuple[float, float]:
    """Share of patches whose nearest patch in the other image of the pair lies where it should.

    Args:
        first: (B, N, D) tokens of at least two images, N a square grid.
        second: (B, N, D) tokens of the other images of the pairs.
        reach: Patches along each axis by which the nearest may be off.

    Returns:
        The share, and the share by chance: that found in the other image of the next pair instead, which the
        content of the patches does not decide.

    Raises:
        ValueError: The tokens are no square grid, or there is only one image.
    """
    side = round(first.shape[1] ** 0.5)
    if side * side != first.shape[1]:
        raise ValueError(f"{first.shape[1]} tokens are no square grid")
    if len(first) < 2:
        raise ValueError("the chance level needs at least two pairs of images")
    places = torch.arange(side * side)
    rows, columns = places // side, places % side
    near = ((rows[:, None] - rows).abs() <= reach) & ((columns[:, None] - columns).abs() <= reach)

    def share(partners: Tensor) -> float:
        cosine = F.normalize(first, dim=-1) @ F.normalize(partners, dim=-1).transpose(1, 2)
        nearest = cosine.argmax(dim=-1)
        return float(near[places.expand_as(nearest), nearest].float().mean())

    return share(second), share(second.roll(1, dims=0))
