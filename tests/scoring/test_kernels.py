from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from tests.scoring.synthetic import spread_features

from isocost.errors import DataError
from isocost.scoring.kernels import cmmd, cmmd_biased, kid
from isocost.scoring.statistics import Reference
from isocost.scoring.uncertainty import standard_error


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def published_gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The kernel of the published CMMD, with its factor of 1000, from the distances themselves."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return 1000 * np.exp(-((x[:, None] - y) ** 2).sum(-1) / (2 * 10**2))


def unbiased(kernel, x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    return (
        (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * kernel(x, y).mean()
    )


def biased(kernel, x: np.ndarray, y: np.ndarray) -> float:
    return kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()


DISTANCES = [(kid, unbiased, cubic), (cmmd, unbiased, published_gaussian), (cmmd_biased, biased, published_gaussian)]


# --- the value ---


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize(("metric", "sum_of_pairs", "kernel"), DISTANCES)
def test_a_distance_matches_the_direct_sum(monkeypatch, metric, sum_of_pairs, kernel, block):
    monkeypatch.setattr("isocost.scoring.statistics.BLOCK", block)
    x, y = spread_features(60, np.ones(5)), spread_features(45, np.ones(5), seed=1)
    assert metric(x, Reference.of(y)).value == pytest.approx(sum_of_pairs(kernel, x, y), rel=1e-10)


@pytest.mark.parametrize("metric", [kid, cmmd, cmmd_biased])
def test_order_and_rotation_do_not_count_and_repeats_are_bitwise(metric):
    x, y = spread_features(90, np.ones(5)), spread_features(70, np.linspace(1, 2, 5), seed=1)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((5, 5)))[0]
    plain = metric(x, Reference.of(y))
    backwards, turned = metric(x[::-1], Reference.of(y[::-1])), metric(x @ rotation, Reference.of(y @ rotation))
    for other in (backwards, turned):
        assert other.value == pytest.approx(plain.value, rel=1e-9)
        assert other.stderr == pytest.approx(plain.stderr, rel=1e-9)
    np.testing.assert_allclose(backwards.influence[::-1], plain.influence, atol=1e-9)
    again = metric(x.copy(), Reference.of(y.copy()))
    assert again.value == plain.value and np.array_equal(again.influence, plain.influence)
    assert plain.influence.dtype == plain.reference_influence.dtype == np.float64


def test_cmmd_sees_directions_alone():
    x, y = spread_features(80, np.ones(6)), spread_features(70, np.ones(6), seed=1)
    longer = x * np.random.default_rng(3).uniform(0.1, 10, (80, 1))
    assert cmmd(longer, Reference.of(2 * y)).value == pytest.approx(cmmd(x, Reference.of(y)).value, rel=1e-9)


def test_cmmd_is_ten_squared_differences_of_the_mean_direction():
    x, y = spread_features(4000, np.full(8, 0.4)), spread_features(4000, np.full(8, 0.4), seed=1)
    means = [np.mean(rows / np.linalg.norm(rows, axis=1, keepdims=True), axis=0) for rows in (x, y)]
    assert cmmd_biased(x, Reference.of(y)).value == pytest.approx(10 * np.sum((means[0] - means[1]) ** 2), rel=0.02)


def test_the_published_cmmd_is_biased_by_what_it_says():
    x, y = spread_features(40, np.ones(5)), spread_features(25, np.ones(5), seed=1)
    reference = Reference.of(y)
    fair, published = cmmd(x, reference), cmmd_biased(x, reference)
    assert fair.bias is None and published.bias > 0
    assert published.corrected == pytest.approx(fair.value, rel=1e-12)
    assert published.value == pytest.approx(fair.value + published.bias, rel=1e-12)
    assert published.stderr == fair.stderr
    assert abs(cmmd_biased(y, reference).value) < 1e-9 < abs(cmmd(y, reference).value)


@pytest.mark.parametrize("metric", [kid, cmmd])
def test_a_distance_is_unbiased_where_the_distributions_agree(metric):
    rng = np.random.default_rng(0)
    values = [
        metric(rng.standard_normal((40, 4)), Reference.of(rng.standard_normal((50, 4)))).value for _ in range(300)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300)


def test_a_row_without_direction_is_refused():
    x, y = spread_features(20, np.ones(4)), spread_features(20, np.ones(4), seed=1)
    hole = np.where(np.arange(20)[:, None] == 7, 0, x)
    with pytest.raises(DataError, match="features: row 7 is all zeros"):
        cmmd(hole, Reference.of(y))
    with pytest.raises(DataError, match="reference features: row 7 is all zeros"):
        cmmd_biased(x, Reference.of(hole))


# --- its error ---


@pytest.mark.parametrize(("metric", "kernel"), [(kid, cubic), (cmmd, published_gaussian)])
def test_influence_is_the_derivative_of_the_distance(metric, kernel):
    """Give image i the weight 1 + h: the distance moves by h / N times its influence, to first order."""
    x, y = spread_features(50, np.ones(4)), spread_features(40, np.linspace(1, 2, 4), seed=1)
    estimate = metric(x, Reference.of(y))

    def distance(wx: np.ndarray, wy: np.ndarray) -> float:
        def among(k: np.ndarray, w: np.ndarray) -> float:
            pairs = np.outer(w, w) * (1 - np.eye(len(w)))
            return np.sum(k * pairs) / pairs.sum()

        cross = wx @ kernel(x, y) @ wy / (wx.sum() * wy.sum())
        return among(kernel(x, x), wx) + among(kernel(y, y), wy) - 2 * cross

    def slope(n: int, i: int, at) -> float:
        h = 1e-4 * np.eye(n)[i]
        return n * (at(1 + h) - at(1 - h)) / 2e-4

    for i in (0, 17, 39):
        moved = slope(50, i, lambda w: distance(w, np.ones(40)))
        assert estimate.influence[i] == pytest.approx(moved, rel=1e-4, abs=1e-6)
        moved = slope(40, i, lambda w: distance(np.ones(50), w))
        assert estimate.reference_influence[i] == pytest.approx(moved, rel=1e-4, abs=1e-6)


def far_images(rng: np.random.Generator, n: int) -> np.ndarray:
    return 0.7 + 1.2 * rng.standard_normal((n, 4))


@functools.cache
def true_distance(metric) -> float:
    rng = np.random.default_rng(9)
    return metric(far_images(rng, 4000), Reference.of(rng.standard_normal((4000, 4)))).value


@pytest.mark.parametrize("metric", [kid, cmmd, cmmd_biased])
def test_intervals_cover_the_truth_over_images_and_references(metric):
    """64 images, 16 a dimension, and 48 references."""
    rng = np.random.default_rng(0)
    truth = true_distance(kid if metric is kid else cmmd)
    estimates = [metric(far_images(rng, 64), Reference.of(rng.standard_normal((48, 4)))) for _ in range(300)]
    covered = np.mean([low <= truth <= high for low, high in (estimate.interval() for estimate in estimates)])
    spread = np.std([estimate.corrected for estimate in estimates], ddof=1)
    assert 0.90 <= covered <= 0.99
    assert np.mean([estimate.stderr for estimate in estimates]) == pytest.approx(spread, rel=0.15)
    assert all(estimate.stderr > standard_error(estimate.influence) for estimate in estimates)
