"""The Frechet distance of features to a reference, with its bias, standard error and influence values (float64)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.linalg import eigh, eigvalsh

from isocost.errors import SpecError
from isocost.scoring.statistics import Moments, Reference, blocks, check_features, moments
from isocost.scoring.uncertainty import Estimate, centred, total_error

EPS = float(np.finfo(np.float64).eps)
BLURRED = 1e-4  # roots of eigenvalues below this share of the largest have lost digits (to EPS / BLURRED^2 of it)
VALID_PER_DIM = 8  # below this many images a dimension the Frechet distance's error is not trusted
BIAS_PER_DIM = 4  # and below this many its bias cannot be estimated
EXACT_REFERENCE = 10  # a reference this many times larger than the generated set counts as exact
QUADRATURE_STEP = 0.5  # of `exponential_sum`, good to 1e-7
QUADRATURE_ENDS = (17.0, 3.0)


def frechet(features: np.ndarray, reference: Reference) -> Estimate:
    """Frechet distance of features [N, D] to a reference: the plug-in, its bias, standard error and influence values.

    With C the centred features and R' S_g R = V diag(s^2) V', U = C R V has the influence values
    2 (mu_g - mu_r).c + |c|^2 - sum_i u_i^2 / s_i, and the bias is the second-order term of the same expansion. A
    reference of fewer than 10 N images counts as a sample: its own variance enters `stderr` and its own bias `bias`.

    `value` is the plug-in, which is too high by about `bias`; reports rank and compare by `corrected`. `bias` is None
    where either sample has fewer than 4 D images; `valid` is False for N < 8 D. Influence vanishes as the distance goes
    to 0, so near 0 the interval is too narrow. Raises `DataError` for bad features, other dims than the reference's, or
    a small reference without features.
    """
    features = check_features(features, rows=2)
    generated = moments(features)
    reference.check_dims(generated.dims)
    s, basis = _cross_spectrum(features, generated, reference)
    shift = generated.mean - reference.moments.mean
    value = _distance(shift, generated.total_variance, reference, s)

    kept = s > math.sqrt(EPS) * s.max(initial=0.0)
    s, basis = s[kept], basis[:, kept]
    influence, bias = _expand(features, generated, shift, basis, s)
    reference_influence = None
    smallest_sample = generated.n
    if reference.n < EXACT_REFERENCE * generated.n:
        mirrored = generated.covariance @ (basis / s)  # G with G G' = S_g and G' S_r G = diag(s^2)
        reference_influence, other_bias = _expand(reference.require_features(), reference.moments, -shift, mirrored, s)
        bias += other_bias
        smallest_sample = min(smallest_sample, reference.n)
    return Estimate(
        value=value,
        stderr=total_error(influence, reference_influence),
        bias=bias if smallest_sample >= BIAS_PER_DIM * generated.dims else None,
        n=generated.n,
        influence=influence,
        higher_is_better=False,
        unit="Frechet distance",
        valid=generated.n >= VALID_PER_DIM * generated.dims,
        reference_influence=reference_influence,
    )


# --- the value alone ---


def frechet_distance(generated: Moments, reference: Reference) -> float:
    """|mu_g - mu_r|^2 + tr S_g + tr S_r - 2 tr (S_r S_g)^(1/2), from moments alone (arXiv 1706.08500, eq. 6).

    With R R' = S_r the trace of the root is the sum of the roots of the eigenvalues of R' S_g R: symmetric, and R is
    computed once a reference. `frechet_value` has the features and is more accurate where covariances are near
    singular.
    """
    reference.check_dims(generated.dims)
    s = _roots(reference.seen_moments(generated.m2), generated.freedom)
    return _distance(generated.mean - reference.moments.mean, generated.total_variance, reference, s)


def frechet_value(features: np.ndarray, reference: Reference) -> float:
    """The `value` of `frechet` alone, at less than half its cost: for searches, and for curves with many points.

    For N <= D no covariance is formed: s are the singular values of the centred rows times R, from their Gram matrix.
    """
    features = check_features(features, rows=2)
    reference.check_dims(features.shape[1])
    if len(features) > reference.dims:
        generated = moments(features)
        mean, variance = generated.mean, generated.total_variance
        s = _roots(reference.seen_moments(generated.m2), generated.freedom)
        if _blurred(s).any():
            s, _ = _cross_spectrum(features, generated, reference)
    else:
        mean, rows = _standard_rows(features)
        variance = float(np.einsum("nd,nd->", rows, rows))
        seen = reference.seen(rows)
        s = _roots(seen @ seen.T)[1:]  # the smallest is rounding: centred rows have rank N - 1
        if _blurred(s).any():
            s = np.linalg.svd(seen, compute_uv=False)
    return _distance(mean - reference.moments.mean, variance, reference, s)


def _distance(shift: np.ndarray, variance: float, reference: Reference, s: np.ndarray) -> float:
    return float(shift @ shift + variance + reference.moments.total_variance - 2 * s.sum())


def _roots(squares: np.ndarray, freedom: int = 1) -> np.ndarray:
    """Roots of the eigenvalues of `squares` / `freedom`, rising; from the lower triangle of `squares`, which is used
    up."""
    values = eigvalsh(squares, lower=True, overwrite_a=True, check_finite=False)
    return np.sqrt(np.maximum(values / freedom, 0))


def _blurred(s: np.ndarray) -> np.ndarray:
    """Which roots of eigenvalues have lost digits, bool [k]."""
    return s < BLURRED * s.max(initial=0.0)


def _standard_rows(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and rows (x - mean) / sqrt(N - 1) [N, D], whose Gram matrix is the covariance, float64."""
    rows = features.astype(np.float64)
    mean = rows.mean(axis=0)
    rows -= mean
    rows /= math.sqrt(len(rows) - 1)
    return mean, rows


