import subprocess
import sys

import numpy as np
import pytest
import torch

from codemae.analysis.embedding import draw_pairs, project_pairs
from codemae.analysis.report import drawing


@pytest.mark.slow
def test_two_far_modalities_stay_two_clouds_and_layout_is_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    optical = torch.randn(30, 8, generator=generator) + torch.tensor([20.0] + 7 * [0.0])
    sar = torch.randn(30, 8, generator=generator) - torch.tensor([20.0] + 7 * [0.0])
    found = project_pairs(optical, sar, seed=3, neighbours=8)
    assert found.optical.shape == found.sar.shape == (30, 2)

    centres = found.optical.mean(axis=0), found.sar.mean(axis=0)
    clouds = zip((found.optical, found.sar), centres, strict=True)
    spread = max(np.linalg.norm(points - centre, axis=1).mean() for points, centre in clouds)
    assert np.linalg.norm(centres[0] - centres[1]) > 1.5 * spread

    again = project_pairs(optical, sar, seed=3, neighbours=8)
    np.testing.assert_array_equal(again.optical, found.optical)

    with drawing() as (_, axes):
        draw_pairs(axes[0], found, most_lines=10)
    assert len(axes[0].collections[0].get_paths()) == 10


def test_unpaired_features_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4 pairs"):
        project_pairs(torch.zeros(5, 3), torch.zeros(6, 3))


def test_umap_is_imported_only_when_used() -> None:
    code = "import codemae.analysis.embedding, sys; sys.exit('umap' in sys.modules or 'numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
