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
COMPARED = ["value", "stderr", "seed_variance", "score_keys"]  # all that a difference reads of the other cells
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

    def compare(cell: Series, others: DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        difference = others["value"].to_numpy(float) - float(cell["value"])
        stderr = np.hypot(float(cell["stderr"]), others["stderr"].to_numpy(float))
        own, arrays = of(cell["score_keys"]), [of(keys) for keys in others["score_keys"]]
        length = -1 if own is None else len(own)
        alike = [array if array is not None and len(array) == length else None for array in arrays]
        paired = np.array([array is not None for array in alike], bool)
        if own is not None and paired.any():
            apart = own - np.stack([array for array in alike if array is not None])
            images, references = np.split(apart, [int(cell["n"])], axis=1)
            variance = _variance_of_mean(images) + (_variance_of_mean(references) if references.shape[1] else 0.0)
            seeds = float(cell["seed_variance"]) + others["seed_variance"].to_numpy(float)[paired]
            stderr[paired] = np.sqrt(variance + seeds)
        return difference, stderr, paired

    return compare


def _variance_of_mean(values: np.ndarray) -> np.ndarray:
    """Of the mean of each row [m, n]."""
    return np.var(values, axis=1, ddof=1) / values.shape[1]


def tied(winner: Series, others: DataFrame, sign: float, compare: Compare) -> tuple[tuple[int, ...], bool]:
    """Indices of the `others` that are not significantly worse than `winner` (95%), and whether all were paired.

    A cell without an error estimate ties only where its value is as good.
    """
    itself = others.index == winner.name
    difference, stderr, paired = compare(winner, others)
    worse = sign * difference - Z95 * np.nan_to_num(stderr) > 0
    return tuple(others.index[~worse & ~itself]), bool(paired[~itself].all()) and not itself.all()