# --- its first two derivatives ---


def _cross_spectrum(features: np.ndarray, generated: Moments, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """s [k] and R V [D, k], where R' S_g R = V diag(s^2) V'.

    For N <= D, s are the singular values of the centred rows times R, and their sum is the nuclear norm. Else the roots
    of eigenvalues, of which the small ones are blurred: they are found again from the rows, in their own subspace.
    """
    if generated.n <= generated.dims:
        _, rows = _standard_rows(features)
        _, s, right = np.linalg.svd(reference.seen(rows), full_matrices=False)
        return s, reference.spread(right.T)
    s, vectors = _diagonalise(reference.seen_moments(generated.m2) / generated.freedom)
    basis = reference.spread(vectors)
    small = _blurred(s)
    if small.any():
        gram = np.zeros((small.sum(), small.sum()))
        for _, u in _projected(features, generated, basis[:, small]):
            gram += u.T @ u
        s[small], vectors = _diagonalise(gram / generated.freedom)
        basis[:, small] = basis[:, small] @ vectors
    return s, basis


def _diagonalise(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Roots s [k] of the eigenvalues of `squares` = V diag(s^2) V', and V [k, k]; reads the lower triangle only."""
    values, vectors = eigh(squares, lower=True, driver="evd", overwrite_a=True, check_finite=False)
    return np.sqrt(np.maximum(values, 0)), vectors


def _projected(features: np.ndarray, sample: Moments, basis: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of centred rows c [B, D] and of u = c basis [B, k], in order."""
    for block in blocks([features]):
        block -= sample.mean
        yield block, block @ basis


def _expand(
    features: np.ndarray, sample: Moments, shift: np.ndarray, basis: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, float]:
    """Influence values [N] of one of the two samples and the bias that its finite size gives the distance.

    `shift` [D]: this sample's mean less the other's. `basis` [D, k]: U = C basis has covariance diag(s^2). The bias is
    tr S / N + 1/2 sum_ij Var(h_ij) / (s_i s_j (s_i + s_j)), where Var(h) = ((U^2)' (U^2) / N - diag(s^4)) / N. With
    1 / (s_i + s_j) as a sum of exponentials the double sum is one of squares, and costs no product [k, N] x [N, k].
    """
    rates, weights = exponential_sum(s)
    decays = np.exp(-np.outer(s, np.concatenate([[0.0], rates]))) / s[:, None]
    influence = np.empty(sample.n)
    moment, start = 0.0, 0
    for c, u in _projected(features, sample, basis):
        sums = np.square(u, out=u) @ decays
        rows = slice(start, start + len(c))
        influence[rows] = 2 * c @ shift + np.einsum("nd,nd->n", c, c) - sums[:, 0]
        moment += float(np.sum(np.square(sums[:, 1:]) @ weights))
        start = rows.stop
    curvature = moment / sample.n - s.sum() / 2
    bias = float(sample.total_variance + curvature / 2) / sample.n
    return centred(influence), bias


def exponential_sum(s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rates t and weights w with 1 / (s_i + s_j) = sum_m w_m exp(-t_m (s_i + s_j)) for all pairs of s > 0, to 1e-7.

    The trapezoidal rule for 1 / x = integral of exp(y - x e^y) dy, whose error falls as exp(-pi^2 / step).
    """
    if not len(s):
        return np.zeros(0), np.zeros(0)
    low, high = -math.log(2 * s.max()) - QUADRATURE_ENDS[0], -math.log(2 * s.min()) + QUADRATURE_ENDS[1]
    rates = np.exp(low + QUADRATURE_STEP * np.arange(math.ceil((high - low) / QUADRATURE_STEP) + 1))
    return rates, QUADRATURE_STEP * rates


# --- without the bias of finite N ---


def frechet_richardson(features: np.ndarray, reference: Reference) -> Estimate:
    """`frechet` with 2 FD_N - (FD of even rows + FD of odd rows) / 2 as its value: the 1/N term of the bias cancels.

    The first-order error is that of the plug-in. What is left of the bias is of order 1/N^2, and the bias that a
    reference of few images has stays. Raises as `frechet` does.
    """
    whole = frechet(features, reference)
    halves = [frechet_value(features[parity::2], reference) for parity in (0, 1)]
    return replace(whole, value=2 * whole.value - sum(halves) / 2, bias=None)


def frechet_infinity(features: np.ndarray, reference: Reference, seed: int = 0, points: int = 15) -> Estimate:
    """FID-infinity (arXiv 1911.07023): FD of `points` random subsets, extrapolated to 1/N = 0 by a line.

    Sizes rise evenly from N / 10, but at least 2 D where N allows, to N; each subset is a function of (seed, its
    place). The intercept is sum_p w_p FD_p, so an image has `frechet`'s influence times m = sum_p w_p N / N_p over the
    subsets it is in: `stderr` counts the images and the draw of subsets, where the regression's own would take the
    subsets for independent. The bias that a reference of few images has stays. Raises `SpecError` for fewer than 3
    points, and as `frechet` does.
    """
    if points < 3:
        raise SpecError(f"points: {points}, but a line with a residual needs at least 3.")
    whole = frechet(features, reference)
    n, dims = features.shape
    sizes = np.linspace(max(2, min(max(n // 10, 2 * dims), n // 2)), n, points).astype(int)
    line = np.stack([np.ones(points), n / sizes], axis=1)
    weights = np.linalg.pinv(line)[0]
    value, multipliers = 0.0, np.zeros(n)
    for point, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        order = np.random.Generator(np.random.Philox(key=[seed, point])).permutation(n)[:size]
        value += weight * frechet_value(features[np.sort(order)], reference)
        multipliers[order] += weight * n / size
    assert whole.influence is not None
    influence = centred(multipliers * whole.influence)
    return replace(
        whole,
        value=float(value),
        stderr=total_error(influence, whole.reference_influence),
        bias=None,
        influence=influence,
    )
