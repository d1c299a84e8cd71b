from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from tests.scoring.synthetic import spread_features

from isocost.errors import DataError, SpecError
from isocost.scoring.frechet import (
    exponential_sum,
    frechet,
    frechet_distance,
    frechet_infinity,
    frechet_richardson,
    frechet_value,
)
from isocost.scoring.statistics import Moments, Reference, moments
from isocost.scoring.uncertainty import paired_difference, standard_error


def exact_gaussian(mean: np.ndarray, covariance: np.ndarray) -> Reference:
    """A reference known without error: the moments of N(mean, covariance)."""
    n = 10**12
    return Reference(Moments(n, mean, covariance * (n - 1)))


def gaussian_distance(mean_a, cov_a, mean_b, cov_b) -> float:
    """Closed form, by scipy's general matrix root."""
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * root))


# --- the value ---


@pytest.mark.parametrize(("n", "dims"), [(400, 12), (30, 40), (41, 40)])
def test_frechet_matches_scipys_matrix_root(n, dims):
    x, y = spread_features(n, np.linspace(0.5, 2, dims)), spread_features(500, np.linspace(1, 3, dims), seed=1)
    expected = gaussian_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert frechet(x, Reference.of(y)).value == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(moments(x), Reference.of(y)) == pytest.approx(expected, rel=1e-7)
    assert frechet_value(x, Reference.of(y)) == pytest.approx(expected, rel=1e-7)


def test_frechet_of_gaussians_with_one_basis_has_a_closed_form():
    a, b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.5])
    shift = np.array([1.0, 0.0, -2.0])
    generated = Moments(101, shift, np.diag(a**2) * 100)
    distance = frechet_distance(generated, exact_gaussian(np.zeros(3), np.diag(b**2)))
    assert distance == pytest.approx(5.0 + np.sum((a - b) ** 2), rel=1e-12)


def deviations(spectrum: str, dims: int) -> np.ndarray:
    return {
        "flat": np.ones(dims),
        "steep": np.geomspace(1, 1e-4, dims),
        "steeper": np.geomspace(1, 1e-8, dims),
        "low rank": np.where(np.arange(dims) < dims // 2, 1.0, 0.0),
    }[spectrum]


@pytest.mark.parametrize("spectrum", ["flat", "steep", "steeper", "low rank"])
@pytest.mark.parametrize(("n", "dims"), [(1000, 32), (64, 64), (65, 64), (50, 96)])
def test_a_set_is_at_no_distance_from_itself(n, dims, spectrum):
    x = spread_features(n, deviations(spectrum, dims))
    reference = Reference.of(x)
    trace = np.trace(reference.moments.covariance)
    estimate = frechet(x, reference)
    assert abs(estimate.value) <= 1e-9 * trace
    assert np.isfinite(estimate.stderr)
    assert abs(frechet_value(x, reference)) <= 1e-9 * trace
    assert abs(frechet_distance(reference.moments, reference)) <= 1e-7 * trace


@pytest.mark.parametrize("spectrum", ["flat", "steep", "steeper", "low rank"])
@pytest.mark.parametrize("n", [20, 24, 25, 200])
def test_the_value_alone_is_the_same_value(n, spectrum):
    x, reference = spread_features(n, deviations(spectrum, 24)), Reference.of(spread_features(300, np.ones(24), seed=1))
    assert frechet_value(x, reference) == pytest.approx(frechet(x, reference).value, rel=1e-10)


def test_a_reference_of_one_image_over_and_over_is_a_point():
    x, point = spread_features(50, np.ones(4)), np.full((9, 4), 2.0)
    expected = np.sum((x.mean(0) - 2) ** 2) + np.trace(np.cov(x.T))
    assert frechet_value(x, Reference.of(point)) == pytest.approx(expected)
    assert frechet(x, Reference.of(point)).value == pytest.approx(expected)


def test_frechet_does_not_see_a_rotation_and_squares_a_scale():
    x, y = spread_features(300, np.linspace(0.5, 2, 10)), spread_features(400, np.linspace(1, 3, 10), seed=1)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((10, 10)))[0]
    plain = frechet(x, Reference.of(y))
    turned = frechet(x @ rotation, Reference.of(y @ rotation))
    scaled = frechet(3 * x, Reference.of(3 * y))
    for field in ("value", "stderr", "bias"):
        assert getattr(turned, field) == pytest.approx(getattr(plain, field), rel=1e-9)
        assert getattr(scaled, field) == pytest.approx(9 * getattr(plain, field), rel=1e-9)
    np.testing.assert_allclose(turned.influence, plain.influence, atol=1e-8)


def test_images_that_are_all_one_still_have_a_distance():
    y = spread_features(400, np.ones(4))
    estimate = frechet(np.full((50, 4), 2.0), Reference.of(y))
    shift = 2.0 - y.mean(0)
    assert estimate.value == pytest.approx(shift @ shift + np.trace(np.cov(y.T)))


