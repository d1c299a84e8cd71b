from __future__ import annotations

import numpy as np
import pytest

from isocost.errors import DataError, SpecError
from isocost.scoring.manifold import coverage, density, precision, recall
from isocost.scoring.statistics import Reference
from isocost.scoring.uncertainty import paired_difference

METRICS = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}


def images(n: int, dims: int = 6, seed: int = 0) -> np.ndarray:
    return 0.3 + 0.9 * np.random.default_rng(seed).standard_normal((n, dims))


def references(n: int, dims: int = 6, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dims))


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None] - y) ** 2).sum(-1))


def radii(x: np.ndarray, k: int) -> np.ndarray:
    return np.sort(distances(x, x), axis=1)[:, k]  # place 0 is the image itself


def direct(name: str, generated: np.ndarray, real: np.ndarray, k: int) -> float:
    """The formulas of arXiv 1904.06991 and 2002.09797 as they stand."""
    between = distances(real, generated)
    in_real_ball = between < radii(real, k)[:, None]
    return {
        "precision": lambda: in_real_ball.any(axis=0).mean(),
        "recall": lambda: (between < radii(generated, k)).any(axis=1).mean(),
        "density": lambda: in_real_ball.sum(axis=0).mean() / k,
        "coverage": lambda: (between.min(axis=1) < radii(real, k)).mean(),
    }[name]()


