from __future__ import annotations

import pytest

from isocost.analysis.cells import best_guidance
from isocost.analysis.samplers import of_samplers, order_of_sizes, sampler_differences


@pytest.fixture(scope="module")
def cells(world, synthetic):
    return best_guidance(world.table, synthetic.FD)


def test_differences_are_paired_and_match_the_truth(world, synthetic, cells):
    found = sampler_differences(cells, "ddim", "dpmpp_2m", world.influence)
    assert [(one.checkpoint, one.steps) for one in found][:2] == [("c8", 1), ("c8", 2)]
    assert len(found) == len(synthetic.MEMBERS) * len(synthetic.STEPS)
    for one in found:
        truth = 30 / one.steps**1.3 - 30 / one.steps
        assert one.interval is not None and one.interval[0] - 1 < truth < one.interval[1] + 1
        assert one.decided == (not one.interval[0] <= 0 <= one.interval[1])
    halved = next(one for one in found if one.steps == 4)
    assert halved.difference < 0 and halved.decided
    unpaired = next(one for one in sampler_differences(cells, "ddim", "dpmpp_2m") if one.steps == 4)
    assert unpaired.interval[1] - unpaired.interval[0] > 1.5 * (halved.interval[1] - halved.interval[0])


def test_samplers_are_compared_up_to_the_steps_that_both_have(world, synthetic):
    table = world.table
    short = table[(table["sampler"] == "ddim") | (table["steps"] <= 4)]
    rows = of_samplers(best_guidance(short, synthetic.FD), "ddim", "dpmpp_2m").rows
    assert rows["steps"].max() == 4 and set(rows["sampler"]) == {"ddim", "dpmpp_2m"}


def test_the_order_of_sizes_is_asked_of_each_sampler(world, cells):
    orders = order_of_sizes(cells, "paper", world.influence)
    assert list(orders) == ["ddim", "dpmpp_2m"]
    for found in orders.values():
        assert [(one.smaller, one.larger) for one in found] == [("c8", "c16"), ("c16", "c32"), ("c32", "c64")]