# --- its error ---


def test_influence_is_the_derivative_of_the_distance():
    """Give image i the weight 1 + h: the distance moves by h / N times its influence, to first order."""
    x, y = spread_features(200, np.linspace(0.5, 2, 6)), spread_features(5000, np.linspace(1, 3, 6), seed=1)
    reference = Reference.of(y)
    influence = frechet(x, reference).influence

    def weighted_distance(i: int, h: float) -> float:
        w = np.ones(200)
        w[i] += h
        mean = w @ x / w.sum()
        covariance = (x - mean).T @ ((x - mean) * w[:, None]) / w.sum()
        return frechet_distance(Moments(201, mean, covariance * 200), reference)

    for i in (0, 17, 199):
        slope = 200 * (weighted_distance(i, 1e-3) - weighted_distance(i, -1e-3)) / 2e-3
        assert influence[i] == pytest.approx(slope, rel=0.02, abs=0.02)


def test_the_bias_law():
    """N(0, I_D) against itself: E[FD] is about D (D + 5) / (4 N), and the estimated bias says so."""
    dims, n = 8, 400
    reference = exact_gaussian(np.zeros(dims), np.eye(dims))
    rng = np.random.default_rng(0)
    estimates = [frechet(rng.standard_normal((n, dims)), reference) for _ in range(200)]
    law = dims * (dims + 5) / (4 * n)
    assert np.mean([e.value for e in estimates]) == pytest.approx(law, rel=0.08)
    assert np.mean([e.bias for e in estimates]) == pytest.approx(law, rel=0.08)


def test_a_small_reference_adds_its_own_bias():
    dims, n, m = 6, 300, 200
    rng = np.random.default_rng(0)
    estimates = [
        frechet(rng.standard_normal((n, dims)), Reference.of(rng.standard_normal((m, dims)))) for _ in range(200)
    ]
    law = dims * (dims + 5) / 4 * (1 / n + 1 / m)
    assert np.mean([e.value for e in estimates]) == pytest.approx(law, rel=0.1)
    assert np.mean([e.bias for e in estimates]) == pytest.approx(law, rel=0.1)


def test_the_bias_is_the_second_order_term_summed_over_all_pairs():
    """Against the double sum as it is derived, in the eigenbasis that SciPy finds."""
    x, covariance = spread_features(300, np.geomspace(0.05, 2, 6)), np.diag(np.linspace(0.5, 1.5, 6))
    root = np.sqrt(covariance)
    values, vectors = scipy.linalg.eigh(root @ np.cov(x.T) @ root)
    s, squares = np.sqrt(values), ((x - x.mean(0)) @ root @ vectors) ** 2
    variance = (squares.T @ squares / 300 - np.diag(s**4)) / 300
    expected = np.trace(np.cov(x.T)) / 300 + np.sum(variance / np.outer(s, s) / np.add.outer(s, s)) / 2
    assert frechet(x, exact_gaussian(np.zeros(6), covariance)).bias == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("s", [np.array([3.0]), np.geomspace(1e-9, 0.05, 40), np.linspace(1, 2, 9)])
def test_the_sum_of_exponentials_is_the_reciprocal(s):
    rates, weights = exponential_sum(s)
    decays = np.exp(-np.outer(s, rates))
    np.testing.assert_allclose(decays * weights @ decays.T, 1 / np.add.outer(s, s), rtol=1e-7)


