"""Crossovers: from which budget on the larger of two members is the better buy."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocost.analysis.cells import Z95, Cells, affordable, members_by_size
from isocost.analysis.differences import Compare, Influence, comparer
from isocost.analysis.frames import DataFrame
from isocost.analysis.frontier import best_within
from isocost.analysis.words import cost_name, metric_name, number, with_error


@dataclass(frozen=True)
class Crossover:
    """Where a larger member overtakes its smaller neighbour as the budget per image grows.

    `kind`: "from" (at `budget` and above), "always" (wherever it is affordable) or "none" (not at this scale).
    `difference` = larger - smaller in the metric's own units at `budget` (for "none": at the largest budget), with its
    95% `interval`; `decided`: whether that interval excludes 0. `decided_from`: the cheapest budget from which the
    interval decides for the larger member at every larger budget too.
    """

    smaller: str
    larger: str
    unit: str
    kind: str
    budget: float
    difference: float
    interval: tuple[float, float] | None
    decided: bool
    decided_from: float | None
    sentence: str


def crossovers(cells: Cells, unit: str = "paper", influence: Influence | None = None) -> list[Crossover]:
    """Where each member by itself is overtaken by the next larger one, as the budget grows."""
    rows, compare = affordable(cells, unit), comparer(influence)
    rows = rows[rows["stages"] == ""]
    names = members_by_size(rows)
    return [_crossover(cells, rows, unit, compare, *pair) for pair in itertools.pairwise(names)]


def _crossover(cells: Cells, rows: DataFrame, unit: str, compare: Compare, smaller: str, larger: str) -> Crossover:
    small, large = rows[rows["member"] == smaller], rows[rows["member"] == larger]
    budgets = np.union1d(small["cost"], large["cost"])
    budgets = budgets[budgets >= max(small["cost"].min(), large["cost"].min())]
    pairs = zip(best_within(small, budgets, cells.sign), best_within(large, budgets, cells.sign), strict=True)
    differences, errors = zip(*(_pair(compare, rows, *pair) for pair in pairs), strict=True)
    gain = -cells.sign * np.array(differences)  # positive: the larger member is better
    half_width = Z95 * np.array(errors)
    better = _from_here_on(gain > 0)
    decides = _from_here_on(gain - half_width > 0)
    place = int(np.argmax(better)) if better.any() else len(budgets) - 1
    kind = "none" if not better.any() else "always" if better.all() else "from"
    difference, width = float(differences[place]), float(half_width[place])
    crossover = {
        "smaller": smaller,
        "larger": larger,
        "unit": unit,
        "kind": kind,
        "budget": float(budgets[place]),
        "difference": difference,
        "interval": (difference - width, difference + width) if np.isfinite(width) else None,
        "decided": bool(abs(difference) > width),
        "decided_from": float(budgets[np.argmax(decides)]) if decides.any() else None,
    }
    return Crossover(**crossover, sentence=_crossover_sentence(crossover, cells.metric, float(small["cost"].max())))


def _pair(compare: Compare, rows: DataFrame, small: int, large: int) -> tuple[float, float]:
    difference, stderr, _ = compare(rows.loc[small], rows.loc[[large]])
    return float(difference[0]), float(stderr[0])


def _from_here_on(flags: np.ndarray) -> np.ndarray:
    """True where this and every later flag is True."""
    return np.logical_and.accumulate(flags[::-1])[::-1]


def _crossover_sentence(found: Mapping[str, Any], metric: str, small_up_to: float) -> str:
    smaller, larger, unit = found["smaller"], found["larger"], found["unit"]
    interval, later, decided = found["interval"], found["decided_from"], found["decided"]
    half_width = None if interval is None else (interval[1] - interval[0]) / 2
    side = "lower" if found["difference"] < 0 else "higher"
    gap = f"its {metric_name(metric)} there is {side} by {with_error(abs(found['difference']), half_width)}"
    verdict = "which decides" if decided else "which does not decide"
    at = cost_name(found["budget"], unit)
    if found["kind"] == "none":
        return f"{larger} does not overtake {smaller} at this scale, up to {at}: {gap}, {verdict}."
    start = f"{larger} overtakes {smaller} at {at}"
    if found["kind"] == "always":
        start = f"{larger} is ahead of {smaller} wherever both can be afforded, from {at}"
    if not decided:
        verdict += f"; from {cost_name(later, unit)} on it does" if later else ", nor does any larger budget"
    beyond = f" {smaller} was measured up to {number(small_up_to)} only." if found["budget"] > small_up_to else ""
    return f"{start}: {gap}, {verdict}.{beyond}"
