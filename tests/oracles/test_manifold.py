from __future__ import annotations

import pytest

from isocost.scoring import manifold
from isocost.scoring.statistics import Reference


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_and_coverage_are_those_of_prdc(library, cells, k):
    x, y = cells
    expected = library("prdc").compute_prdc(real_features=y, fake_features=x, nearest_k=k)
    found = {name: getattr(manifold, name)(x, Reference.of(y), k=k).value for name in expected}
    assert found == pytest.approx(expected, rel=1e-10)
    assert all(value > 0 for value in found.values())
