from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.signal import convolve2d

from isocost.errors import DataError
from isocost.scoring.paired import PAIRED, paired_mean, psnr, ssim


def pictures(n: int = 3, height: int = 24, width: int = 31, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth coloured images, and the same with noise: (images, targets)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width][..., None]
    phase = rng.uniform(0, 6, (n, 1, 1, 3))
    targets = 127 + 100 * np.sin(rows / 5 + phase) * np.cos(columns / 7 + phase)
    images = targets + rng.normal(0, 20, targets.shape)
    return images.clip(0, 255).astype(np.uint8), targets.astype(np.uint8)


def luma(images: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, 16 to 235."""
    return 16 + (images @ np.array([65.481, 128.553, 24.966])) / 255


def direct_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """One channel, by a two-dimensional convolution."""
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        return convolve2d(values, window, mode="valid")

    x, y = x.astype(float), y.astype(float)
    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return np.mean((2 * mx * my + c1) * (2 * cxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))


def test_psnr_is_that_of_the_mean_squared_error():
    images, targets = pictures()
    for image, target, value in zip(images, targets, psnr(images, targets), strict=True):
        mse = np.mean((image.astype(float) - target) ** 2)
        assert value == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse), rel=1e-12)
    black, white = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
    assert psnr(black, white) == [0]


@pytest.mark.parametrize("name", ["psnr", "psnr-y"])
def test_an_equal_image_has_the_best_finite_psnr(name):
    target = np.full((1, 5, 5, 3), 100, np.uint8)
    nearly = target.copy()
    nearly[0, 2, 2, 2] += 1  # blue counts least in luma
    best = PAIRED[name](target, target)
    assert np.isfinite(best) and best == pytest.approx(PAIRED[name](nearly, target))


def test_ssim_matches_a_direct_convolution():
    images, targets = pictures()
    expected = [
        np.mean([direct_ssim(x[..., c], y[..., c]) for c in range(3)]) for x, y in zip(images, targets, strict=True)
    ]
    np.testing.assert_allclose(ssim(images, targets), expected, rtol=1e-10)


def test_luma_is_that_of_bt_601():
    images, targets = pictures()
    x, y = luma(images), luma(targets)
    expected = [direct_ssim(*pair) for pair in zip(x, y, strict=True)]
    np.testing.assert_allclose(PAIRED["ssim-y"](images, targets), expected, rtol=1e-10)
    errors = ((x - y) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(PAIRED["psnr-y"](images, targets), 10 * np.log10(255**2 / errors), rtol=1e-12)


def test_ssim_is_one_for_equal_images_and_has_a_closed_form_for_flat_ones():
    images, _ = pictures()
    np.testing.assert_allclose(ssim(images, images), 1, rtol=1e-12)
    dark, light = (np.full((1, 15, 15, 3), level, np.uint8) for level in (50, 80))
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, light)[0] == pytest.approx((2 * 50 * 80 + c1) / (50**2 + 80**2 + c1), rel=1e-9)


@pytest.mark.parametrize("name", PAIRED)
def test_an_images_value_does_not_depend_on_the_others(name):
    images, targets = pictures()
    together = PAIRED[name](images, targets)
    alone = [PAIRED[name](images[i : i + 1], targets[i : i + 1])[0] for i in range(3)]
    assert together.dtype == np.float64 and together.tolist() == alone
    np.testing.assert_allclose(PAIRED[name](targets, images), together, rtol=1e-12)


def test_images_that_do_not_pair_up_are_refused():
    images, targets = pictures()
    with pytest.raises(DataError, match=r"\[2, 24, 31, 3\] and targets \[3, 24, 31, 3\] do not pair up"):
        psnr(images[:2], targets)
    with pytest.raises(DataError, match="expected uint8"):
        ssim(images / 255, targets)
    with pytest.raises(DataError, match=r"10 x 31 .* 11 x 11"):
        ssim(images[:, :10], targets[:, :10])


def test_the_mean_over_pairs_has_the_textbook_error():
    values = np.array([20.0, 25, 30, 21])
    estimate = paired_mean(values, unit="dB", higher_is_better=True)
    assert (estimate.value, estimate.n, estimate.unit) == (24, 4, "dB")
    assert estimate.stderr == pytest.approx(values.std(ddof=1) / 2)
    with pytest.raises(DataError, match=r"dB: NaN or infinity in 1 image rows \(2\)"):
        paired_mean(np.where(values == 30, np.inf, values), unit="dB", higher_is_better=True)
    with pytest.raises(DataError, match=r"one value an image, \[N\], found \[4, 1\]"):
        paired_mean(values[:, None], unit="dB", higher_is_better=True)
