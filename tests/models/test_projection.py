import numpy as np
import torch
from torch import nn

from codemae.models.projection import PixelHead, PrototypeHead, projector


def test_projector_has_the_layers_it_names() -> None:
    kinds = [type(layer) for layer in projector([4, 8, 8, 2], batch_norm=True)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    assert [type(layer) for layer in projector([4, 2])] == [nn.Linear]


@torch.no_grad()
def test_prototype_similarities_are_cosines() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(4, 8, 3, 5)
    features = torch.randn(2, 4)
    embedded, prototypes = head.mlp(features).numpy(), head.prototypes.numpy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(features).dtype == torch.float32
    found = head(features)
    for row in range(2):
        for k in range(5):
            norms = np.sqrt((embedded[row] ** 2).sum() * (prototypes[k] ** 2).sum())
            np.testing.assert_allclose(found[row, k], embedded[row] @ prototypes[k] / norms, rtol=1e-5)


@torch.no_grad()
def test_pixel_head_paints_beneath_each_cell_from_that_cell_alone() -> None:
    torch.manual_seed(0)
    head = PixelHead(6, 3, 4)
    maps = torch.randn(1, 6, 2, 3)
    painted = head(maps)
    assert painted.shape == (1, 3, 8, 12)
    maps[:, :, 1, 2] += 1
    changed = (head(maps) != painted).any(1)[0]
    assert changed[4:, 8:].all() and changed.sum() == 16
