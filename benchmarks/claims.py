"""Do verdicts and laws err as seldom as they say? Studies with a known truth, drawn again and again from images on.

    python benchmarks/claims.py [--claims C3 C12 ...] [--draws 400] [--plans 100] [--laws 60]

For each kind of claim: `false`, how many of `draws` studies on the very edge of the claim call it supported (27 of 400
is the one-sided limit for 5%), and `power`, the share of studies that call it supported where it holds, with the images
a cell that the tool recommended, for a probability of 0.8, from a pilot too small to decide (at each plan a new pilot,
then a new study). All from features of generated images on: Frechet distances, influence values, guidance chosen on one
half (`tests/analysis/claims/draws.py`).

Then the share of intervals that hold the truth: budgets at which one size overtakes another, best guidance rates, and
points that a law did not see; and how many of the studies without a crossover say that there is none.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the studies are those of the tests

from tests.analysis.claims.draws import EDGE_IMAGES, KINDS, NORM_COST, PILOT_IMAGES, Family, Pictures, cell
from tests.analysis.test_fits import points
from tests.analysis.test_optima import STEPS, crossing_family, true_crossing

from isocost.analysis.fits import law
from isocost.analysis.optima import best_guidance_intervals, crossover_budgets
from isocost.analysis.quantity import Errors
from isocost.environment import environment

PILOT = 128


def claim(name: str, draws: int, plans: int) -> dict:
    edge, holds = (Pictures(KINDS[name](claim_holds=holding)) for holding in (False, True))
    rng, images = np.random.default_rng(1), EDGE_IMAGES.get(name, PILOT)
    pilot = PILOT_IMAGES.get(name, PILOT)
    false = sum(edge.verdict(name, rng, images)[0] == "supported" for _ in range(draws))
    recommended, right = [], 0
    for _ in range(20 * plans):
        if len(recommended) == plans:
            break
        wanted = holds.recommended(name, rng, pilot)
        if wanted is not None and wanted.images is not None:
            recommended.append(wanted.images)
            right += holds.verdict(name, rng, wanted.images)[0] == "supported"
    median = float(np.median(recommended)) if recommended else None
    return {
        "false": false, "draws": draws, "images": images, "power": right / max(len(recommended), 1),
        "plans": len(recommended), "recommended": median,
    }  # fmt: skip


def crossovers(draws: int, seeds: int, seed_sd: float) -> float:
    """Share of intervals that hold the budget at which the larger member overtakes."""
    family, rng = crossing_family(spread=0.5, seeds=seeds, seed_sd=seed_sd), np.random.default_rng(0)
    truth, inside = true_crossing("s", "m", NORM_COST), 0
    for _ in range(draws):
        sheet, influence = family.draw(rng, 512)
        (found,) = crossover_budgets(sheet, Errors(sheet.scores, influence))
        low, high = found.interval or (found.budget or np.nan, found.budget or np.nan)
        inside += bool(low <= truth <= high)
    return inside / draws


def no_crossover(draws: int) -> float:
    """Share of studies in which the smaller is ahead throughout that say so, and name no budget."""
    family = Family(
        [cell(member, steps) for member in "sm" for steps in STEPS], lambda row: {"s": 10.0, "m": 15.0}[row["member"]]
    )
    rng, said = np.random.default_rng(0), 0
    for _ in range(draws):
        sheet, influence = family.draw(rng, 512)
        (found,) = crossover_budgets(sheet, Errors(sheet.scores, influence))
        said += found.kind == "smaller ahead" and found.budget is None
    return said / draws


def best_guidance(draws: int) -> float:
    family, rng, inside = Pictures(KINDS["C12"](claim_holds=True)), np.random.default_rng(0), []
    for _ in range(draws):
        sheet, influence = family.draw(rng, 256)
        for found in best_guidance_intervals(sheet, Errors(sheet.scores, influence)):
            best = {("s", 4): 3.0, ("l", 20): 1.5}.get((found.member, found.steps), 2.0)
            inside.append(found.low <= best <= found.high)
    return float(np.mean(inside))


def held_out(draws: int, seeds_sd: float) -> float:
    """Share of the points that a law held out, its form chosen by them, that lie in their intervals."""
    rng = np.random.default_rng(0)
    parts = [part for _ in range(draws) for part in law(points(rng, seeds_sd=seeds_sd), "FD", "steps").held_out]
    return float(np.mean([part.covered for part in parts]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", nargs="*", choices=KINDS, default=list(KINDS), metavar="ID")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--laws", type=int, default=60, help="studies of each law, and of crossovers and guidance")
    asked = parser.parse_args()
    found = {}
    if asked.laws:
        found["intervals that hold the truth"] = {
            "crossovers": crossovers(asked.laws, 1, 0.0),
            "crossovers, three training seeds": crossovers(asked.laws, 3, 0.02),
            "best guidance": best_guidance(asked.laws),
            "points that a law did not see": held_out(asked.laws, 0.0),
            "points that a law did not see, with training seeds": held_out(asked.laws, 0.2),
        }
        found["no crossover, and it is said"] = no_crossover(asked.laws)
        print(json.dumps(found), flush=True)
    claims = {}
    for name in asked.claims:
        claims[name] = claim(name, asked.draws, asked.plans)
        print(json.dumps({name: claims[name]}), flush=True)
    print(json.dumps({"name": "errors of verdicts and laws", "claims": claims, **found, "device": environment()}))


if __name__ == "__main__":
    main()
