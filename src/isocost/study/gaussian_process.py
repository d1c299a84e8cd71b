"""Gaussian-process interpolation of several smooth functions with one kernel, its scales by marginal likelihood.

Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006): eq. 2.25 and 2.26 (prediction), 2.30 (marginal
likelihood), 2.40 (a height that is not known) and 4.17 (Matern). NumPy and SciPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

JITTER = 1e-10  # share of the largest variance that is added to a diagonal: rounding must not make it negative
HEIGHT = 5.0  # deviation of a function's height from that of all, in deviations of what is seen
LENGTH = 1.5  # typical length where places are logarithms: a factor of 4.5
ROUGHNESS = 0.1  # typical roughness, in deviations of what is seen


@dataclass(frozen=True)
class Kernel:
    """Matern 5/2 with a length in each dimension, plus a height that all places of a function share.

    `lengths` [k], in the units of the places. Deviations: `amplitude` of the smooth part, `roughness` of what each
    place has for itself, `height` of the function's mean from that of all functions.
    """

    lengths: tuple[float, ...]
    amplitude: float
    roughness: float
    height: float = 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Prior covariance [n, m] of one function between places x [n, k] and y [m, k], without roughness."""
        gaps = (x[:, None, :] - y[None, :, :]) / np.asarray(self.lengths)
        distance = math.sqrt(5) * np.sqrt(np.square(gaps).sum(axis=-1))
        return self.height**2 + self.amplitude**2 * (1 + distance + distance**2 / 3) * np.exp(-distance)


def prior(kernel: Kernel, places: np.ndarray, functions: np.ndarray) -> np.ndarray:
    """Covariance [m, m] of the values at `places` [m, k], one of each of `functions` [m]; two functions have none."""
    covariance = np.where(np.equal.outer(functions, functions), kernel(places, places), 0.0)
    covariance[np.diag_indices_from(covariance)] += kernel.roughness**2
    return covariance


def interpolation(
    kernel: Kernel, places: np.ndarray, functions: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [m, n] and rest [m, m]: given values v [n], less the mean of all, at the places `seen` [n] (rows of
    `places` [m, k]), all places have the mean `weights` @ v and the covariance `rest`, which is 0 where v is given.

    Where v is itself uncertain, with covariance P, theirs is `rest` + `weights` P `weights`'. Cost: the cube of m.
    """
    from scipy.linalg import cho_solve

    covariance = prior(kernel, places, functions)
    between = covariance[seen]
    weights = cho_solve((cholesky(between[:, seen]), True), between).T
    rest = covariance - weights @ between
    weights[seen] = np.eye(len(seen))
    rest[seen], rest[:, seen] = 0.0, 0.0
    return weights, rest


def log_likelihood(kernel: Kernel, places: np.ndarray, values: np.ndarray) -> float:
    """Log marginal likelihood of the `values` [n] of one function at `places` [n, k] (eq. 2.30)."""
    from scipy.linalg import solve_triangular

    root = cholesky(prior(kernel, places, np.zeros(len(places))))
    residual = solve_triangular(root, values, lower=True)
    log_determinant = 2 * np.log(root.diagonal()).sum()
    return -0.5 * float(residual @ residual + log_determinant + len(values) * math.log(2 * math.pi))


def fit(places: np.ndarray, functions: np.ndarray, values: np.ndarray) -> Kernel:
    """The kernel of greatest posterior density given `values` [n] at `places` [n, k] of `functions` [n].

    All functions share it: one that is seen at few places learns from the others how smooth it is. Log-normal priors,
    a factor of e wide either way, keep scales finite where little is seen: lengths about `LENGTH`, amplitude about the
    deviation of the values, roughness about `ROUGHNESS` of that.
    """
    from scipy.optimize import minimize

    spread = float(np.std(values)) or 1.0
    parts = [(places[functions == name], values[functions == name]) for name in np.unique(functions)]
    mean = float(np.mean(values))
    typical = np.log([*[LENGTH] * places.shape[1], spread, ROUGHNESS * spread])

    def kernel(logs: np.ndarray) -> Kernel:
        *lengths, amplitude, roughness = np.exp(logs).tolist()
        return Kernel(tuple(lengths), amplitude, roughness, HEIGHT * spread)

    def loss(logs: np.ndarray) -> float:
        likelihood = sum(log_likelihood(kernel(logs), x, y - mean) for x, y in parts)
        return 0.5 * float(np.square(logs - typical).sum()) - likelihood

    bounds = [(value - 3, value + 3) for value in typical]
    return kernel(minimize(loss, typical, method="L-BFGS-B", bounds=bounds, options={"maxiter": 30}).x)


def draw(mean: np.ndarray, covariance: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` draws [count, m] of a normal vector with `mean` [m] and a `covariance` [m, m] that may be singular."""
    return mean + generator.standard_normal((count, len(mean))) @ cholesky(covariance).T


def cholesky(covariance: np.ndarray) -> np.ndarray:
    """Lower factor of a covariance, with `JITTER` of its largest variance added on the diagonal."""
    from scipy.linalg import cholesky as factor

    raised = covariance.copy()
    raised[np.diag_indices_from(raised)] += JITTER * max(float(covariance.diagonal().max(initial=0)), 1e-30)
    return factor(raised, lower=True)
