from __future__ import annotations

import numpy as np
import pytest

from isocost.study.gaussian_process import Kernel, interpolation, log_likelihood

PLACES = np.random.default_rng(0).uniform(0, 3, (40, 2))
VALUES = np.sin(PLACES[:, 0]) + 0.5 * PLACES[:, 1] + 0.1 * np.random.default_rng(1).standard_normal(40)
SEEN = np.arange(25)
OURS = Kernel(lengths=(0.9, 1.7), amplitude=1.3, roughness=0.2, height=0.8)


@pytest.fixture
def theirs(library):
    """scikit-learn's process with our kernel, its scales left as they are, fitted to what is seen."""
    kernels = library("sklearn.gaussian_process.kernels")
    kernel = kernels.ConstantKernel(0.8**2) + kernels.ConstantKernel(1.3**2) * kernels.Matern((0.9, 1.7), nu=2.5)
    process = library("sklearn.gaussian_process").GaussianProcessRegressor
    return process(kernel + kernels.WhiteKernel(0.2**2), alpha=0, optimizer=None).fit(PLACES[SEEN], VALUES[SEEN])


def test_predictions_are_scikit_learns(theirs):
    weights, rest = interpolation(OURS, PLACES, np.zeros(40), SEEN)
    mean, covariance = theirs.predict(PLACES[25:], return_cov=True)
    np.testing.assert_allclose(weights[25:] @ VALUES[SEEN], mean, rtol=1e-6)
    np.testing.assert_allclose(rest[25:, 25:], covariance, atol=1e-7)


def test_likelihood_is_scikit_learns(theirs):
    assert log_likelihood(OURS, PLACES[SEEN], VALUES[SEEN]) == pytest.approx(theirs.log_marginal_likelihood(), rel=1e-7)
