"""Statistics of features: mergeable fp64 moments, a reference set with what is worth caching, and kernel sums.

All of it is bitwise repeatable: rows are taken in order, in blocks of `BLOCK`, however the caller cut them into chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from scipy.linalg import eigh, get_blas_funcs, get_lapack_funcs

from isocost.errors import DataError

T = TypeVar("T")
BLOCK = 1024
TILE = 256

syrk, trmm = get_blas_funcs(("syrk", "trmm"))  # of float64
potrf, sygst = get_lapack_funcs(("potrf", "sygst"))

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # float64 rows x [N, D], y [M, D] -> [N, M], symmetric


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


def row_lengths(features: np.ndarray, what: str = "features") -> np.ndarray:
    """|x| of each row of features [N, D], float64 [N, 1], or a `DataError` for a row of zeros: it has no direction."""
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))[:, None]
    if not lengths.all():
        raise DataError(f"{what}: row {int(np.argmin(lengths))} is all zeros and has no direction.")
    return lengths


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
                yield np.ascontiguousarray(np.concatenate(held, dtype=np.float64))
                held, room = [], size
    if held:
        yield np.ascontiguousarray(np.concatenate(held, dtype=np.float64))


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
        return self.m2 / self.freedom

    @property
    def total_variance(self) -> float:
        """Trace of the covariance."""
        return float(np.trace(self.m2)) / self.freedom

    @property
    def freedom(self) -> int:
        """n - 1, or a `DataError` for fewer than 2 images."""
        if self.n < 2:
            raise DataError(f"a covariance needs at least 2 images, found {self.n}.")
        return self.n - 1


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

    Equal bits for equal rows, however they are cut: blocks of `BLOCK` rows are formed anew, and each is added in order
    by one symmetric product (the update of `merge`, its rank-one term as a row more). Raises `DataError` for an empty
    stream and for rows that are not finite.
    """
    n, mean, m2 = 0, np.zeros(0), None
    for block in blocks([chunks] if isinstance(chunks, np.ndarray) else chunks):
        block_mean = block.mean(axis=0)
        if not np.isfinite(block_mean).all():
            check_finite(block, first_row=n)
        if m2 is None:
            mean, m2 = np.zeros_like(block_mean), np.zeros((len(block_mean),) * 2, order="F")
        delta = block_mean - mean
        rows = np.empty((len(block) + 1, len(mean)))
        np.subtract(block, block_mean, out=rows[:-1])
        rows[-1] = delta * math.sqrt(n * len(block) / (n + len(block)))
        m2 = syrk(1.0, rows.T, beta=1.0, c=m2, overwrite_c=True)
        n += len(block)
        mean += delta * (len(block) / n)
    if m2 is None:
        raise DataError("no features: the set of images is empty.")
    return Moments(n, mean, mirrored(m2).T)


def mirrored(upper: np.ndarray) -> np.ndarray:
    """A symmetric matrix of which only the upper triangle was computed, whole; in place, by tiles that fit a cache."""
    for start in range(0, len(upper), TILE):
        stop = start + TILE
        tile = upper[start:stop, start:stop]
        tile[:] = np.triu(tile) + np.triu(tile, 1).T
        upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper


@dataclass(frozen=True, eq=False)
class Reference:
    """What generated images are compared with: moments, and features [M, D] where its own uncertainty is wanted.

    Build once with `Reference.of`, use for every cell: the factor, and what `once` computes, are kept from first use.
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

    @property
    def factor(self) -> np.ndarray:
        """R [D, rank] with R R' = covariance: its Cholesky factor, or, where it is singular to rounding, eigenvectors
        times the roots of their eigenvalues, those below D eps of the largest left out."""
        return self._factor[0]

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        """R, and whether it is lower triangular: a product with it then takes half the work."""
        covariance = self.moments.covariance
        rounding = self.dims * np.finfo(np.float64).eps
        lower, failed = potrf(covariance, lower=True)
        if not failed and lower.diagonal().min() ** 2 > rounding * np.trace(covariance):
            return lower, True
        values, vectors = eigh(covariance, driver="evd", overwrite_a=True, check_finite=False)
        kept = values > rounding * values[-1]
        return vectors[:, kept] * np.sqrt(values[kept]), False

    def spread(self, columns: np.ndarray) -> np.ndarray:
        """R `columns` [rank, k] -> [D, k]."""
        factor, triangular = self._factor
        return trmm(1.0, factor, columns, lower=True) if triangular else factor @ columns

    def seen(self, rows: np.ndarray) -> np.ndarray:
        """`rows` [N, D] R -> [N, rank]."""
        factor, triangular = self._factor
        return trmm(1.0, factor, rows.T, lower=True, trans_a=True).T if triangular else rows @ factor

    def seen_moments(self, m2: np.ndarray) -> np.ndarray:
        """R' `m2` R [rank, rank] of a symmetric matrix [D, D]; its lower triangle, the rest is not to be read."""
        factor, triangular = self._factor
        return sygst(m2.T, factor, itype=2, lower=True)[0] if triangular else factor.T @ m2 @ factor

    def once(self, function: Callable[..., T], *arguments: Hashable) -> T:
        """`function(features, *arguments)`, computed at the first call and kept; needs `features`."""
        key = (function, *arguments)
        if key not in self._kept:
            self._kept[key] = function(self.require_features(), *arguments)
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[Any, Any]:
        return {}

    def check_dims(self, dims: int) -> None:
        """Raise a `DataError` unless features of `dims` can be compared with this reference."""
        if dims != self.dims:
            raise DataError(f"features have {dims} dims, the reference has {self.dims}: use one extractor for both.")

    def require_features(self) -> np.ndarray:
        """The features [M, D], or a `DataError` where only moments were kept."""
        if self.features is None:
            raise DataError("this reference holds moments only, but its features are needed: build it from features.")
        return self.features


def cross_kernel_means(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Mean kernel of each row of x [N, D] to all of y [M, D], and of each row of y to all of x: ([N], [M])."""
    x_sums, y_sums = np.zeros(len(x)), np.zeros(len(y))
    for rows, x_block in slices(x):
        for columns, y_block in slices(y):
            values = kernel(x_block, y_block)
            x_sums[rows] += values.sum(axis=1)
            y_sums[columns] += values.sum(axis=0)
    return x_sums / len(y), y_sums / len(x)


def other_kernel_means(x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Mean kernel of each row of x [N, D] to the N - 1 other rows, [N]; by symmetry from half the blocks."""
    sums = np.zeros(len(x))
    for rows, a in slices(x):
        for columns, b in slices(x):
            if columns.start < rows.start:
                continue
            values = kernel(a, b)
            if columns == rows:
                np.fill_diagonal(values, 0)
            else:
                sums[columns] += values.sum(axis=0)
            sums[rows] += values.sum(axis=1)
    return sums / (len(x) - 1)


def slices(x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows of x [N, D], float64, with their places, in order."""
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        yield rows, x[rows].astype(np.float64, order="C")
