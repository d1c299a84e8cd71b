"""An image beside its target, value by value: PSNR and SSIM of each image, and their means (float64).

Both take all three channels of RGB or, under `-y`, the luma of ITU-R BT.601 in 16 to 235, unrounded: papers on
super-resolution print either, so the name says which. No border is cut. Images are taken one by one, so that an
image's value does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.ndimage import correlate1d

from isocost.errors import DataError
from isocost.scoring.extractors import check_images
from isocost.scoring.statistics import check_finite
from isocost.scoring.uncertainty import Estimate, mean_estimate

PEAK = 255.0
LUMA = np.array([65.481, 128.553, 24.966]) / PEAK  # of R, G, B in 0 to 255; 16 is added
WINDOW = 11
SIGMA = 1.5
STEADY = ((0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2)  # SSIM's C1 and C2


def psnr(images: np.ndarray, targets: np.ndarray, *, luma: bool = False) -> np.ndarray:
    """Peak signal-to-noise ratio 10 log10(255^2 / MSE), in dB, of uint8 images [N, H, W, 3] and their targets: [N].

    An image that equals its target would have an infinite one; it counts as one that is off by a single step in a
    single value, the next best there is. Raises `DataError` for bad images or other shapes than the targets'.
    """
    return _each(images, targets, luma, _psnr)


def ssim(images: np.ndarray, targets: np.ndarray, *, luma: bool = False) -> np.ndarray:
    """Structural similarity, up to 1, of uint8 images [N, H, W, 3] and their targets: [N].

    Wang et al. 2004 (IEEE TIP 13(4), eq. 13, section III.C): windows of 11 x 11 weighted by a Gaussian of deviation 1.5
    whose weights sum to 1 (so (co)variances are weighted and not Bessel-corrected), C1 = (0.01 x 255)^2,
    C2 = (0.03 x 255)^2, averaged over the windows that lie wholly in the image (some libraries add windows on a
    mirrored border) and over the channels, at full size. Raises `DataError` as `psnr` does, and for sides below 11.
    """
    return _each(images, targets, luma, _ssim)


PAIRED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "psnr": psnr,
    "psnr-y": partial(psnr, luma=True),
    "ssim": ssim,
    "ssim-y": partial(ssim, luma=True),
}


def paired_mean(paired: np.ndarray, *, unit: str, higher_is_better: bool) -> Estimate:
    """Mean of per-image values [N]. Raises `DataError` for another shape, fewer than 2, or what is not finite."""
    paired = np.asarray(paired, dtype=np.float64)
    if paired.ndim != 1:
        raise DataError(f"{unit}: expected one value an image, [N], found {list(paired.shape)}.")
    check_finite(paired[:, None], unit)
    return mean_estimate(paired, unit=unit, higher_is_better=higher_is_better)


def _each(
    images: np.ndarray, targets: np.ndarray, luma: bool, compare: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    images, targets = check_images(images), check_images(targets)
    if images.shape != targets.shape:
        raise DataError(f"images {list(images.shape)} and targets {list(targets.shape)} do not pair up.")
    pairs = zip(images, targets, strict=True)
    return np.array([compare(_channels(image, luma), _channels(target, luma)) for image, target in pairs])


def _channels(image: np.ndarray, luma: bool) -> np.ndarray:
    """float64 [H, W, channels]."""
    values = image.astype(np.float64)
    return (values @ LUMA + 16)[..., None] if luma else values


def _psnr(image: np.ndarray, target: np.ndarray) -> float:
    step = 1.0 if image.shape[2] == 3 else LUMA.min()
    squares = max(np.sum((image - target) ** 2), step**2)
    return float(10 * np.log10(PEAK**2 * image.size / squares))


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    mean_x, mean_y = _windowed(x), _windowed(y)
    variances = _windowed(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = STEADY
    alike = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(alike / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))))


def _windowed(values: np.ndarray) -> np.ndarray:
    """Gaussian-weighted means of [H, W, C] over all windows that fit, [H - 10, W - 10, C]."""
    if min(values.shape[:2]) < WINDOW:
        raise DataError(
            f"SSIM: images of {values.shape[0]} x {values.shape[1]} are smaller than its {WINDOW} x {WINDOW} window."
        )
    edge = WINDOW // 2
    weights = np.exp(-(np.arange(-edge, edge + 1) ** 2) / (2 * SIGMA**2))
    for axis in (0, 1):
        values = correlate1d(values, weights / weights.sum(), axis)
    return values[edge:-edge, edge:-edge]
