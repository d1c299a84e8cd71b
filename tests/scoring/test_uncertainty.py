from __future__ import annotations

import math

import numpy as np
import pytest

from isocost.errors import DataError, SpecError
from isocost.scoring.frechet import frechet
from isocost.scoring.kernels import cmmd, kid
from isocost.scoring.statistics import Reference
from isocost.scoring.uncertainty import (
    Difference,
    Estimate,
    images_to_rank,
    independent_difference,
    mean_estimate,
    paired_difference,
    ties,
    total_error,
)


def values(mean: float, n: int = 100, seed: int = 0) -> np.ndarray:
    """n values whose sample mean is exactly `mean`."""
    noise = np.random.default_rng(seed).standard_normal(n)
    return mean + noise - noise.mean()


def test_a_mean_has_the_textbook_error():
    v = values(3.0)
    estimate = mean_estimate(v, unit="u")
    assert estimate.value == pytest.approx(3.0)
    assert estimate.stderr == pytest.approx(v.std(ddof=1) / 10)
    assert estimate.n == 100 and estimate.bias is None and estimate.valid and estimate.higher_is_better
    np.testing.assert_allclose(estimate.influence, v - 3.0, atol=1e-12)


def test_a_weighted_mean_ignores_images_of_weight_zero():
    v, asked = values(1.0, 400), np.arange(400) % 2 == 0
    estimate, alone = mean_estimate(v, asked, unit="u"), mean_estimate(v[asked], unit="u")
    assert estimate.value == pytest.approx(alone.value)
    assert estimate.stderr == pytest.approx(alone.stderr, rel=2e-3)  # n against n - 1
    assert len(estimate.influence) == 400 and not estimate.influence[~asked].any()
    assert abs(estimate.influence.sum()) < 1e-10


def test_one_image_has_no_error():
    with pytest.raises(DataError, match="at least 2"):
        mean_estimate(np.ones(1), unit="u")
    with pytest.raises(DataError, match="1 images to average"):
        mean_estimate(np.ones(5), np.array([1, 0, 0, 0, 0]), unit="u")


def test_interval_and_bias():
    estimate = Estimate(10.0, 1.0, 2.0, 50, None, False, "u")
    assert estimate.corrected == 8.0
    assert estimate.interval() == pytest.approx((8 - 1.959964, 8 + 1.959964))
    assert estimate.interval(0.68)[1] == pytest.approx(8.994458)
    with pytest.raises(SpecError, match="level"):
        estimate.interval(95)


def test_the_paired_difference_is_that_of_the_images_differences():
    a, b = values(1.0), values(1.0) * 0.9 + 0.2
    difference = paired_difference(mean_estimate(a, unit="u"), mean_estimate(b, unit="u"))
    assert difference.value == pytest.approx((a - b).mean())
    assert difference.stderr == pytest.approx((a - b).std(ddof=1) / 10)
    apart = independent_difference(mean_estimate(a, unit="u"), mean_estimate(b, unit="u"))
    assert apart.stderr == pytest.approx(math.hypot(a.std(ddof=1), b.std(ddof=1)) / 10)
    assert apart.stderr > 10 * difference.stderr


def test_the_bias_is_taken_off_both_or_neither():
    def estimate(value: float, bias: float | None) -> Estimate:
        return Estimate(value, 1.0, bias, 4, np.array([1.0, -1, 1, -1]), False, "u")

    assert paired_difference(estimate(5, 1), estimate(3, 2)).value == 3
    assert paired_difference(estimate(5, 1), estimate(3, None)).value == 2


def test_what_cannot_be_paired_is_refused():
    a = mean_estimate(values(1.0), unit="u")
    with pytest.raises(DataError, match="same images"):
        paired_difference(a, mean_estimate(values(1.0, 50), unit="u"))
    with pytest.raises(DataError, match="same images"):
        paired_difference(a, Estimate(1.0, 1.0, None, 100, None, True, "u"))
    with pytest.raises(SpecError, match="two metrics"):
        paired_difference(a, mean_estimate(values(1.0), unit="w"))


def against_a_sample(value: float, seed: int, references: int = 25, influence_seed: int = 0) -> Estimate:
    """100 images and a reference set that is a sample itself."""
    influence, of_references = values(0.0, seed=influence_seed), values(0.0, references, seed=seed)
    stderr = total_error(influence, of_references)
    return Estimate(value, stderr, None, 100, influence, False, "u", reference_influence=of_references)


