"""Differences between cells, and ties.

They are paired: prompt i and its noise are the same in every cell, so with IF the centred influence values of a
metric, SE(A - B) = sd(IF_A - IF_B) / sqrt(n), which is far below the SE of either value. Where the reference is a
small sample its M images have influence values of their own, and their share adds: the variance of the difference is
then sd(IF_A - IF_B)^2 / n + sd(RIF_A - RIF_B)^2 / M.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from isocost.analysis.cells import Z95
from isocost.analysis.frames import DataFrame, Series

Influence = Callable[[str], np.ndarray | None]
"""score_key -> centred influence values [n], followed by the reference's [M] where it is a small sample, or None where
they are not stored."""
Compare = Callable[[Series, DataFrame], tuple[np.ndarray, np.ndarray, np.ndarray]]


def comparer(influence: Influence | None) -> Compare:
    """compare(cell, others) -> (difference others - cell [m], its SE [m], paired [m] bool), influence arrays cached."""
    stored = functools.cache(influence or (lambda score_key: None))

    @functools.cache
    def of(score_keys: tuple[str, ...]) -> np.ndarray | None:
        arrays = [stored(key) for key in score_keys]
        if any(array is None for array in arrays) or len({len(array) for array in arrays if array is not None}) != 1:
            return None
        return np.mean(np.asarray(arrays, dtype=np.float64), axis=0)

    def standard_error(cell: Series, score_keys: tuple, stderr: float, seed_variance: float) -> tuple[float, bool]:
        a, b = of(cell["score_keys"]), of(score_keys)
        if a is None or b is None or len(a) != len(b):
            return float(np.hypot(cell["stderr"], stderr)), False
        images, references = np.split(a - b, [int(cell["n"])])
        variance = _variance_of_mean(images) + (_variance_of_mean(references) if len(references) else 0.0)
        return float(np.sqrt(variance + cell["seed_variance"] + seed_variance)), True

    def compare(cell: Series, others: DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = zip(others["score_keys"], others["stderr"], others["seed_variance"], strict=True)
        errors = [standard_error(cell, *values) for values in columns]
        difference = others["value"].to_numpy(float) - float(cell["value"])
        return difference, np.array([se for se, _ in errors]), np.array([paired for _, paired in errors], dtype=bool)

    return compare


def _variance_of_mean(values: np.ndarray) -> float:
    return float(np.var(values, ddof=1)) / len(values)


def tied(winner: Series, others: DataFrame, sign: float, compare: Compare) -> tuple[tuple[int, ...], bool]:
    """Indices of the `others` that are not significantly worse than `winner` (95%), and whether all were paired.

    A cell without an error estimate ties only where its value is as good.
    """
    others = others.drop(index=winner.name, errors="ignore")
    difference, stderr, paired = compare(winner, others)
    worse = sign * difference - Z95 * np.nan_to_num(stderr) > 0
    return tuple(others.index[~worse]), bool(paired.all()) and len(others) > 0
