from __future__ import annotations

import math

import numpy as np
import pytest
from tests.scoring.synthetic import spread_features

from isocost.scoring.kernels import kid
from isocost.scoring.statistics import Reference
from isocost.scoring.uncertainty import standard_error


def direct_kid(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    return (
        (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * kernel(x, y).mean()
    )


@pytest.mark.parametrize("block", [7, 1024])
def test_kid_matches_the_direct_sum(monkeypatch, block):
    monkeypatch.setattr("isocost.scoring.statistics.BLOCK", block)
    x, y = spread_features(60, np.ones(5)), spread_features(45, np.ones(5), seed=1)
    assert kid(x, Reference.of(y)).value == pytest.approx(direct_kid(x, y), rel=1e-10)


def test_kid_is_unbiased_where_the_distributions_agree():
    rng = np.random.default_rng(0)
    values = [kid(rng.standard_normal((40, 4)), Reference.of(rng.standard_normal((50, 4)))).value for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(300)


def test_kids_error_is_its_spread_over_images_and_references():
    rng = np.random.default_rng(0)
    estimates = [
        kid(0.5 + 1.2 * rng.standard_normal((150, 4)), Reference.of(rng.standard_normal((100, 4)))) for _ in range(200)
    ]
    spread = np.std([e.value for e in estimates], ddof=1)
    assert np.mean([e.stderr for e in estimates]) == pytest.approx(spread, rel=0.2)
    assert all(e.stderr > standard_error(e.influence) for e in estimates)
