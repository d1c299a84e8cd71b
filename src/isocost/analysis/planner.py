"""The answer for a budget: which checkpoint, sampler, steps and guidance to use, how good it is, and what ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import COSTS, Cells, affordable, best_guidance
from isocost.analysis.differences import Influence, comparer, tied
from isocost.analysis.frames import DataFrame, Series
from isocost.analysis.words import cost_name, full_label, listed, metric_name, short_label, with_error
from isocost.specs import Budget


@dataclass(frozen=True)
class Recommendation:
    """The best cell within a budget.

    `cell`: its row of the table (plain values). `value` and its 95% `interval` (None: the metric has no error
    estimate) are from the report half, the choice from the selection half. `ties`: cells within the budget that are not
    significantly worse, cheapest first. `cost`: unit -> cost per image, where known. `paired`: whether ties were judged
    by paired differences. `left_out`: scores that could not be used, by name.
    """

    cell: dict[str, Any]
    metric: str
    value: float
    interval: tuple[float, float] | None
    n: int
    valid: bool
    ties: tuple[dict[str, Any], ...]
    cost: dict[str, float]
    budget: Budget | None
    paired: bool
    left_out: tuple[str, ...]
    sentence: str


def plan(
    table: DataFrame,
    budget: Budget | None,
    metric: str,
    influence: Influence | None = None,
    filters: Mapping[str, Any] | None = None,
    select_by: str | None = None,
) -> Recommendation:
    """The best way to spend `budget` on one image (None: no limit), judged by `metric`.

    `filters` restricts the table first, for instance to a sampler. Raises `SpecError` where the budget is below the
    cheapest cell (and says what that costs), or where the table has nothing to choose from.
    """
    return plan_cells(best_guidance(table, metric, select_by, filters, keep_unguided=True), budget, influence)


def plan_cells(cells: Cells, budget: Budget | None, influence: Influence | None = None) -> Recommendation:
    """`plan`, from cells whose guidance is chosen already."""
    unit = budget.unit if budget else _known_unit(cells)
    rows = affordable(cells, unit, budget.limit if budget else np.inf)
    order = rows.assign(loss=cells.sign * rows["selection_value"]).sort_values(["loss", "cost"], kind="stable")
    winner = rows.loc[order.index[0]]
    indices, paired = tied(winner, rows, cells.sign, comparer(influence))
    ties = tuple(_plain(row) for _, row in rows.loc[list(indices)].iterrows())
    has_error = bool(np.isfinite(winner["stderr"]))
    cell = _plain(winner)
    return Recommendation(
        cell=cell,
        metric=cells.metric,
        value=cell["value"],
        interval=(cell["low"], cell["high"]) if has_error else None,
        n=int(cell["n"]),
        valid=bool(cell["valid"]),
        ties=ties,
        cost={name: cell[column] for name, column in COSTS.items() if pd.notna(cell[column])},
        budget=budget,
        paired=paired,
        left_out=cells.left_out,
        sentence=_sentence(cell, cells.metric, budget, ties, has_error),
    )


def _known_unit(cells: Cells) -> str:
    """The first cost unit that any cell has: with no limit the unit only orders ties."""
    return next((unit for unit, column in COSTS.items() if cells.rows[column].notna().any()), "paper")


def _plain(row: Series) -> dict[str, Any]:
    """A row as Python values, so that it can be printed or written as JSON."""
    return {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


def quality_words(cell: Mapping[str, Any], metric: str, has_error: bool) -> str:
    """`FD[extractor] 4.51 ± 0.62 on 256 prompts`, and what else is to be known of that."""
    half_width = (cell["high"] - cell["low"]) / 2 if has_error else None
    quality = f"{metric_name(metric)} {with_error(cell['value'], half_width)} on {cell['n']} prompts"
    if len(cell["seeds"]) > 1:
        quality += f", mean of {len(cell['seeds'])} training seeds"
    return quality if cell["valid"] else quality + " (too few images for this metric to be trusted)"


def _sentence(
    cell: Mapping[str, Any], metric: str, budget: Budget | None, ties: tuple[dict[str, Any], ...], has_error: bool
) -> str:
    limit = f"For at most {cost_name(budget.limit, budget.unit)} per image" if budget else "With no limit on cost"
    if budget and budget.unit == "seconds":
        limit += f" ({cell['seconds_as']})"
    verb = "ties" if len(ties) == 1 else "tie"
    tie = f"; {listed(short_label(other) for other in ties)} {verb}" if ties else ""
    return f"{limit} use {full_label(cell)}: {quality_words(cell, metric, has_error)}{tie}."
