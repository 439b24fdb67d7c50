import math

import numpy as np
import pytest
import torch

from codemae.data.photometric import NUM_DRAWS, PhotometricConfig, gaussian_blur, photometric

EVERYTHING = PhotometricConfig(
    brightness=0.4, contrast=0.4, saturation=0.4, grayscale=0.5, blur=0.5, solarize=0.5
)


def images(count: int = 4, channels: int = 3, size: int = 12) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def draws(count: int = 4, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, NUM_DRAWS, generator=torch.Generator().manual_seed(seed))


def slow_blur(image: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """One channel, by loops, with mirrored borders."""
    size = len(image)
    weights = [math.exp(-((d / sigma) ** 2) / 2) for d in range(-radius, radius + 1)]

    def mirrored(i: int) -> int:
        i = abs(i)
        return i if i < size else 2 * (size - 1) - i

    out = np.zeros_like(image)
    for i in range(size):
        for j in range(size):
            for a, wa in enumerate(weights):
                for b, wb in enumerate(weights):
                    out[i, j] += wa * wb * image[mirrored(i + a - radius), mirrored(j + b - radius)]
    return out / sum(weights) ** 2


def slow_photometric(image: np.ndarray, numbers: np.ndarray, config: PhotometricConfig) -> np.ndarray:
    chance, amount = numbers[:4], numbers[4:]
    jittered = chance[0] < config.jitter_probability
    for kind, largest in enumerate((config.brightness, config.contrast, config.saturation)):
        if not (jittered and largest):
            continue
        factor = 1 - largest + 2 * largest * amount[kind]
        anchor = 0.0 if kind == 0 else image.mean(axis=(1, 2) if kind == 1 else 0, keepdims=True)
        image = np.clip(anchor + factor * (image - anchor), 0, 1)
    if chance[1] < config.grayscale:
        image = np.repeat(image.mean(0, keepdims=True), len(image), 0)
    if chance[2] < config.blur:
        low, high = config.blur_sigma
        image = np.stack([slow_blur(c, low + (high - low) * amount[3], int(3 * high + 0.5)) for c in image])
    if chance[3] < config.solarize:
        image = np.where(image > 0.5, 1 - image, image)
    return image


def test_every_image_equals_loops_over_its_own_numbers() -> None:
    config = PhotometricConfig(
        brightness=0.4, contrast=0.3, saturation=0.2, grayscale=0.5, blur=0.5, solarize=0.5
    )
    config.blur_sigma = (0.1, 1.0)
    pixels, numbers = images(6).double(), draws(6).double()
    # Each change is made to some image and not to others.
    for place, share in enumerate((0.8, 0.5, 0.5, 0.5)):
        assert 0 < (numbers[:, place] < share).sum() < 6
    found = photometric(pixels, numbers, config).numpy()
    for image, row, result in zip(pixels.numpy(), numbers.numpy(), found, strict=True):
        np.testing.assert_allclose(result, slow_photometric(image, row, config), atol=1e-6)


def test_nothing_asked_nothing_changed() -> None:
    assert torch.equal(photometric(images(), draws(), PhotometricConfig()), images())


def test_an_image_depends_on_its_own_numbers_alone() -> None:
    whole = photometric(images(), draws(), EVERYTHING)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = photometric(images()[order], draws()[order], EVERYTHING)
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-6)
    assert not torch.equal(photometric(images(), draws(seed=2), EVERYTHING), whole)


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_any_number_of_channels_stays_in_range(channels: int) -> None:
    found = photometric(images(8, channels), draws(8), EVERYTHING)
    assert found.shape == (8, channels, 12, 12)
    assert found.min() >= 0 and found.max() <= 1


def test_blur_keeps_constants_and_small_images() -> None:
    flat = torch.full((2, 1, 3, 3), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, torch.tensor([0.1, 2.0]), 2.0), flat)
    # A tenth of a pixel is no blur at all.
    sharp = images(1)
    torch.testing.assert_close(gaussian_blur(sharp, torch.tensor([0.1]), 2.0), sharp)


def test_blur_is_as_exact_under_autocast() -> None:
    sharp, sigma = images(2), torch.tensor([0.5, 1.5])
    expected = gaussian_blur(sharp, sigma, 2.0)
    with torch.autocast("cpu", torch.bfloat16):
        blurred = gaussian_blur(sharp, sigma, 2.0)
    assert torch.equal(blurred, expected) and blurred.dtype == torch.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"blur": 1.5}, "probability"), ({"contrast": -1.0}, "0 to 1"), ({"blur_sigma": (0.0, 1.0)}, "low")],
)
def test_impossible_settings_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PhotometricConfig(**fields)
