import math

import numpy as np
import pytest
import torch

from codemae.models.deformable import DeformableAttention

DIM, HEADS, GROUPS = 8, 4, 2


def attention(stride: int = 2, grid: tuple[int, int] = (6, 6), residual: bool = True) -> DeformableAttention:
    torch.manual_seed(0)
    module = DeformableAttention(
        DIM, num_heads=HEADS, groups=GROUPS, stride=stride, kernel_size=3, grid=grid, residual=residual
    )
    with torch.no_grad():
        module.bias_table.normal_()
        module.offsets[3].weight.mul_(2)
    return module.double()


def read(maps: np.ndarray, row: float, column: float) -> np.ndarray:
    """Bilinear value of (C, H, W) at cell coordinates, cells being squares with values at their centres."""
    height, width = maps.shape[1:]
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = math.floor(row), math.floor(column)
    value = np.zeros(len(maps))
    for i, wi in ((top, 1 - (row - top)), (top + 1, row - top)):
        for j, wj in ((left, 1 - (column - left)), (left + 1, column - left)):
            if wi * wj:
                value = value + wi * wj * maps[:, i, j]
    return value


def slow_attention(module: DeformableAttention, x: torch.Tensor) -> np.ndarray:
    """Queries, moved points, bilinear reading, bias and softmax for one image, by loops."""
    points = module.points(x).detach().numpy()
    weights = {
        name: (getattr(module, name).weight.detach().numpy()[:, :, 0, 0], getattr(module, name).bias)
        for name in ("query", "key", "value", "project")
    }
    weights = {name: (w, b.detach().numpy()) for name, (w, b) in weights.items()}
    image = x[0].numpy()
    height, width = image.shape[1:]
    count = points.shape[1] * points.shape[2]
    read_out = np.zeros((count, DIM))
    width_of_group, width_of_head = DIM // GROUPS, DIM // HEADS
    for group in range(GROUPS):
        part = slice(group * width_of_group, (group + 1) * width_of_group)
        for n, (y, z) in enumerate(points[group].reshape(-1, 2)):
            read_out[n, part] = read(image[part], (y + 1) / 2 * height - 0.5, (z + 1) / 2 * width - 0.5)
    keys = read_out @ weights["key"][0].T + weights["key"][1]
    values = read_out @ weights["value"][0].T + weights["value"][1]
    table = module.bias_table.detach().numpy()
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            query = weights["query"][0] @ image[:, i, j] + weights["query"][1]
            found = np.zeros(DIM)
            for head in range(HEADS):
                part = slice(head * width_of_head, (head + 1) * width_of_head)
                group = head // (HEADS // GROUPS)
                scores = []
                for n, (y, z) in enumerate(points[group].reshape(-1, 2)):
                    # Displacement in cells; the table's middle entry is that of none.
                    down = i - ((y + 1) / 2 * height - 0.5)
                    across = j - ((z + 1) / 2 * width - 0.5)
                    bias = read(table[head : head + 1], down + height - 1, across + width - 1)[0]
                    scores.append(query[part] @ keys[n, part] / math.sqrt(width_of_head) + bias)
                chances = np.exp(scores) / np.exp(scores).sum()
                found[part] = chances @ values[:, part]
            out[:, i, j] = weights["project"][0] @ found + weights["project"][1]
    return out


@pytest.mark.parametrize("stride", [1, 2])
def test_attention_equals_loops(stride: int) -> None:
    module = attention(stride, residual=False)
    x = torch.randn(1, DIM, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    np.testing.assert_allclose(module(x)[0].detach().numpy(), slow_attention(module, x), rtol=1e-4, atol=1e-5)


def test_residual_adds_the_map() -> None:
    x = torch.randn(2, DIM, 4, 6).double()
    plain, with_residual = attention(residual=False), attention(residual=True)
    torch.testing.assert_close(with_residual(x), x + plain(x))


def test_without_offsets_points_are_the_regular_grid_and_reading_gives_the_map_back() -> None:
    module = attention(stride=1)
    with torch.no_grad():
        module.offsets[3].weight.zero_()
    points = module.points(torch.randn(1, DIM, 4, 4).double())
    expected = torch.tensor([-0.75, -0.25, 0.25, 0.75]).double()
    torch.testing.assert_close(points[0, :, 0, 0].double(), expected)
    torch.testing.assert_close(points[1, 0, :, 1].double(), expected)


def test_points_stay_on_the_map_and_move_apart_by_group() -> None:
    module = attention()
    with torch.no_grad():
        module.offsets[3].weight.mul_(50)
    points = module.points(torch.randn(1, DIM, 6, 6, generator=torch.Generator().manual_seed(0)).double())
    assert points.shape == (GROUPS, 3, 3, 2)
    assert points.min() >= -1 and points.max() <= 1
    assert not torch.allclose(points[0], points[1])


def test_every_parameter_gets_a_gradient() -> None:
    module = attention()
    (module(torch.randn(2, DIM, 6, 6).double()) ** 2).sum().backward()
    assert all(
        p.grad is not None and p.grad.any() for name, p in module.named_parameters() if name != "key.bias"
    )


def test_groups_must_divide_heads() -> None:
    with pytest.raises(ValueError, match="8 channels, 4 heads, 3 groups"):
        DeformableAttention(8, num_heads=4, groups=3, stride=1, kernel_size=3, grid=(2, 2))