def test_a_reference_that_is_a_sample_adds_to_a_paired_difference():
    a, b = against_a_sample(5, seed=1), against_a_sample(3, seed=2)
    shared = (a.reference_influence - b.reference_influence).std(ddof=1) / 5
    assert paired_difference(a, b).stderr == pytest.approx(shared)  # the images' influence is the same
    assert paired_difference(a, b, fixed_reference=True).stderr == 0
    c = against_a_sample(3, seed=2, influence_seed=7)
    images = (a.influence - c.influence).std(ddof=1) / 10
    assert paired_difference(a, c).stderr == pytest.approx(math.hypot(images, shared))
    assert paired_difference(a, c, fixed_reference=True).stderr == pytest.approx(images)
    assert paired_difference(a, against_a_sample(3, seed=1)).stderr == 0


def test_references_that_are_not_the_same_are_refused():
    a = against_a_sample(5, seed=1)
    with pytest.raises(DataError, match="one reference set"):
        paired_difference(a, against_a_sample(3, seed=1, references=26))
    alone = Estimate(3.0, 1.0, None, 100, a.influence, False, "u")
    with pytest.raises(DataError, match="in both estimates or in neither"):
        paired_difference(a, alone)
    assert paired_difference(a, alone, fixed_reference=True).stderr == 0


@pytest.mark.parametrize("metric", [frechet, kid, cmmd])
def test_paired_errors_hold_where_the_reference_is_drawn_anew(metric):
    """200 images, 230 references: the spread of a difference over both, and how much of it the images alone make."""
    rng = np.random.default_rng(0)
    total, images_alone = [], []
    for _ in range(200):
        reference, noise = Reference.of(rng.standard_normal((230, 8))), rng.standard_normal((200, 8))
        other = 1.15 * noise + 0.15 + 0.3 * rng.standard_normal((200, 8))
        a, b = metric(1.3 * noise + 0.3, reference), metric(other, reference)
        total.append(paired_difference(a, b))
        images_alone.append(paired_difference(a, b, fixed_reference=True).stderr)
    spread = np.std([difference.value for difference in total], ddof=1)
    assert np.mean([difference.stderr for difference in total]) == pytest.approx(spread, rel=0.12)
    assert np.mean(images_alone) < 0.98 * np.mean([difference.stderr for difference in total])


@pytest.mark.parametrize(("higher", "probability"), [(True, 0.9772499), (False, 0.0227501)])
def test_probability_follows_the_metrics_direction(higher, probability):
    assert Difference(2.0, 1.0, higher).probability == pytest.approx(probability, abs=1e-6)


def test_differences_without_spread_are_certain():
    assert [Difference(v, 0.0, False).probability for v in (-1.0, 0.0, 1.0)] == [1.0, 0.5, 0.0]


def test_the_sentence_names_the_likelier_winner_first():
    assert Difference(2.0, 1.0, True).sentence("A", "B") == "A beats B with probability 0.98"
    assert Difference(2.0, 1.0, False).sentence("A", "B") == "B beats A with probability 0.98"


def test_ties_are_those_that_the_best_does_not_clearly_beat():
    cells = {
        "bad": mean_estimate(values(0.0, seed=1), unit="u"),
        "best": mean_estimate(values(1.0, seed=2), unit="u"),
        "near": mean_estimate(values(0.95, seed=3), unit="u"),
    }
    assert ties(cells) == ["best", "near"]
    assert ties(cells, level=0.5001) == ["best"]
    assert ties({}) == []


def test_images_to_rank_scales_with_the_squared_gap():
    noise = values(0.0, seed=4)
    zero = mean_estimate(np.zeros(100), unit="u")
    near, far = (mean_estimate(noise + gap, unit="u") for gap in (0.1, 0.2))
    assert images_to_rank(near, zero) == pytest.approx((1.959964 * noise.std(ddof=1) / 0.1) ** 2)
    assert images_to_rank(near, zero) == pytest.approx(4 * images_to_rank(far, zero))
    assert images_to_rank(zero, zero) == math.inf


def test_images_to_rank_leaves_room_for_the_reference():
    a, b = against_a_sample(2, seed=1), against_a_sample(0, seed=2, influence_seed=7)
    images = paired_difference(a, b, fixed_reference=True).stderr
    references = math.sqrt(paired_difference(a, b).stderr ** 2 - images**2)
    n = images_to_rank(a, b)
    assert math.hypot(images * math.sqrt(100 / n), references) == pytest.approx(2 / 1.959964)
    assert images_to_rank(against_a_sample(0.1, seed=1), b) == math.inf
