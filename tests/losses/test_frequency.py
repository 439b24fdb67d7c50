import cmath
import itertools
import math

import numpy as np
import pytest
import torch
from ddp_helpers import run_on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from codemae import distributed
from codemae.losses.frequency import focal_frequency_loss

WORLD, ROWS = 2, 2
OPTIONS = [
    dict(zip(("average_spectrum", "log_weights", "batch_weights"), flags, strict=True))
    for flags in itertools.product((False, True), repeat=3)
]
OFFICIAL = OPTIONS[-1]


def slow_spectrum(image: np.ndarray) -> np.ndarray:
    """The unitary transform of one channel, by its defining double sum."""
    height, width = image.shape
    spectrum = np.zeros((height, width), dtype=complex)
    for u, v in itertools.product(range(height), range(width)):
        for y, x in itertools.product(range(height), range(width)):
            spectrum[u, v] += image[y, x] * cmath.exp(-2j * cmath.pi * (u * y / height + v * x / width))
    return spectrum / math.sqrt(height * width)


def slow_loss(
    predictions: np.ndarray,
    targets: np.ndarray,
    alpha: float,
    average_spectrum: bool,
    log_weights: bool,
    batch_weights: bool,
) -> float:
    spectra = [
        np.array([[slow_spectrum(channel) for channel in image] for image in images])
        for images in (predictions, targets)
    ]
    if average_spectrum:
        spectra = [s.mean(0, keepdims=True) for s in spectra]
    distance = np.abs(spectra[0] - spectra[1])
    weights = distance**alpha
    if log_weights:
        weights = np.log(weights + 1)
    if batch_weights:
        weights = weights / weights.max()
    else:
        weights = np.array([[channel / channel.max() for channel in image] for image in weights])
    return float((weights * distance**2).mean())


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(k for k, v in o.items() if v) or "plain")
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_loss_equals_a_slow_transform(options: dict[str, bool], alpha: float) -> None:
    rng = np.random.default_rng(0)
    predictions, targets = rng.normal(size=(2, 2, 4, 6)), rng.normal(size=(2, 2, 4, 6))
    loss = focal_frequency_loss(torch.tensor(predictions), torch.tensor(targets), alpha=alpha, **options)
    assert loss.item() == pytest.approx(slow_loss(predictions, targets, alpha, **options), rel=1e-5)


def test_loss_by_hand() -> None:
    # The error is the constant 1 on 2 x 2 pixels: its spectrum is 2 at frequency 0 and 0 elsewhere, so the
    # weights are 1, 0, 0, 0 and the mean over four frequencies of w d^2 is 4 / 4.
    loss = focal_frequency_loss(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert loss.item() == pytest.approx(1.0)


def test_weights_are_constants_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 1, 4, 4, generator=generator, requires_grad=True)
    target = torch.randn(2, 1, 4, 4, generator=generator, requires_grad=True)
    focal_frequency_loss(prediction, target).backward()
    spectrum = np.fft.fft2((prediction - target).detach().numpy(), norm="ortho")
    weights = np.abs(spectrum) / np.abs(spectrum).max((2, 3), keepdims=True)
    expected = 2 / spectrum.size * np.fft.ifft2(weights * spectrum, norm="ortho").real
    torch.testing.assert_close(prediction.grad, torch.tensor(expected, dtype=torch.float32))
    assert target.grad is None


@pytest.mark.parametrize("options", [OPTIONS[0], OFFICIAL], ids=["plain", "official"])
def test_equal_images_give_zero_and_a_finite_gradient(options: dict[str, bool]) -> None:
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    loss = focal_frequency_loss(images, images.detach().clone(), **options)
    loss.backward()
    assert loss.item() == 0 and images.grad is not None and not images.grad.any()


def test_half_precision_is_computed_in_float32() -> None:
    images = torch.rand(1, 1, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = focal_frequency_loss(images, torch.zeros(1, 1, 4, 4))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        focal_frequency_loss(images.float(), torch.zeros(1, 1, 4, 4)).item(), rel=1e-6
    )


class Painter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(WORLD * ROWS, 1, 4, 4, generator=generator),
        torch.randn(WORLD * ROWS, 2, 4, 4, generator=generator),
    )


def rank_step(options: dict[str, bool]) -> tuple[float, list[Tensor]]:
    model = Painter()
    mine = slice(distributed.rank() * ROWS, (distributed.rank() + 1) * ROWS)
    images, targets = data()
    wrapped = DistributedDataParallel(model)
    loss = focal_frequency_loss(wrapped(images[mine]), targets[mine], **options)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.ddp
@pytest.mark.parametrize(
    "options", [OPTIONS[0], OPTIONS[1], OFFICIAL], ids=["plain", "batch_weights", "official"]
)
def test_ddp_value_and_gradient_equal_one_process_with_the_whole_batch(options: dict[str, bool]) -> None:
    model, (images, targets) = Painter(), data()
    loss = focal_frequency_loss(model(images), targets, **options)
    loss.backward()
    results = run_on_ranks(rank_step, options, world_size=WORLD)
    assert np.mean([value for value, _ in results]) == pytest.approx(loss.item(), rel=1e-5)
    for _, gradients in results:
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)
