from __future__ import annotations

import math

import numpy as np
import pytest

from isocost.study.gaussian_process import Kernel, draw, fit, interpolation, log_likelihood, prior

KERNEL = Kernel(lengths=(1.0, 2.0), amplitude=1.5, roughness=0.3, height=0.7)


def places(count: int, seed: int = 0, dims: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 4, (count, dims))


def test_matern_in_closed_form():
    """At distance r = 1 of a length: (1 + sqrt 5 + 5/3) exp(-sqrt 5)."""
    covariance = KERNEL(np.array([[0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))[0]
    one_length = (1 + math.sqrt(5) + 5 / 3) * math.exp(-math.sqrt(5))
    np.testing.assert_allclose(covariance, 0.49 + 2.25 * np.array([one_length, one_length, 1]), rtol=1e-12)


def test_functions_share_nothing_and_roughness_is_each_places_own():
    covariance = prior(KERNEL, np.zeros((3, 2)), np.array([0, 0, 1]))
    within, own = 0.49 + 2.25, 0.3**2
    expected = [[within + own, within, 0], [within, within + own, 0], [0, 0, within + own]]
    np.testing.assert_allclose(covariance, expected)


def test_interpolation_is_the_conditional_of_a_normal_vector():
    x, functions, seen = places(7), np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 2, 3, 5])
    weights, rest = interpolation(KERNEL, x, functions, seen)
    covariance = prior(KERNEL, x, functions)
    others = np.array([1, 4, 6])
    inverse = np.linalg.inv(covariance[np.ix_(seen, seen)])
    np.testing.assert_allclose(weights[others], covariance[np.ix_(others, seen)] @ inverse, atol=1e-8)
    conditional = (
        covariance[np.ix_(others, others)]
        - covariance[np.ix_(others, seen)] @ inverse @ covariance[np.ix_(seen, others)]
    )
    np.testing.assert_allclose(rest[np.ix_(others, others)], conditional, atol=1e-8)


def test_what_is_given_stays_as_it_is():
    weights, rest = interpolation(KERNEL, places(5), np.zeros(5), np.array([1, 4]))
    np.testing.assert_array_equal(weights[[1, 4]], np.eye(2))
    assert not rest[[1, 4]].any() and not rest[:, [1, 4]].any()


def test_likelihood_is_the_normal_density():
    from scipy.stats import multivariate_normal

    x, values = places(6), np.random.default_rng(1).standard_normal(6)
    expected = multivariate_normal(cov=prior(KERNEL, x, np.zeros(6))).logpdf(values)
    assert log_likelihood(KERNEL, x, values) == pytest.approx(expected, rel=1e-7)


def test_fit_finds_the_scales_of_draws():
    """24 functions on a grid of 6 x 6: lengths within a third of the true ones, roughness within a half."""
    true = Kernel(lengths=(0.8, 2.5), amplitude=1.0, roughness=0.1)
    grid = np.stack(np.meshgrid(np.linspace(0, 3, 6), np.linspace(0, 3, 6)), axis=-1).reshape(-1, 2)
    x, functions = np.tile(grid, (24, 1)), np.repeat(np.arange(24), 36)
    values = draw(np.zeros(len(x)), prior(true, x, functions), 1, np.random.default_rng(0))[0]
    found = fit(x, functions, values)
    np.testing.assert_allclose(found.lengths, true.lengths, rtol=1 / 3)
    assert found.amplitude == pytest.approx(true.amplitude, rel=1 / 3)
    assert found.roughness == pytest.approx(true.roughness, rel=1 / 2)


def test_a_dimension_of_one_value_and_a_function_of_one_place_do_no_harm():
    x = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [0.5, 1.0]])
    kernel = fit(x, np.array([0, 0, 0, 1]), np.array([1.0, 2.0, 2.5, 7.0]))
    weights, rest = interpolation(kernel, x, np.array([0, 0, 0, 1]), np.array([0, 2]))
    assert np.isfinite(weights).all()
    assert 0 < rest[1, 1] < rest[3, 3]


def test_equal_values_are_no_error():
    kernel = fit(places(4), np.zeros(4), np.full(4, 3.0))
    assert np.isfinite(kernel.amplitude)


def test_draws_have_the_mean_and_covariance_asked_for_even_where_singular():
    mean, covariance = np.array([1.0, -2.0, 0.0]), np.array([[2.0, 1.0, 0.0], [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
    drawn = draw(mean, covariance, 200_000, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.02)
