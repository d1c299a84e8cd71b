from __future__ import annotations

import pytest

from isocost.analysis.cells import best_guidance
from isocost.analysis.crossovers import crossovers


def test_crossovers_match_the_truth(world, synthetic):
    cells = best_guidance(world.table, synthetic.FD, filters={"sampler": "ddim"})
    found = crossovers(cells, "paper", world.influence)
    assert [(c.smaller, c.larger) for c in found] == [("c8", "c16"), ("c16", "c32"), ("c32", "c64")]
    first = found[0]
    # c16 costs 3x c8 and its floor is 6 lower: at 0.45 (3 steps against 8) 17.7 against 18.6.
    assert first.kind == "from" and first.budget == pytest.approx(0.45, abs=0.16)
    assert first.difference < 0 and first.decided_from is not None
    assert "c16 overtakes c8" in first.sentence


def test_crossover_none_at_this_scale(synthetic):
    world = synthetic.World(3, members=("c8", "c16"), curve=False)
    table = world.table.copy()
    worse = (table["member"] == "c16") & (table["metric"] == synthetic.FD)
    table.loc[worse, "value"] += 50
    (found,) = crossovers(best_guidance(table, synthetic.FD), "paper", world.influence)
    assert found.kind == "none" and found.difference > 0 and found.decided
    assert "does not overtake c8 at this scale" in found.sentence


def test_crossover_always(synthetic):
    world = synthetic.World(3, members=("c8", "c16"), curve=False)
    table = world.table.copy()
    table.loc[(table["member"] == "c16") & (table["metric"] == synthetic.FD), "value"] -= 40
    (found,) = crossovers(best_guidance(table, synthetic.FD), "gflops", world.influence)
    assert found.kind == "always" and found.decided
    assert "wherever both can be afforded" in found.sentence


def test_crossover_direction_for_higher_is_better(world, synthetic):
    (found,) = crossovers(best_guidance(world.table, synthetic.CLIP, filters={"member": ["c8", "c16"]}), "paper")
    assert found.kind == "from" and found.difference > 0
