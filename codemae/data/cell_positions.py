"""Where the cells of a feature map lie in the source image, and which cells of two crops lie closest."""

import torch
from torch import Tensor


def cell_positions(crops: Tensor, grid: tuple[int, int]) -> Tensor:
    """Centres of the cells of each crop's feature map, in source pixels.

    Cell (r, c) of an unflipped crop lies at (top + (r + 1/2) height / h, left + (c + 1/2) width / w); a flip
    counts rows or columns from the other end.

    Args:
        crops: (B, 5), as ``Batch.crops``: top, left, height, width, flips (bit 0 horizontal, bit 1 vertical).
        grid: (h, w) of the feature map.

    Returns:
        (B, h * w, 2) row and column, cells in row-major order.

    Reference: CMID Eq. 6, 7, which have no flips.
    """
    top, left, height, width, flips = crops.float().unbind(1)
    flips = flips.long()
    rows, columns = (
        (torch.arange(count, device=crops.device, dtype=torch.float32) + 0.5) / count for count in grid
    )
    down = torch.where(((flips & 2) > 0)[:, None], 1 - rows, rows) * height[:, None] + top[:, None]
    across = torch.where(((flips & 1) > 0)[:, None], 1 - columns, columns) * width[:, None] + left[:, None]
    h, w = grid
    return torch.stack(
        [down[:, :, None].expand(-1, h, w), across[:, None, :].expand(-1, h, w)], dim=-1
    ).flatten(1, 2)


def matched_cells(
    first_crops: Tensor, second_crops: Tensor, grid: tuple[int, int], count: int
) -> tuple[Tensor, Tensor]:
    """The cells of the first crop that lie closest to some cell of the second, and those cells.

    Args:
        first_crops: (B, 5).
        second_crops: (B, 5), of the same images.
        grid: (h, w) of both feature maps.
        count: How many pairs an image gives; at most h * w.

    Returns:
        Indices into the cells of the first and of the second crop, each (B, min(count, h * w)), closest pair
        first. No cell of the first appears twice; one of the second may.
    """
    first, second = cell_positions(first_crops, grid), cell_positions(second_crops, grid)
    squared = (first[:, :, None] - second[:, None]).square().sum(-1)
    nearest, partner = squared.min(dim=2)
    chosen = nearest.topk(min(count, nearest.shape[1]), dim=1, largest=False).indices
    return chosen, partner.gather(1, chosen)
