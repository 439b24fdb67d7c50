import numpy as np
import torch

from codemae.losses.reconstruction import patchify, reconstruction_loss, standardise_patches, unpatchify


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
