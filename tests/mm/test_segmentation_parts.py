from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")

from torch.nn import functional  # noqa: E402

from codemae.mm.segmentation import (  # noqa: E402
    DistortPhotometry,
    PyramidFusion,
    RandomResizedWindow,
    SegmentationFigures,
    StandardiseImage,
    SumOfLevelsHead,
)

pytestmark = pytest.mark.mm


def maps(*widths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, width, 16 >> i, 16 >> i, generator=generator) for i, width in enumerate(widths)]


def test_fusion_begins_as_the_mean_of_both_modalities() -> None:
    fusion = PyramidFusion([8, 12], 4).eval()
    levels = maps(8, 12)
    first, second = fusion(levels)
    torch.testing.assert_close(first, (0.5 * (levels[0][:, :4] + levels[0][:, 4:])).relu())
    assert second.shape == (3, 4, 8, 8)


def test_a_dropped_modality_has_no_influence_and_its_image_is_the_same_at_every_level() -> None:
    fusion = PyramidFusion([4, 4], 2, drop_modality=1.0).train()
    levels = maps(4, 4)
    torch.manual_seed(0)
    kept = fusion._dropped(levels)
    firsts = []
    for before, after in zip(levels, kept, strict=True):
        one, other = before.chunk(2, dim=1)
        first = [torch.equal(after[b], torch.cat([one[b], one[b]])) for b in range(3)]
        assert all(first[b] or torch.equal(after[b], torch.cat([other[b], other[b]])) for b in range(3))
        firsts.append(first)
    assert firsts[0] == firsts[1]
    assert torch.equal(fusion.eval()(levels)[0], PyramidFusion([4, 4], 2).eval()(levels)[0])


def test_fusion_names_widths_that_differ() -> None:
    with pytest.raises(ValueError, match=r"have \[8, 8\] channels, model.neck.in_channels .* is \[4, 8\]"):
        PyramidFusion([4, 8], 4)(maps(8, 8))
    with pytest.raises(ValueError, match="probability"):
        PyramidFusion([4], 2, drop_modality=2)


def test_sum_of_levels_is_upsampling_then_convolution() -> None:
    head = SumOfLevelsHead([4, 6, 8], in_index=[1, 2, 3], stride=8, num_classes=5)
    head.init_weights()
    levels = maps(3, 4, 6, 8)
    logits = head(levels)
    wanted = torch.zeros(3, 5, 64, 64)
    for level, conv in zip(levels[1:], head.levels, strict=True):
        up = functional.interpolate(level, (64, 64), mode="bilinear", align_corners=False)
        wanted += functional.conv2d(up, conv.weight, conv.bias)
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


def test_figures_are_those_of_all_pixels_together() -> None:
    rng = np.random.default_rng(0)
    metric = SegmentationFigures()
    metric.dataset_meta = {"classes": ("a", "b", "c")}
    truths = [rng.integers(0, 3, (5, 6)) for _ in range(3)]
    guesses = [np.where(rng.random((5, 6)) < 0.6, truth, 0) for truth in truths]
    truths[1][:2] = 255
    samples: list[dict[str, Any]] = [
        {
            "pred_sem_seg": {"data": torch.from_numpy(guess)[None]},
            "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
            "row": number,
        }
        for number, (truth, guess) in enumerate(zip(truths, guesses, strict=True))
    ]
    metric.process(None, samples[:2])
    metric.process(None, samples[2:])
    figures = metric.compute_metrics(metric.results)
    ious, f1 = [], []
    for number in range(3):
        hit = false = missed = 0
        for truth, guess in zip(np.ravel(truths), np.ravel(guesses), strict=True):
            if truth == 255:
                continue
            hit += truth == number == guess
            false += truth != number == guess
            missed += guess != number == truth
        ious.append(100 * hit / (hit + false + missed))
        f1.append(200 * hit / (2 * hit + false + missed))
    assert figures["mean_iou"] == pytest.approx(np.mean(ious))
    assert figures["mean_f1"] == pytest.approx(np.mean(f1))
    assert figures["iou_b"] == pytest.approx(ious[1]) and figures["f1_c"] == pytest.approx(f1[2])
    labelled = np.ravel(truths) != 255
    right = (np.ravel(truths) == np.ravel(guesses))[labelled]
    assert figures["overall_accuracy"] == pytest.approx(100 * right.mean())
    assert [row for row, _ in metric.by_row] == [0, 1, 2]


def test_photometry_changes_each_modality_on_its_own() -> None:
    image = np.full((8, 8, 6), 100, np.float32)
    np.random.seed(1)
    changed = DistortPhotometry().transform({"img": image, "parts": [3, 3]})["img"]
    assert changed.dtype == np.float32 and changed.shape == image.shape
    assert not np.array_equal(changed[..., :3], changed[..., 3:])
    with pytest.raises(ValueError, match=r"3 channels a modality, these are \[4\]"):
        DistortPhotometry().transform({"img": image[..., :4], "parts": [4]})


def test_standardising() -> None:
    image = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    mean, std = np.float32([1, 2, 3]), np.float32([2, 4, 5])
    done = StandardiseImage().transform({"img": image, "mean": mean, "std": std})["img"]
    assert done[1, 2, 1] == pytest.approx((image[1, 2, 1] - 2) / 4)


def test_random_window_cuts_image_and_mask_alike() -> None:
    np.random.seed(0)
    mask = np.zeros((60, 40), np.uint8)
    mask[:30] = 1
    window = RandomResizedWindow(32, scale=(0.2, 0.9))
    shares = set()
    for _ in range(20):
        sample = {"img": mask[..., None] * np.ones(6, np.float32), "img_shape": (60, 40)}
        sample |= {"gt_seg_map": mask, "seg_fields": ["gt_seg_map"]}
        done = window.transform(sample)
        assert done["img"].shape == (32, 32, 6) and done["gt_seg_map"].shape == (32, 32)
        assert np.abs(done["img"][..., 5] - done["gt_seg_map"]).mean() < 0.05
        shares.add(round(float(done["gt_seg_map"].mean()), 2))
    assert len(shares) > 5
