from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from isocost.errors import DataError, SpecError
from isocost.scoring.inception_score import inception_score


def images(n: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((n, classes))


def direct(logits: np.ndarray, weights: np.ndarray | None = None) -> float:
    """exp of the weighted mean of KL(p(y|x) || p(y)), term by term."""
    weights = np.ones(len(logits)) if weights is None else weights
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = weights @ p / weights.sum()
    return math.exp(weights @ (p * np.log(p / mean)).sum(axis=1) / weights.sum())


# --- the value ---


def test_sure_and_evenly_spread_classes_score_k():
    estimate = inception_score(np.tile(50.0 * np.eye(7), (20, 1)))
    assert estimate.value == pytest.approx(7)
    assert estimate.n == 140 and estimate.higher_is_better and estimate.unit == "inception score"


def test_images_of_one_kind_score_one_without_error():
    estimate = inception_score(np.tile([[1.0, 2.0, 3.0]], (30, 1)))
    assert estimate.value == pytest.approx(1)
    assert (estimate.stderr, estimate.bias) == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize("n", [40, 2500])
def test_it_matches_the_direct_sum(n):
    assert inception_score(images(n)).value == pytest.approx(direct(images(n)), rel=1e-12)


def test_shifts_and_order_do_not_count_and_repeats_are_bitwise():
    logits = images(1500)
    plain = inception_score(logits)
    shifted, backwards = inception_score(logits + 700 * np.sign(images(1500)[:, :1])), inception_score(logits[::-1])
    for other in (shifted, backwards):
        assert (other.value, other.stderr, other.bias) == pytest.approx((plain.value, plain.stderr, plain.bias))
    np.testing.assert_allclose(backwards.influence[::-1], plain.influence, atol=1e-10)
    again = inception_score(logits.copy())
    assert again.value == plain.value and np.array_equal(again.influence, plain.influence)


def test_a_class_that_no_image_has_counts_nothing():
    logits = np.column_stack([images(200), np.full(200, -1e4)])
    assert inception_score(logits).value == pytest.approx(inception_score(images(200)).value, rel=1e-12)


def test_splits_are_scored_apart_and_averaged():
    logits = images(205)
    parts = [inception_score(part) for part in np.split(logits, [51, 102, 153])]
    estimate = inception_score(logits, splits=4)
    assert estimate.value == pytest.approx(np.mean([part.value for part in parts]))
    assert estimate.bias == pytest.approx(np.mean([part.bias for part in parts]))
    independent = math.sqrt(sum(part.stderr**2 for part in parts)) / 4
    assert estimate.stderr == pytest.approx(independent, rel=0.02)
    assert estimate.value < inception_score(logits).value
    assert estimate.n == len(estimate.influence) == 205 and estimate.unit == "inception score, mean of 4 splits"


def test_bad_logits_and_splits_are_refused():
    with pytest.raises(SpecError, match="0 splits"):
        inception_score(images(20), splits=0)
    with pytest.raises(DataError, match=r"class logits: 5 images, but at least 6"):
        inception_score(images(5), splits=3)
    with pytest.raises(DataError, match=r"class logits: NaN .* \(3\)"):
        inception_score(np.where(np.arange(9)[:, None] == 3, np.nan, images(9)))


# --- its error ---


@pytest.mark.parametrize("cuts", [[], [16, 33]])
def test_influence_is_the_derivative_of_the_score(cuts):
    """Give image i the weight 1 + h: the score moves by h / N times its influence, to first order. Also by splits."""
    logits = images(50)
    influence = inception_score(logits, splits=len(cuts) + 1).influence

    def score(weights: np.ndarray) -> float:
        parts = zip(np.split(logits, cuts), np.split(weights, cuts), strict=True)
        return float(np.mean([direct(*part) for part in parts]))

    for i in (0, 17, 49):
        h = 1e-4 * np.eye(50)[i]
        slope = 50 * (score(1 + h) - score(1 - h)) / 2e-4
        assert influence[i] == pytest.approx(slope, rel=1e-4)
    assert abs(influence.sum()) < 1e-10


def test_the_bias_is_that_of_the_mean_class_and_of_the_exponential():
    logits = images(80)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    classes = np.sum(p.var(axis=0) / p.mean(axis=0))
    kl = (p * np.log(p / p.mean(axis=0))).sum(axis=1)
    expected = math.exp(kl.mean()) * (1 - math.exp((classes - kl.var(ddof=1)) / 160))
    assert inception_score(logits).bias == pytest.approx(expected, rel=1e-10)


@functools.cache
def true_score() -> float:
    estimate = inception_score(images(400_000, seed=99))
    return estimate.corrected


def test_the_bias_law():
    """A score of few images is too low, by what the estimate says."""
    estimates = [inception_score(images(100, seed=seed)) for seed in range(400)]
    bias = np.mean([estimate.value for estimate in estimates]) - true_score()
    assert bias < -0.05
    assert np.mean([estimate.bias for estimate in estimates]) == pytest.approx(bias, rel=0.15)


def test_intervals_cover_the_true_score():
    estimates = [inception_score(images(120, seed=seed)) for seed in range(400)]
    covered = np.mean([low <= true_score() <= high for low, high in (e.interval() for e in estimates)])
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    assert all(estimate.valid for estimate in estimates)
    assert 0.90 <= covered <= 0.99
    assert np.mean([estimate.stderr for estimate in estimates]) == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(("n", "valid", "corrected"), [(35, False, False), (37, False, True), (160, True, True)])
def test_too_few_images_a_class_are_marked(n, valid, corrected):
    """One class an image, all as frequent: K' = K - 1 = 9."""
    estimate = inception_score(60.0 * np.eye(10)[np.arange(n) % 10])
    assert (estimate.valid, estimate.bias is not None) == (valid, corrected)
