"""Crossovers and best guidance, on tables whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.analysis.claims.draws import KINDS, NORM_COST, Family, cell

from isocost.analysis.optima import best_guidance_intervals, crossover_budgets
from isocost.analysis.quantity import Errors
from isocost.analysis.sheet import Missing

DRAWS = 40
FLOOR, ERROR = {"s": 10.0, "m": 6.0}, {"s": 12.0, "m": 40.0}
STEPS = (4, 8, 16, 32, 64)


def crossing_family(**options) -> Family:
    cells = [cell(member, steps) for member in "sm" for steps in STEPS]
    return Family(cells, lambda row: FLOOR[row["member"]] + ERROR[row["member"]] / row["steps"], **options)


def true_crossing(small: str, large: str, cost: dict) -> float:
    """Where FLOOR + ERROR cost / budget are equal."""
    return (ERROR[large] * cost[large] - ERROR[small] * cost[small]) / (FLOOR[small] - FLOOR[large])


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.02)])
def test_crossovers_lie_in_their_intervals(seeds, seed_sd):
    family, rng = crossing_family(spread=0.5, seeds=seeds, seed_sd=seed_sd), np.random.default_rng(0)
    truth = true_crossing("s", "m", NORM_COST)
    inside, widths = [], []
    for _ in range(DRAWS if seeds == 1 else DRAWS // 2):
        sheet, influence = family.draw(rng, 512)
        (found,) = crossover_budgets(sheet, Errors(sheet.scores, influence))
        assert found.budget
        low, high = found.interval or (found.budget, found.budget)
        inside.append(low <= truth <= high)
        widths.append(np.log(high / low))
        assert found.kind == "crosses" and found.seeds == seeds
    assert np.mean(inside) >= 0.9
    assert np.median(widths) < np.log(4)  # and the intervals say something


def test_no_crossover_is_said_to_be_none():
    family = Family(
        [cell(m, steps) for m in "sm" for steps in STEPS], lambda row: {"s": 10.0, "m": 15.0}[row["member"]]
    )
    sheet, influence = family.draw(np.random.default_rng(0), 4096)
    (found,) = crossover_budgets(sheet, Errors(sheet.scores, influence))
    assert found.kind == "smaller ahead" and found.budget is None and found.interval is None and found.decided
    assert found.sentence.startswith("no crossover between") and "s is ahead." in found.sentence


def test_the_larger_ahead_throughout():
    family = Family(
        [cell(m, steps) for m in "sm" for steps in STEPS], lambda row: {"s": 15.0, "m": 10.0}[row["member"]]
    )
    sheet, influence = family.draw(np.random.default_rng(0), 4096)
    (found,) = crossover_budgets(sheet, Errors(sheet.scores, influence))
    assert found.kind == "larger ahead" and "m is ahead." in found.sentence


@pytest.mark.parametrize("unit", ["gflops", "seconds"])
def test_crossovers_in_other_units(unit):
    sheet, influence = crossing_family().draw(np.random.default_rng(0), 4096)
    (found,) = crossover_budgets(replace(sheet, unit=unit), Errors(sheet.scores, influence))
    assert found.unit == unit and found.kind == "crosses"


def test_costs_that_no_two_members_share():
    family = Family([cell("s", 4), cell("s", 8), cell("x", 50), cell("x", 64)], lambda row: 10.0)
    with pytest.raises(Missing, match="both s and x"):
        crossover_budgets(family.sheet, Errors(family.sheet.scores, None))


def test_the_best_rate_lies_in_its_interval():
    family, rng, inside = KINDS["C12"](claim_holds=True), np.random.default_rng(0), []
    for _ in range(DRAWS):
        sheet, influence = family.draw(rng, 256)
        for found in best_guidance_intervals(sheet, Errors(sheet.scores, influence)):
            best = {("s", 4): 3.0, ("l", 20): 1.5}.get((found.member, found.steps), 2.0)
            inside.append(found.low <= best <= found.high)
    assert len(inside) == 4 * DRAWS and np.mean(inside) >= 0.9
