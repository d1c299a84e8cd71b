from __future__ import annotations

import numpy as np
import pytest

from isocost.analysis.cells import COSTS, best_guidance
from isocost.analysis.crossovers import crossovers
from isocost.analysis.frontier import curves, frontier


@pytest.mark.parametrize("unit", COSTS)
def test_frontier_improves_with_cost(world, synthetic, unit):
    front = frontier(best_guidance(world.table, synthetic.FD), unit, world.influence)
    points = front.points
    assert points["cost"].is_monotonic_increasing
    assert (np.diff(points["selection_value"]) < 0).all()
    assert np.allclose(points["high"] - points["low"], 2 * 1.959964 * points["stderr"])
    cheapest = front.cells.rows[COSTS[unit]].min()
    assert points["cost"].iloc[0] == cheapest


def test_frontier_for_higher_is_better(world, synthetic):
    points = frontier(best_guidance(world.table, synthetic.CLIP)).points
    assert (np.diff(points["selection_value"]) > 0).all()


def test_one_member_has_a_frontier_and_no_crossover(synthetic):
    world = synthetic.World(members=("c16",))
    cells = best_guidance(world.table, synthetic.FD)
    assert cells.members == ["c16"]
    assert len(frontier(cells).points) >= 3
    assert crossovers(cells) == []


def test_curves_are_per_size_and_sampler(world, synthetic):
    found = curves(best_guidance(world.table, synthetic.FD), "gflops")
    assert len(found) == 8 and next(iter(found)) == ("c8", "DDIM")
    assert all(part["cost"].is_monotonic_increasing and len(part) == 6 for part in found.values())
