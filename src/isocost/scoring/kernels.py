"""Kernel distances of features to a reference: unbiased estimates over all pairs (float64)."""

from __future__ import annotations

import math

import numpy as np

from isocost.scoring.statistics import Reference, check_features, cross_kernel_means, other_kernel_means
from isocost.scoring.uncertainty import Estimate, centred, standard_error


def kid(features: np.ndarray, reference: Reference) -> Estimate:
    """Kernel distance (arXiv 1801.01401): the unbiased squared MMD with the kernel (x.y / D + 1)^3, of features [N, D].

    All pairs count, in blocks, instead of the usual random subsets, whose spread is no standard error. Influence is the
    Hajek projection 2 (mean kernel to the other generated images - mean kernel to the references), centred. `stderr`
    adds the same projection over the M references; where both distributions agree it is too large by up to sqrt(2).
    """
    features = check_features(features, rows=2)
    reference.check_dims(features.shape[1])
    to_generated = other_kernel_means(features)
    to_references, from_references = cross_kernel_means(features, reference.require_features())
    value = to_generated.mean() + reference.kernel_means.mean() - 2 * to_references.mean()
    influence = centred(2 * (to_generated - to_references))
    references_share = standard_error(2 * (reference.kernel_means - from_references))
    return Estimate(
        value=float(value),
        stderr=math.hypot(standard_error(influence), references_share),
        bias=None,
        n=len(features),
        influence=influence,
        higher_is_better=False,
        unit="squared MMD",
    )
