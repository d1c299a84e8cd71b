"""Kernel distances of features to a reference: squared maximum mean discrepancies over all pairs (float64)."""

from __future__ import annotations

import numpy as np

from isocost.scoring.statistics import (
    Kernel,
    Reference,
    check_features,
    cross_kernel_means,
    other_kernel_means,
    row_lengths,
)
from isocost.scoring.uncertainty import Estimate, centred, total_error

CMMD_SIGMA = 10  # the kernel's width, and the factor before the distance, of the published CMMD
CMMD_SCALE = 1000


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x.y / D + 1)^3 of float64 rows x [N, D], y [M, D] -> [N, M] (arXiv 1801.01401, section 4)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def direction_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """exp(-|x/|x| - y/|y||^2 / (2 sigma^2)) = exp((cos - 1) / sigma^2), sigma 10, of x [N, D], y [M, D] -> [N, M]."""
    cosines = x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    return np.exp((cosines - 1) / CMMD_SIGMA**2)


def kid(features: np.ndarray, reference: Reference) -> Estimate:
    """Kernel distance (arXiv 1801.01401): the unbiased squared MMD with the kernel (x.y / D + 1)^3, of features [N, D].

    All pairs count, in blocks, instead of the usual random subsets, whose spread is no standard error. Raises
    `DataError` for bad features, other dims than the reference's, or a reference without features.
    """
    return _squared_mmd(features, reference, cubic_kernel, unit="squared MMD")


def cmmd(features: np.ndarray, reference: Reference) -> Estimate:
    """CMMD (arXiv 2401.09603), unbiased: 1000 x the squared MMD of the directions of CLIP features [N, D].

    The kernel is Gaussian with sigma 10 on rows of length 1, as in the published code; at that width the value is
    within some per cent of 10 |difference of the mean directions|^2. This U-statistic does not move with the number of
    images, as the published one does: `cmmd_biased`. Raises as `kid` does, and for a row of zeros.
    """
    return _directions_mmd(features, reference, own=None)


def cmmd_biased(features: np.ndarray, reference: Reference) -> Estimate:
    """CMMD as published: the V-statistic, in which an image pairs with itself too, so that a set is at 0 from itself.

    It is too high by `bias` = 1000 ((1 - mean kernel among images) / N + (1 - mean kernel among references) / M),
    exactly: `corrected` is `cmmd`.
    """
    return _directions_mmd(features, reference, own=1.0)


def _directions_mmd(features: np.ndarray, reference: Reference, own: float | None) -> Estimate:
    row_lengths(check_features(features))
    reference.once(row_lengths, "reference features")
    return _squared_mmd(features, reference, direction_kernel, CMMD_SCALE, own, unit="1000 x squared MMD")


def _squared_mmd(
    features: np.ndarray,
    reference: Reference,
    kernel: Kernel,
    scale: float = 1.0,
    own: float | None = None,
    *,
    unit: str,
) -> Estimate:
    """`scale` times the squared MMD of features [N, D] to M references: the U-statistic, or with `own` the V-statistic.

    `own`: k(x, x), where an image paired with itself counts. Influence is the Hajek projection 2 (mean kernel to the
    other images of one's own set - mean kernel to the other set), centred, over images and over references. Where both
    distributions agree `stderr` is too large by up to sqrt(2).
    """
    features = check_features(features, rows=2)
    reference.check_dims(features.shape[1])
    among_images = other_kernel_means(features, kernel)
    among_references = reference.once(other_kernel_means, kernel)
    to_references, to_images = cross_kernel_means(features, reference.require_features(), kernel)
    value = among_images.mean() + among_references.mean() - 2 * to_references.mean()
    bias = None
    if own is not None:
        bias = scale * float(sum((own - among.mean()) / len(among) for among in (among_images, among_references)))
    influence = 2 * scale * centred(among_images - to_references)
    reference_influence = 2 * scale * centred(among_references - to_images)
    return Estimate(
        value=float(scale * value) + (bias or 0.0),
        stderr=total_error(influence, reference_influence),
        bias=bias,
        n=len(features),
        influence=influence,
        higher_is_better=False,
        unit=unit,
        reference_influence=reference_influence,
    )
