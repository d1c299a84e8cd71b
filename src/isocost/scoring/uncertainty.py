"""Estimates that know their error: influence values, standard errors, paired differences, and who beats whom.

The influence value of image i is how much the metric would move, to first order, if image i weighed more (the delta
method; van der Vaart, Asymptotic Statistics, ch. 20). Centred, its deviation over sqrt(n) is the standard error, and
the difference of two cells that share prompts and noise has the influence IF_A - IF_B. A reference set that is itself a
small sample has influence values of its own; both variances add, and cells with one reference set share those, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from isocost.errors import DataError, SpecError

NORMAL = NormalDist()


@dataclass(frozen=True, eq=False)
class Estimate:
    """A metric's value with its error.

    `value` is the plug-in estimate, the number that other papers print. `bias` is its estimated second-order bias, None
    where the metric has none or n is too small to tell. Tables print `value`; intervals, differences and rankings use
    `corrected`. `influence` [n] (float64, centred, one value an image, in the order of the images) gives
    stderr = sd(influence) / sqrt(n); where the reference set is itself a small sample of M images, `stderr` holds its
    share sd(reference_influence) / sqrt(M) too, and is larger. `reference_influence` [M] is None where the reference
    counts as exact, and where there is none. `valid` is False where n is too small for the value to be trusted.
    """

    value: float
    stderr: float
    bias: float | None
    n: int
    influence: np.ndarray | None
    higher_is_better: bool
    unit: str
    valid: bool = True
    reference_influence: np.ndarray | None = None

    @property
    def corrected(self) -> float:
        """`value` less its bias, where the bias is known."""
        return self.value - (self.bias or 0.0)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval of `level` about `corrected`."""
        half = quantile(level) * self.stderr
        return self.corrected - half, self.corrected + half


@dataclass(frozen=True)
class Difference:
    """A minus B: `value` with `stderr`; `probability` that A is the better one (normal, flat prior)."""

    value: float
    stderr: float
    higher_is_better: bool

    @property
    def probability(self) -> float:
        gain = self.value if self.higher_is_better else -self.value
        if self.stderr == 0:
            return 0.5 if gain == 0 else float(gain > 0)
        return NORMAL.cdf(gain / self.stderr)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        half = quantile(level) * self.stderr
        return self.value - half, self.value + half

    def sentence(self, a: str, b: str) -> str:
        """`A beats B with probability 0.97`, the likelier winner first."""
        if self.probability < 0.5:
            return f"{b} beats {a} with probability {1 - self.probability:.2f}"
        return f"{a} beats {b} with probability {self.probability:.2f}"


def quantile(level: float) -> float:
    """Half-width, in standard errors, of the two-sided normal interval of `level` (0.95: 1.96)."""
    if not 0 < level < 1:
        raise SpecError(f"level {level} is not between 0 and 1; 0.95 is usual.")
    return NORMAL.inv_cdf((1 + level) / 2)


def centred(influence: np.ndarray) -> np.ndarray:
    """Influence values [n] less their mean."""
    return influence - influence.mean()


def standard_error(influence: np.ndarray) -> float:
    """sd / sqrt(n) of per-image influence values [n], n >= 2."""
    if len(influence) < 2:
        raise DataError(f"a standard error needs at least 2 images, found {len(influence)}.")
    return float(np.std(influence, ddof=1) / math.sqrt(len(influence)))


def total_error(influence: np.ndarray, reference_influence: np.ndarray | None) -> float:
    """Standard error from influence values of images [n] and, where the reference is a sample, of references [M]."""
    references = 0.0 if reference_influence is None else standard_error(reference_influence)
    return math.hypot(standard_error(influence), references)


