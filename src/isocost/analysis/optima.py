"""Where curves cross and where they turn, with intervals: crossover budgets between neighbours, best guidance rates.

Both are found by inverting tests (Fieller, J. R. Statist. Soc. B 16, 1954): an interval holds every place that the
difference there does not rule out. So it covers the truth as often as the test accepts it, whatever the slope; a place
that nothing rules out on one side gives an interval that is open there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isocost.analysis.cells import COSTS
from isocost.analysis.frames import DataFrame
from isocost.analysis.quantity import Errors, Quantity, t_quantile, upper_tail, weighted
from isocost.analysis.sheet import Missing, Sheet, members, neighbours
from isocost.analysis.words import cost_name, number

BUDGETS = 64


@dataclass(frozen=True)
class CrossoverBudget:
    """From which cost on the larger of two members is the better one.

    `kind`: "crosses" at `budget`, "larger ahead" or "smaller ahead" throughout `range` (the costs that both were
    sampled at). `interval`: 95%, of the costs around the crossing at which neither is surely ahead; None where the
    order is sure throughout. An end at the end of `range` is open. `decided`: the order is sure somewhere (on both
    sides of a crossing).
    """

    smaller: str
    larger: str
    unit: str
    kind: str
    budget: float | None
    interval: tuple[float, float] | None
    range: tuple[float, float]
    decided: bool
    seeds: int
    sentence: str


def crossover_budgets(sheet: Sheet, errors: Errors, cells: DataFrame | None = None) -> list[CrossoverBudget]:
    """Where each member overtakes the next smaller one, as more steps are paid for; guidance at its best.

    `cells`: of one sampler; default the final ones by DDIM. Raises `Missing` where there are fewer than two members.
    """
    cells = sheet.sampled(sheet.final()) if cells is None else cells
    return [_crossover(sheet, errors, cells, *pair) for pair in neighbours(members(cells))]


def _crossover(sheet: Sheet, errors: Errors, cells: DataFrame, smaller: str, larger: str) -> CrossoverBudget:
    small, large = (_curve(sheet, cells[cells["member"] == member]) for member in (smaller, larger))
    low, high = max(small[0][0], large[0][0]), min(small[0][-1], large[0][-1])
    if not high > low:
        raise Missing(f"costs that both {smaller} and {larger} were sampled at")
    budgets = np.geomspace(low, high, BUDGETS)
    gains = [at_cost(*small, budget) - at_cost(*large, budget) for budget in budgets]  # positive: the larger is ahead
    found = errors.estimates(gains)
    half = t_quantile(0.975, found.dof) * np.nan_to_num(found.stderr, nan=np.inf)
    ahead, behind = found.value - half > 0, found.value + half < 0
    crossing = _crossing(found.value)
    kind = "crosses" if crossing is not None else "larger ahead" if found.value[-1] > 0 else "smaller ahead"
    budget = None if crossing is None else float(np.exp(np.interp(crossing, np.arange(BUDGETS), np.log(budgets))))
    place = round(crossing) if crossing is not None else BUDGETS - 1 if found.value[-1] <= 0 else 0
    unsure = _around(~(ahead | behind), place)
    interval = (float(budgets[unsure[0]]), float(budgets[unsure[1]])) if unsure else None
    decided = bool(ahead.any() and behind.any()) if kind == "crosses" else bool(ahead.any() or behind.any())
    sentence = _sentence(smaller, larger, sheet.unit, kind, budget, interval, (low, high), decided)
    return CrossoverBudget(
        smaller, larger, sheet.unit, kind, budget, interval, (float(low), float(high)), decided, found.seeds, sentence
    )


def _crossing(gain: np.ndarray) -> float | None:
    """Where gains last turn from negative to positive, as a fractional place."""
    turns = np.flatnonzero((gain[:-1] <= 0) & (gain[1:] > 0))
    return None if not len(turns) else float(turns[-1] + gain[turns[-1]] / (gain[turns[-1]] - gain[turns[-1] + 1]))


def _around(unsure: np.ndarray, place: int) -> tuple[int, int] | None:
    """First and last of the run of unsure places that holds `place`, a place to either side included."""
    if not unsure[place]:
        return None
    start, end = place, place
    while start > 0 and unsure[start - 1]:
        start -= 1
    while end < len(unsure) - 1 and unsure[end + 1]:
        end += 1
    return max(start - 1, 0), min(end + 1, len(unsure) - 1)


def _curve(sheet: Sheet, cells: DataFrame) -> tuple[np.ndarray, list[Quantity]]:
    """Costs, rising, and losses at them. Raises `Missing` for fewer than two."""
    column = COSTS[sheet.unit]
    rows = cells[np.isfinite(cells[column].astype(float))].sort_values(column, kind="stable").drop_duplicates(column)
    if len(rows) < 2:
        raise Missing(f"two costs or more in {sheet.unit} of every member")
    return rows[column].to_numpy(float), [sheet.loss(int(cell)) for cell in rows.index]


def at_cost(costs: np.ndarray, losses: Sequence[Quantity], budget: float) -> Quantity:
    """The loss at a cost between those sampled: the parabola over log cost through the nearest three of them."""
    x = np.log(costs)
    at = np.log(budget)
    if len(x) < 3:
        share = (at - x[0]) / (x[1] - x[0])
        return weighted(losses, [1 - share, share])
    first = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 3))
    if first > 0 and at - x[first] < x[first + 1] - at:
        first -= 1
    nodes = x[first : first + 3]
    shares = [float(np.prod([(at - other) / (node - other) for other in nodes if other != node])) for node in nodes]
    return weighted(losses[first : first + 3], shares)


def _sentence(smaller, larger, unit, kind, budget, interval, sampled, decided) -> str:
    over = f"between {number(sampled[0])} and {cost_name(sampled[1], unit)}"
    if kind == "crosses":
        low, high = interval or (budget, budget)
        start = f"{number(low)}" if low > sampled[0] else f"{number(low)} or less"
        end = f"{number(high)}" if high < sampled[1] else f"{number(high)} or more"
        sure = "" if decided else ", and which of them is ahead is sure on one side at most"
        return f"{larger} overtakes {smaller} at {cost_name(budget, unit)} ({start} to {end}){sure}."
    ahead = larger if kind == "larger ahead" else smaller
    sure = "" if interval is None else ", not surely throughout" if decided else ", surely nowhere"
    return f"no crossover {over}: {ahead} is ahead{sure}."


@dataclass(frozen=True)
class BestGuidance:
    """The guidance rates of a member at a step count that may be the best: `low` to `high`, with 95%."""

    member: str
    steps: int
    best: float
    low: float
    high: float
    rates: tuple[float, ...]


def best_guidance_intervals(sheet: Sheet, errors: Errors) -> list[BestGuidance]:
    """Of every member and step count: the rate chosen on the selection half, and those that the report half lets stand.

    A rate is out where the chosen one is better (one-sided, corrected over rates), so the interval is of sampled rates.
    """
    found = []
    cells = sheet.sampled(sheet.final(guidance="all"))
    for (member, steps), group in cells.groupby(["member", "steps"], sort=False):
        seen = {int(cell): sheet.seen(cell, sheet.quality) for cell in group.index if sheet.has(cell, sheet.quality)}
        seen = {cell: loss for cell, loss in seen.items() if np.isfinite(loss)}
        if len(seen) < 2:
            continue
        chosen = min(seen, key=lambda cell: seen[cell])
        others = [cell for cell in seen if cell != chosen]
        lacks = errors.estimates([sheet.loss(cell) - sheet.loss(chosen) for cell in others])
        p = np.nan_to_num(upper_tail(lacks.value / lacks.stderr, lacks.dof), nan=1.0) * len(others)
        rates = {cell: float(sheet.row(cell)["guidance_scale"]) for cell in seen}
        stand = [rates[chosen], *(rates[cell] for cell, value in zip(others, p, strict=True) if value > 0.05)]
        found.append(
            BestGuidance(str(member), int(steps), rates[chosen], min(stand), max(stand), tuple(sorted(rates.values())))
        )
    return found
