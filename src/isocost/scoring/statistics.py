"""Statistics of features: mergeable fp64 moments, a reference set with what is worth caching, and kernel sums.

All of it is bitwise repeatable: rows are taken in order, in blocks of `BLOCK`, however the caller cut them into chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Self

import numpy as np

from isocost.errors import DataError

BLOCK = 1024


def check_features(features: np.ndarray, what: str = "features", rows: int = 1) -> np.ndarray:
    """`features` as an array [N, D] of finite floats, N >= `rows`, or a `DataError` that names the bad image rows."""
    features = np.asarray(features)
    if features.ndim != 2 or features.dtype.kind != "f" or features.shape[1] == 0:
        raise DataError(f"{what}: expected floats [N, D], found {features.dtype} {list(features.shape)}.")
    if len(features) < rows:
        raise DataError(f"{what}: {len(features)} images, but at least {rows} are needed.")
    check_finite(features, what)
    return features


def check_finite(features: np.ndarray, what: str = "features", first_row: int = 0) -> None:
    """Raise a `DataError` that names the first rows of `features` [N, D] holding NaN or infinity."""
    bad = first_row + np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise DataError(f"{what}: NaN or infinity in {len(bad)} image rows ({shown}): look at these images.")


def blocks(chunks: Iterable[np.ndarray], size: int = BLOCK) -> Iterator[np.ndarray]:
    """The rows of `chunks` ([N_k, D] each) in order, as float64 blocks of `size` rows; the last may be shorter."""
    held: list[np.ndarray] = []
    room = size
    for chunk in chunks:
        while len(chunk):
            held.append(chunk[:room])
            chunk = chunk[room:]
            room -= len(held[-1])
            if room == 0:
                yield np.concatenate(held).astype(np.float64)
                held, room = [], size
    if held:
        yield np.concatenate(held).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean [D] and sum of centred outer products M2 [D, D], float64."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @property
    def dims(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased covariance M2 / (n - 1), [D, D]. Raises `DataError` for fewer than 2 images."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 images, found {self.n}.")
        return self.m2 / (self.n - 1)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint sets (Chan, Golub, LeVeque 1979, pairwise update)."""
    if a.dims != b.dims:
        raise DataError(f"moments of {a.dims} and of {b.dims} dims cannot be merged: they come from two extractors.")
    n = a.n + b.n
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.n / n)
    return Moments(n, mean, a.m2 + b.m2 + np.outer(delta, delta) * (a.n * b.n / n))


def moments(chunks: np.ndarray | Iterable[np.ndarray]) -> Moments:
    """Moments of features [N, D], or of a stream of chunks [N_k, D] that is never held whole.

    Equal bits for equal rows, however they are cut: blocks of `BLOCK` rows are formed anew and merged in order. Raises
    `DataError` for an empty stream and for rows that are not finite.
    """
    chunks = [chunks] if isinstance(chunks, np.ndarray) else chunks
    parts = (_block_moments(block, index * BLOCK) for index, block in enumerate(blocks(chunks)))
    first = next(parts, None)
    if first is None:
        raise DataError("no features: the set of images is empty.")
    return reduce(merge, parts, first)


def _block_moments(block: np.ndarray, first_row: int) -> Moments:
    check_finite(block, first_row=first_row)
    mean = block.mean(axis=0)
    centred = block - mean
    return Moments(len(block), mean, centred.T @ centred)


@dataclass(frozen=True, eq=False)
class Reference:
    """What generated images are compared with: moments, and features [M, D] where its own uncertainty is wanted.

    Build once with `Reference.of`, use for every cell: the factor and the kernel sums are cached on first use.
    """

    moments: Moments
    features: np.ndarray | None = None

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Reference set from features [M, D]. Raises `DataError` for bad features or M < 2."""
        features = check_features(features, "reference features", rows=2)
        return cls(moments(features), features)

    @property
    def n(self) -> int:
        return self.moments.n

    @property
    def dims(self) -> int:
        return self.moments.dims

    @cached_property
    def factor(self) -> np.ndarray:
        """R [D, rank] with R R' = covariance; eigenvalues below D eps of the largest are rounding and left out."""
        values, vectors = np.linalg.eigh(self.moments.covariance)
        kept = values > self.dims * np.finfo(np.float64).eps * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept])

    @cached_property
    def kernel_means(self) -> np.ndarray:
        """For each reference image the mean cubic kernel to all the others, [M]; needs `features`."""
        return other_kernel_means(self.require_features())

    def check_dims(self, dims: int) -> None:
        """Raise a `DataError` unless features of `dims` can be compared with this reference."""
        if dims != self.dims:
            raise DataError(f"features have {dims} dims, the reference has {self.dims}: use one extractor for both.")

    def require_features(self) -> np.ndarray:
        """The features [M, D], or a `DataError` where only moments were kept."""
        if self.features is None:
            raise DataError("this reference holds moments only, but its features are needed: build it from features.")
        return self.features


def cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """k(x, y) = (x.y / D + 1)^3 of float64 rows x [N, D], y [M, D] -> [N, M] (arXiv 1801.01401, section 4)."""
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def cross_kernel_means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean kernel of each row of x [N, D] to all of y [M, D], and of each row of y to all of x: ([N], [M])."""
    x_sums, y_sums = np.zeros(len(x)), np.zeros(len(y))
    for rows, x_block in _slices(x):
        for columns, y_block in _slices(y):
            kernel = cubic_kernel(x_block, y_block)
            x_sums[rows] += kernel.sum(axis=1)
            y_sums[columns] += kernel.sum(axis=0)
    return x_sums / len(y), y_sums / len(x)


def other_kernel_means(x: np.ndarray) -> np.ndarray:
    """Mean kernel of each row of x [N, D] to the N - 1 other rows, [N]; by symmetry from half the blocks."""
    sums = np.zeros(len(x))
    for rows, a in _slices(x):
        for columns, b in _slices(x):
            if columns.start < rows.start:
                continue
            kernel = cubic_kernel(a, b)
            if columns == rows:
                np.fill_diagonal(kernel, 0)
            else:
                sums[columns] += kernel.sum(axis=0)
            sums[rows] += kernel.sum(axis=1)
    return sums / (len(x) - 1)


def _slices(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        yield rows, x[rows].astype(np.float64)