def mean_estimate(
    values: np.ndarray, weights: np.ndarray | None = None, *, unit: str, higher_is_better: bool = True
) -> Estimate:
    """Mean of per-image values [n], weighted by [n] where given (weight 0: the image does not take part).

    A weighted mean is a ratio of two means, so its influence is w (v - value) / mean(w). Raises `DataError` where fewer
    than 2 images take part.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, dtype=np.float64)
    if np.count_nonzero(weights) < 2:
        raise DataError(f"{unit}: {np.count_nonzero(weights)} images to average, but at least 2 are needed.")
    value = float(np.sum(weights * values) / np.sum(weights))
    influence = weights * (values - value) / weights.mean()
    return Estimate(value, standard_error(influence), None, len(values), influence, higher_is_better, unit)


def paired_difference(a: Estimate, b: Estimate, *, fixed_reference: bool = False) -> Difference:
    """A - B of two cells scored on the same prompts and noise, image by image, against the same reference set.

    The error is that for other images and, where the reference set is a sample itself, for others of the same kind:
    variance sd(IF_A - IF_B)^2 / n + sd(RIF_A - RIF_B)^2 / M. `fixed_reference` leaves the second term out, which asks
    which cell is better by this very reference set. Bias is taken off both or neither. Raises `DataError` unless both
    carry influence values of one length, and neither or both those of one reference set.
    """
    shared = None if fixed_reference else _reference_gap(a, b)
    return _difference(a, b, total_error(_image_gap(a, b), shared))


def _image_gap(a: Estimate, b: Estimate) -> np.ndarray:
    """IF_A - IF_B [n]."""
    if a.influence is None or b.influence is None or len(a.influence) != len(b.influence):
        raise DataError("a paired difference needs influence values of the same images in both estimates.")
    return a.influence - b.influence


def _reference_gap(a: Estimate, b: Estimate) -> np.ndarray | None:
    """RIF_A - RIF_B [M], None where the reference counts as exact."""
    if a.reference_influence is None and b.reference_influence is None:
        return None
    if a.reference_influence is None or b.reference_influence is None:
        raise DataError("a paired difference needs the reference's influence values in both estimates or in neither.")
    if len(a.reference_influence) != len(b.reference_influence):
        raise DataError("a paired difference needs one reference set, but these are of different sizes.")
    return a.reference_influence - b.reference_influence


def independent_difference(a: Estimate, b: Estimate) -> Difference:
    """A - B of two cells that share nothing: variances add."""
    return _difference(a, b, math.hypot(a.stderr, b.stderr))


def _difference(a: Estimate, b: Estimate, stderr: float) -> Difference:
    if (a.unit, a.higher_is_better) != (b.unit, b.higher_is_better):
        raise SpecError(f"'{a.unit}' and '{b.unit}' are two metrics: compare estimates of one.")
    both = a.bias is not None and b.bias is not None
    value = a.corrected - b.corrected if both else a.value - b.value
    return Difference(value, stderr, a.higher_is_better)


def ties(estimates: Mapping[str, Estimate], level: float = 0.95) -> list[str]:
    """The best name first, then those that it beats with a probability below `level`, in order of merit. All paired."""
    if not estimates:
        return []
    corrected = all(estimate.bias is not None for estimate in estimates.values())

    def merit(name: str) -> float:
        estimate = estimates[name]
        value = estimate.corrected if corrected else estimate.value
        return value if estimate.higher_is_better else -value

    best, *others = sorted(estimates, key=merit, reverse=True)
    tied = [name for name in others if paired_difference(estimates[best], estimates[name]).probability < level]
    return [best, *tied]


def images_to_rank(a: Estimate, b: Estimate, level: float = 0.95) -> float:
    """Images a cell until the interval of the paired difference excludes 0, by the same reference set.

    With v the variance that the M references give, N = sd(IF_A - IF_B)^2 / ((difference / z)^2 - v); infinite where
    more images cannot tell the cells apart, as the reference is too small.
    """
    images, total = paired_difference(a, b, fixed_reference=True), paired_difference(a, b)
    room = (total.value / quantile(level)) ** 2 - (total.stderr**2 - images.stderr**2)
    return a.n * images.stderr**2 / room if room > 0 else math.inf
