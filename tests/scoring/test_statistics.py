from __future__ import annotations

import numpy as np
import pytest

from isocost.errors import DataError
from isocost.scoring import statistics
from isocost.scoring.kernels import cubic_kernel
from isocost.scoring.statistics import Moments, Reference, merge, moments


def features(n: int, dims: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dims)) @ rng.standard_normal((dims, dims)) + 5


def test_moments_match_numpy():
    x = features(3000, 7)
    m = moments(x)
    assert m.n == 3000
    np.testing.assert_allclose(m.mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(m.covariance, np.cov(x, rowvar=False), rtol=1e-12)


def test_moments_keep_digits_of_fp16_features_far_from_zero():
    x = (features(5000, 4) * 1e-2 + 100).astype(np.float16)
    exact = np.cov(x.astype(np.longdouble), rowvar=False)
    np.testing.assert_allclose(moments(x).covariance, exact.astype(float), rtol=1e-12)


@pytest.mark.parametrize("cuts", [[1], [1024], [1, 2, 3, 1500], [0, 1023, 1025, 2999], list(range(0, 3000, 64))])
def test_moments_are_bitwise_equal_however_the_rows_are_cut(cuts):
    x = features(3000, 5).astype(np.float32)
    whole, pieces = moments(x), moments(iter(np.split(x, cuts)))
    assert whole.n == pieces.n
    assert np.array_equal(whole.mean, pieces.mean) and np.array_equal(whole.m2, pieces.m2)


def test_merge_equals_the_moments_of_the_union():
    x = features(901, 6)
    merged = merge(moments(x[:13]), moments(x[13:]))
    np.testing.assert_allclose(merged.m2, moments(x).m2, rtol=1e-12)
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-14)


def test_bad_moments_are_refused():
    with pytest.raises(DataError, match="empty"):
        moments(iter([]))
    with pytest.raises(DataError, match="at least 2 images"):
        _ = moments(np.ones((1, 3))).covariance
    with pytest.raises(DataError, match="two extractors"):
        merge(moments(np.ones((4, 3))), moments(np.ones((4, 2))))
    x = features(2000, 3)
    x[1500, 1] = np.nan
    with pytest.raises(DataError, match=r"1 image rows \(1500\)"):
        moments(x)


def test_features_that_cannot_be_scored_are_refused_with_their_rows():
    x = features(20, 3)
    x[[3, 7, 8, 9, 10, 11], 0] = np.inf
    with pytest.raises(DataError, match=r"reference features: NaN .* 6 image rows \(3, 7, 8, 9, 10, \.\.\.\)"):
        Reference.of(x)
    with pytest.raises(DataError, match="at least 2"):
        Reference.of(features(1, 3))
    with pytest.raises(DataError, match="expected floats"):
        Reference.of(np.ones((4, 3), dtype=np.int64))
    with pytest.raises(DataError, match="expected floats"):
        Reference.of(np.ones(4))


def test_the_factor_squares_to_the_covariance_and_drops_rounding():
    x = features(50, 8)
    np.testing.assert_allclose(Reference.of(x).factor @ Reference.of(x).factor.T, np.cov(x, rowvar=False), rtol=1e-10)
    assert Reference.of(features(5, 8)).factor.shape == (8, 4)
    assert Reference.of(np.ones((5, 8))).factor.shape == (8, 0)


@pytest.mark.parametrize("n", [50, 5])
def test_products_with_the_factor_use_its_shape(n):
    """A Cholesky factor where the covariance has full rank, else scaled eigenvectors: the products are those of R."""
    reference = Reference.of(features(n, 8))
    factor, rows = reference.factor, features(11, 8, seed=1)
    assert (factor.shape == (8, 8) and not np.triu(factor, 1).any()) == (n == 50)
    columns = np.random.default_rng(2).standard_normal((factor.shape[1], 3))
    np.testing.assert_allclose(reference.spread(columns), factor @ columns, rtol=1e-12)
    np.testing.assert_allclose(reference.seen(rows), rows @ factor, rtol=1e-12)
    symmetric, before = rows.T @ rows, (rows.T @ rows).copy()
    lower = np.tril(reference.seen_moments(symmetric))
    np.testing.assert_allclose(lower, np.tril(factor.T @ symmetric @ factor), rtol=1e-11, atol=1e-11)
    assert np.array_equal(symmetric, before)


def test_the_second_moments_are_symmetric_over_several_tiles(monkeypatch):
    monkeypatch.setattr(statistics, "TILE", 5)
    m2 = moments(features(40, 13)).m2
    assert np.array_equal(m2, m2.T)
    np.testing.assert_allclose(m2 / 39, np.cov(features(40, 13).T), rtol=1e-12)


def test_the_factor_is_computed_once():
    reference = Reference.of(features(50, 8))
    assert reference.factor is reference.factor


def test_kernel_means_match_the_direct_sums_over_several_blocks(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 16)
    x, y = features(50, 4), features(37, 4, seed=1)
    to_y, to_x = statistics.cross_kernel_means(x, y, cubic_kernel)
    direct = ((x[:, None] * y).sum(-1) / 4 + 1) ** 3
    np.testing.assert_allclose(to_y, direct.mean(1), rtol=1e-12)
    np.testing.assert_allclose(to_x, direct.mean(0), rtol=1e-12)
    own = cubic_kernel(x, x)
    np.fill_diagonal(own, 0)
    np.testing.assert_allclose(statistics.other_kernel_means(x, cubic_kernel), own.sum(1) / 49, rtol=1e-12)


def test_what_a_reference_computes_once_is_kept_by_its_arguments():
    reference = Reference.of(features(50, 4))
    first = reference.once(np.quantile, 0.5)
    assert first == np.quantile(reference.features, 0.5) and reference.once(np.quantile, 0.5) is first
    assert reference.once(np.quantile, 0.1) < first


def test_moments_alone_have_no_features_to_compute_with():
    with pytest.raises(DataError, match="moments only"):
        Reference(Moments(10, np.zeros(2), np.eye(2))).once(np.quantile, 0.5)