# --- the value ---


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("name", METRICS)
def test_it_matches_the_formulas(name, k):
    x, y = images(90), references(70)
    assert METRICS[name](x, Reference.of(y), k=k).value == pytest.approx(direct(name, x, y, k), rel=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_the_size_of_blocks_does_not_count(monkeypatch, name):
    x, y = images(90), references(70)
    whole = METRICS[name](x, Reference.of(y))
    monkeypatch.setattr("isocost.scoring.statistics.BLOCK", 16)
    monkeypatch.setattr("isocost.scoring.manifold.CELLS", 700)
    blocked = METRICS[name](x, Reference.of(y))
    assert blocked.value == whole.value and blocked.stderr == pytest.approx(whole.stderr, rel=1e-10)
    np.testing.assert_allclose(blocked.influence, whole.influence, atol=1e-10)
    np.testing.assert_allclose(blocked.reference_influence, whole.reference_influence, atol=1e-10)


@pytest.mark.parametrize("name", METRICS)
def test_order_place_rotation_and_scale_do_not_count(name):
    x, y = images(90), references(70)
    plain = METRICS[name](x, Reference.of(y))
    backwards = METRICS[name](x[::-1], Reference.of(y[::-1]))
    np.testing.assert_allclose(backwards.influence[::-1], plain.influence, atol=1e-10)
    np.testing.assert_allclose(backwards.reference_influence[::-1], plain.reference_influence, atol=1e-10)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    moved = METRICS[name](5 * x @ rotation + 3, Reference.of(5 * y @ rotation + 3))
    assert (moved.value, moved.stderr) == pytest.approx((plain.value, plain.stderr), rel=1e-10)
    again = METRICS[name](x.copy(), Reference.of(y.copy()))
    assert again.stderr == plain.stderr and np.array_equal(again.influence, plain.influence)


def test_a_set_lies_in_itself_and_not_in_one_far_away():
    x = images(80)
    for metric in METRICS.values():
        assert metric(x, Reference.of(x)).value == pytest.approx(1, abs=0.05)
        assert metric(x + 100, Reference.of(x)).value == 0
    assert precision(x, Reference.of(x)).value == recall(x, Reference.of(x)).value == 1


def test_recall_is_precision_of_the_other_set():
    x, y = images(90), references(70)
    there, back = precision(x, Reference.of(y)), recall(y, Reference.of(x))
    assert (there.value, there.stderr) == pytest.approx((back.value, back.stderr))
    np.testing.assert_allclose(there.influence, back.reference_influence)
    np.testing.assert_allclose(there.reference_influence, back.influence)


def test_images_that_crowd_are_dense_and_cover_little():
    y = references(200)
    x = 0.2 * images(200)
    assert density(x, Reference.of(y)).value > 2
    assert coverage(x, Reference.of(y)).value < 0.9
    assert precision(x, Reference.of(y)).value == 1 and recall(x, Reference.of(y)).value < 0.1


def test_too_few_images_are_refused():
    y = Reference.of(references(20))
    with pytest.raises(DataError, match="4 images, but at least 5"):
        precision(images(4), y)
    with pytest.raises(DataError, match=r"reference features: 6 images, but at least 7"):
        density(images(20), Reference.of(references(6)))
    with pytest.raises(DataError, match="5 dims, the reference has 6"):
        recall(images(20, dims=5), y)
    with pytest.raises(SpecError, match="k = 0"):
        coverage(images(20), y, k=0)


# --- its error ---


@pytest.mark.parametrize("name", METRICS)
def test_the_other_sets_share_is_the_jackknifes_less_the_points_own(name):
    """Leave each of the other set out and compute all anew, per point; then sum products of two different points."""
    k = 3
    x, y = images(60), references(50)
    of_references = name in ("precision", "density")  # whose balls the images lie in

    def points(generated: np.ndarray, real: np.ndarray, own: np.ndarray) -> np.ndarray:
        """What each point contributes; for coverage the balls stay those of `own`, as only images leave."""
        between = distances(real, generated)
        in_real_ball = between < radii(real, k)[:, None]
        return {
            "precision": lambda: in_real_ball.any(axis=0),
            "recall": lambda: (between < radii(generated, k)).any(axis=1),
            "density": lambda: in_real_ball.sum(axis=0) / k,
            "coverage": lambda: (between < radii(own, k)[:, None]).any(axis=1),
        }[name]().astype(float)

    others = len(y) if of_references else len(x)
    without = [
        points(x, np.delete(y, i, axis=0), y) if of_references else points(np.delete(x, i, axis=0), y, y)
        for i in range(others)
    ]
    loss = points(x, y, y) - np.array(without)
    loss -= loss.mean(axis=0)
    n = loss.shape[1]
    pairs = np.sum(loss.sum(axis=1) ** 2) - np.sum(loss**2)
    expected = (others - 1) / others * pairs / (n * (n - 1))

    estimate = METRICS[name](x, Reference.of(y), k=k)
    found = estimate.reference_influence if of_references else estimate.influence
    assert expected > 0
    assert np.var(found, ddof=1) / others == pytest.approx(expected, rel=1e-9)
    assert np.corrcoef(found, loss.mean(axis=1))[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("name", METRICS)
def test_intervals_cover_over_images_and_references(name):
    found = [
        METRICS[name](images(150, seed=seed), Reference.of(references(150, seed=seed + 999))) for seed in range(200)
    ]
    values, errors = np.array([e.value for e in found]), np.array([e.stderr for e in found])
    covered = np.mean(np.abs(values - values.mean()) < 1.96 * errors)
    assert 0.88 <= covered <= 1
    assert 0.8 < errors.mean() / values.std(ddof=1) < 1.6


@pytest.mark.parametrize("name", METRICS)
def test_paired_differences_know_their_spread(name):
    differences = []
    for seed in range(150):
        reference, noise = Reference.of(references(150, seed=seed + 999)), references(150, seed=seed)
        a, b = (METRICS[name](scale * noise + 0.1, reference) for scale in (0.9, 1.1))
        differences.append(paired_difference(a, b))
    spread = np.std([difference.value for difference in differences], ddof=1)
    assert 0.8 < np.mean([difference.stderr for difference in differences]) / spread < 2


def test_what_is_nearly_all_or_nearly_nothing_has_no_error_to_trust():
    x, y = images(200), references(200)
    assert precision(x, Reference.of(y)).valid
    assert not precision(y, Reference.of(y)).valid
    far = precision(x + 100, Reference.of(y))
    assert not far.valid and far.stderr == 0
