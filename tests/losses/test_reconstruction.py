import numpy as np
import pytest
import torch

from codemae.losses.reconstruction import (
    PixelLoss,
    masked_pixel_loss,
    patchify,
    reconstruction_loss,
    standardise_patches,
    unpatchify,
)


def test_loss_equals_a_double_loop() -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 3, 5))
    total = 0.0
    for b in range(2):
        for patch in range(3):
            total += sum((guess[b, patch, e] - truth[b, patch, e]) ** 2 for e in range(5)) / 5
    loss = reconstruction_loss(torch.tensor(guess), torch.tensor(truth))
    np.testing.assert_allclose(loss.item(), total / 6, rtol=1e-6)


def test_loss_by_hand() -> None:
    # ((1-0)^2 + (2-0)^2) / 2 = 2.5 and ((0-0)^2 + (0-1)^2) / 2 = 0.5; their mean is 1.5.
    loss = reconstruction_loss(
        torch.tensor([[[1.0, 2.0], [0.0, 0.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    )
    assert loss.item() == 1.5


def test_targets_receive_no_gradient() -> None:
    guess, truth = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 2, 3, requires_grad=True)
    reconstruction_loss(guess, truth).backward()
    assert truth.grad is None
    torch.testing.assert_close(guess.grad, 2 * (guess - truth).detach() / 6)


def test_patches_are_row_major_with_channels_last() -> None:
    images = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    patches = patchify(images, 2)
    assert patches[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]
    assert torch.equal(unpatchify(patches, 2, (2, 2)), images)


def test_standardised_patches_forget_scale_and_offset() -> None:
    torch.manual_seed(0)
    patches = torch.rand(2, 3, 48) + 0.5
    standardised = standardise_patches(patches)
    expected = (patches.numpy() - patches.numpy().mean(-1, keepdims=True)) / np.sqrt(
        patches.numpy().var(-1, ddof=1, keepdims=True) + 1e-6
    )
    np.testing.assert_allclose(standardised.numpy(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(standardise_patches(3 * patches + 7), standardised, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["l1", "focal_l1"])
def test_pixel_loss_equals_a_loop_over_removed_pixels(kind: PixelLoss) -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 4, 4))
    mask = np.zeros((2, 1, 4, 4))
    mask[0, 0, :2], mask[1, 0, :, 2:] = 1, 1
    errors = []
    for b, y, x in zip(*np.nonzero(mask[:, 0]), strict=True):
        for c in range(3):
            error = abs(guess[b, c, y, x] - truth[b, c, y, x])
            errors.append(error * (2 / (1 + np.exp(-0.2 * error)) - 1) if kind == "focal_l1" else error)
    loss = masked_pixel_loss(*(torch.tensor(a) for a in (guess, truth, mask)), kind)
    np.testing.assert_allclose(loss.item(), np.mean(errors), rtol=1e-6)


def test_pixel_loss_by_hand_ignores_visible_pixels_and_spares_the_target() -> None:
    # One removed pixel of two channels: (|1 - 3| + |0 - 1|) / 2.
    guess = torch.tensor([[[[1.0, 5.0]], [[0.0, 5.0]]]], requires_grad=True)
    truth = torch.tensor([[[[3.0, 0.0]], [[1.0, 9.0]]]], requires_grad=True)
    loss = masked_pixel_loss(guess, truth, torch.tensor([[[[1.0, 0.0]]]]))
    loss.backward()
    assert loss.item() == 1.5 and truth.grad is None
    assert guess.grad is not None and guess.grad.tolist() == [[[[-0.5, 0.0]], [[-0.5, 0.0]]]]