def gaussian_cell(dims: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and deviations of a Gaussian, and its distance from N(0, I)."""
    mean, spread = np.zeros(dims), np.linspace(0.6, 1.6, dims)
    mean[0], mean[-1] = 0.5, -0.3
    return mean, spread, gaussian_distance(mean, np.diag(spread**2), np.zeros(dims), np.eye(dims))


@pytest.mark.parametrize(("dims", "n", "references"), [(8, 128, None), (8, 128, 200), (24, 384, None), (8, 512, None)])
def test_intervals_cover_the_true_distance(dims, n, references):
    """95% intervals at N >= 16 D, with an exact reference and with one that is a sample itself."""
    mean, spread, truth = gaussian_cell(dims)
    rng = np.random.default_rng(1)
    covered, values, errors = 0, [], []
    for _ in range(200):
        estimate = frechet(
            mean + rng.standard_normal((n, dims)) * spread,
            exact_gaussian(np.zeros(dims), np.eye(dims))
            if references is None
            else Reference.of(rng.standard_normal((references, dims))),
        )
        low, high = estimate.interval()
        covered += low <= truth <= high
        values.append(estimate.value)
        errors.append(estimate.stderr)
    assert 0.90 <= covered / 200 <= 0.99
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.15)


def test_common_random_numbers_shrink_the_paired_error_and_it_is_right():
    """Two cells that share noise: the error of their difference matches its spread and is far below unpaired."""
    reference = exact_gaussian(np.zeros(6), np.eye(6))
    rng = np.random.default_rng(3)
    differences, errors, unpaired = [], [], []
    for _ in range(150):
        noise = rng.standard_normal((300, 6))
        a, b = frechet(noise * 1.5 + 0.2, reference), frechet(noise * 1.45 + 0.25, reference)
        difference = paired_difference(a, b)
        differences.append(difference.value)
        errors.append(difference.stderr)
        unpaired.append(math.hypot(a.stderr, b.stderr))
    assert np.mean(errors) == pytest.approx(np.std(differences, ddof=1), rel=0.15)
    assert np.mean(errors) < 0.2 * np.mean(unpaired)


def test_the_stderr_is_that_of_the_influence_when_the_reference_is_large():
    x = spread_features(100, np.ones(4))
    large = Reference.of(spread_features(1000, np.ones(4) * 1.2, seed=1))
    small = Reference.of(spread_features(999, np.ones(4) * 1.2, seed=1))
    exact, sampled = frechet(x, large), frechet(x, small)
    assert exact.stderr == pytest.approx(standard_error(exact.influence))
    assert sampled.stderr > standard_error(sampled.influence) * 1.01
    assert abs(exact.influence.sum()) < 1e-9 and exact.influence.dtype == np.float64


@pytest.mark.parametrize(
    ("n", "valid", "corrected"), [(31, False, False), (32, False, True), (63, False, True), (64, True, True)]
)
def test_too_few_images_are_marked(n, valid, corrected):
    reference = exact_gaussian(np.zeros(8), np.eye(8))
    estimate = frechet(spread_features(n, np.ones(8)), reference)
    assert (estimate.valid, estimate.bias is not None) == (valid, corrected)


def test_a_reference_too_small_for_its_bias_refuses_the_correction():
    estimate = frechet(spread_features(100, np.ones(8)), Reference.of(spread_features(31, np.ones(8), seed=1)))
    assert estimate.valid and estimate.bias is None and np.isfinite(estimate.stderr)


def test_a_small_reference_must_bring_its_features():
    moments_only = Reference(moments(spread_features(500, np.ones(4))))
    with pytest.raises(DataError, match="moments only"):
        frechet(spread_features(100, np.ones(4)), moments_only)


# --- without the bias of finite N ---


@pytest.mark.parametrize("extrapolated", [frechet_richardson, frechet_infinity])
def test_extrapolation_removes_the_bias_and_knows_its_error(extrapolated):
    mean, spread, truth = gaussian_cell(6)
    reference = exact_gaussian(np.zeros(6), np.eye(6))
    rng = np.random.default_rng(5)
    plain, found = [], []
    for _ in range(150):
        x = mean + rng.standard_normal((240, 6)) * spread
        plain.append(frechet(x, reference).value)
        found.append(extrapolated(x, reference))
    values = np.array([estimate.value for estimate in found])
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert np.mean(plain) - truth > 3 * error  # there is a bias to remove
    assert abs(values.mean() - truth) < 3 * error
    assert np.mean([estimate.stderr for estimate in found]) == pytest.approx(values.std(ddof=1), rel=0.15)
    assert 0.90 <= np.mean([low <= truth <= high for low, high in (e.interval() for e in found)]) <= 0.99


def test_richardson_doubles_the_whole_less_the_mean_of_its_halves():
    x, reference = spread_features(90, np.ones(4)), Reference.of(spread_features(1000, np.ones(4) * 1.2, seed=1))
    estimate, whole = frechet_richardson(x, reference), frechet(x, reference)
    halves = frechet(x[::2], reference).value, frechet(x[1::2], reference).value
    assert estimate.value == pytest.approx(2 * whole.value - sum(halves) / 2, rel=1e-12)
    assert estimate.bias is None and estimate.corrected == estimate.value
    assert estimate.stderr == whole.stderr


def test_infinity_is_a_function_of_its_seed():
    x, reference = spread_features(200, np.ones(4)), Reference.of(spread_features(2000, np.ones(4) * 1.2, seed=1))
    first, again, other = (frechet_infinity(x, reference, seed=seed) for seed in (0, 0, 1))
    assert first.value == again.value and np.array_equal(first.influence, again.influence)
    assert first.value != other.value
    assert first.stderr == pytest.approx(standard_error(first.influence))
    assert first.stderr > frechet(x, reference).stderr  # subsets weigh images unevenly


def test_infinity_of_a_law_without_noise_is_its_intercept(monkeypatch):
    """Where FD = 3 + 50 / N exactly, the line finds 3."""
    monkeypatch.setattr("isocost.scoring.frechet.frechet_value", lambda x, reference: 3 + 50 / len(x))
    reference = exact_gaussian(np.zeros(4), np.eye(4))
    assert frechet_infinity(spread_features(500, np.ones(4)), reference).value == pytest.approx(3)
    with pytest.raises(SpecError, match="points: 2"):
        frechet_infinity(spread_features(500, np.ones(4)), reference, points=2)
