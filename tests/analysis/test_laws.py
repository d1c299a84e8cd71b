from __future__ import annotations

import numpy as np
import pytest

from isocost.analysis import fits
from isocost.analysis.laws import laws


@pytest.fixture(scope="module")
def found(world):
    return laws(world.table, world.influence)


def test_the_laws_of_the_known_world(found):
    """FD = floor of the member + 30 / steps, and 20 x 4096 / images seen."""
    assert found.sampling.fit.form in ("saturating", "power") and found.training.fit.form in ("saturating", "power")
    assert found.sampling.exponents["b"][0] == pytest.approx(1.0, rel=0.4)
    assert found.training.exponents["b"][0] == pytest.approx(1.0, rel=0.4)
    assert [cross.unit for cross in found.crossovers] == ["paper"] * 3 + ["gflops"] * 3 + ["seconds"] * 3
    assert len(found.guidance) == 4 * 6


def test_size_and_steps_for_a_budget(found):
    """Both grow with the budget, and their exponents share it: cost is a power of the size, times the steps."""
    allocation = found.allocation
    assert np.all(np.diff(allocation.sizes) >= 0)
    if allocation.size_exponent:
        assert allocation.size_exponent[1] <= allocation.size_exponent[0] <= allocation.size_exponent[2]
        assert 0 < allocation.size_exponent[0] < 1.5 and "parameters ~ C^" in allocation.sentence


def test_what_cannot_be_fitted_is_said(world):
    few = laws(world.table[world.table["member"].isin(["c8", "c16"])], world.influence)
    assert few.sampling is None and few.training is None
    assert any("a law needs three members" in line for line in few.missing)
    one = laws(world.table[world.table["member"] == "c8"], world.influence)
    assert any("two members" in line for line in one.missing)


def test_seeds_are_in_the_covariance(synthetic):
    three = synthetic.World(0, seeds=(0, 1, 2), attributes=False, members=("c8", "c16", "c32"), steps=(1, 4, 16))
    found = laws(three.table, three.influence)
    assert found.sampling and found.sampling.seeds == 3 and found.sampling.points.covariance.dof < 250
    assert "3 training seeds" in found.sampling.sentence and not found.notes


def test_names_of_forms_are_known():
    assert {"saturating", "power", "turning", "compute"} <= set(fits.FORMS)
