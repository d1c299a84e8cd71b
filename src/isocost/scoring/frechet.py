"""The Frechet distance of features to a reference, with its bias, standard error and influence values (float64)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from isocost.scoring.statistics import Moments, Reference, blocks, check_features, moments
from isocost.scoring.uncertainty import Estimate, centred, standard_error

EPS = float(np.finfo(np.float64).eps)
BLURRED = 1e-4  # roots of eigenvalues below this share of the largest have lost digits (to EPS / BLURRED^2 of it)
VALID_PER_DIM = 8  # below this many images a dimension the Frechet distance's error is not trusted
BIAS_PER_DIM = 4  # and below this many its bias cannot be estimated
EXACT_REFERENCE = 10  # a reference this many times larger than the generated set counts as exact


def frechet_distance(generated: Moments, reference: Reference) -> float:
    """|mu_g - mu_r|^2 + tr S_g + tr S_r - 2 tr (S_r S_g)^(1/2), from moments alone (arXiv 1706.08500, eq. 6).

    With R R' = S_r the trace of the root is the sum of the roots of the eigenvalues of R' S_g R: symmetric, and R is
    computed once a reference. `frechet` has the features and is more accurate where covariances are near singular.
    """
    reference.check_dims(generated.dims)
    factor = reference.factor
    squares = np.linalg.eigvalsh(factor.T @ generated.covariance @ factor)
    return _distance(generated, reference, np.sqrt(np.maximum(squares, 0)))


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
    value = _distance(generated, reference, s)

    kept = s > math.sqrt(EPS) * s.max(initial=0.0)
    s, basis = s[kept], basis[:, kept]
    shift = generated.mean - reference.moments.mean
    influence, bias = _expand(features, generated, shift, basis, s)
    variance = standard_error(influence) ** 2
    smallest_sample = generated.n
    if reference.n < EXACT_REFERENCE * generated.n:
        mirrored = generated.covariance @ (basis / s)  # G with G G' = S_g and G' S_r G = diag(s^2)
        other, other_bias = _expand(reference.require_features(), reference.moments, -shift, mirrored, s)
        variance += standard_error(other) ** 2
        bias += other_bias
        smallest_sample = min(smallest_sample, reference.n)
    return Estimate(
        value=value,
        stderr=math.sqrt(variance),
        bias=bias if smallest_sample >= BIAS_PER_DIM * generated.dims else None,
        n=generated.n,
        influence=influence,
        higher_is_better=False,
        unit="Frechet distance",
        valid=generated.n >= VALID_PER_DIM * generated.dims,
    )


def _distance(generated: Moments, reference: Reference, s: np.ndarray) -> float:
    shift = generated.mean - reference.moments.mean
    traces = np.trace(generated.covariance) + np.trace(reference.moments.covariance)
    return float(shift @ shift + traces - 2 * s.sum())


def _cross_spectrum(features: np.ndarray, generated: Moments, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """s [k] and R V [D, k], where R' S_g R = V diag(s^2) V'.

    For N < D, s are the singular values of the centred rows times R, and their sum is the nuclear norm. Else the roots
    of eigenvalues, of which the small ones are blurred: they are found again from the rows, in their own subspace.
    """
    factor = reference.factor
    if generated.n < generated.dims:
        rows = (features.astype(np.float64) - generated.mean) @ factor / math.sqrt(generated.n - 1)
        _, s, right = np.linalg.svd(rows, full_matrices=False)
        return s, factor @ right.T
    s, basis = _diagonalise(factor.T @ generated.covariance @ factor, factor)
    small = s < BLURRED * s.max(initial=0.0)
    if small.any():
        gram = np.zeros((small.sum(), small.sum()))
        for _, u in _projected(features, generated, basis[:, small]):
            gram += u.T @ u
        s[small], basis[:, small] = _diagonalise(gram / (generated.n - 1), basis[:, small])
    return s, basis


def _diagonalise(squares: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Roots s [k] of the eigenvalues of `squares` = V diag(s^2) V', and basis V [D, k]."""
    values, vectors = np.linalg.eigh(squares)
    return np.sqrt(np.maximum(values, 0)), basis @ vectors


def _projected(features: np.ndarray, sample: Moments, basis: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of centred rows c [B, D] and of u = c basis [B, k], in order."""
    for block in blocks([features]):
        c = block - sample.mean
        yield c, c @ basis


def _expand(
    features: np.ndarray, sample: Moments, shift: np.ndarray, basis: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, float]:
    """Influence values [N] of one of the two samples and the bias that its finite size gives the distance.

    `shift` [D]: this sample's mean less the other's. `basis` [D, k]: U = C basis has covariance diag(s^2). The bias is
    tr S / N + 1/2 sum_ij Var(h_ij) / (s_i s_j (s_i + s_j)), where Var(h) = ((U^2)' (U^2) / N - diag(s^4)) / N.
    """
    influence = []
    fourth = np.zeros((len(s), len(s)))
    for c, u in _projected(features, sample, basis):
        u_squared = u * u
        influence.append(2 * c @ shift + (c * c).sum(axis=1) - u_squared @ (1 / s))
        fourth += u_squared.T @ u_squared
    variance = (fourth / sample.n - np.diag(s**4)) / sample.n
    curvature = 1 / (np.outer(s, s) * np.add.outer(s, s))
    bias = np.trace(sample.covariance) / sample.n + 0.5 * np.sum(variance * curvature)
    return centred(np.concatenate(influence)), float(bias)
