"""The cost-quality frontier: the best that each budget buys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isocost.analysis.cells import Cells, affordable
from isocost.analysis.differences import COMPARED, Influence, comparer, tied
from isocost.analysis.frames import DataFrame
from isocost.analysis.words import sampler_name


@dataclass(frozen=True)
class Frontier:
    """The cells that beat every cheaper one on the selection half.

    `points`: rows of `Cells.rows`, by cost, with `cost`, `ties` (tuple of row indices into `cells.rows`: the cells at
    no greater cost that are not significantly worse, 95%) and `paired` (whether those differences are paired).
    """

    points: DataFrame
    cells: Cells
    unit: str


def frontier(cells: Cells, unit: str = "paper", influence: Influence | None = None) -> Frontier:
    """The cost-quality frontier under a cost unit ("paper", "gflops" or "seconds").

    `influence`: score_key -> centred influence values [n] of the metric, or None where they are not stored; without it
    differences are taken as unpaired, which widens them.
    """
    rows = affordable(cells, unit)
    loss = cells.sign * rows["selection_value"]
    ordered = rows.assign(loss=loss).sort_values(["cost", "loss"], kind="stable")
    cheaper_best = ordered["loss"].cummin().shift(fill_value=np.inf)
    points = ordered[ordered["loss"] < cheaper_best].drop(columns="loss")
    compare, costs, others = comparer(influence), rows["cost"].to_numpy(), rows[COMPARED]
    ties = [
        tied(point, others[costs <= point["cost"] * (1 + 1e-9)], cells.sign, compare) for _, point in points.iterrows()
    ]
    points = points.assign(ties=[found for found, _ in ties], paired=[paired for _, paired in ties])
    return Frontier(points, cells, unit)


def best_within(rows: DataFrame, budgets: np.ndarray, sign: float) -> list[int]:
    """Row index of the cell that is best on the selection half at a cost within each budget (rows have `cost`)."""
    ordered = rows.assign(loss=sign * rows["selection_value"]).sort_values(["cost", "loss"], kind="stable")
    better = ordered["loss"] < ordered["loss"].cummin().shift(fill_value=np.inf)
    envelope = ordered[better]
    places = np.searchsorted(envelope["cost"].to_numpy(), budgets * (1 + 1e-9), side="right") - 1
    return [int(envelope.index[place]) for place in places]


def curves(cells: Cells, unit: str = "paper") -> dict[tuple[str, str], DataFrame]:
    """(checkpoint name, sampler name with its settings) -> its cells by cost: best-of-guidance quality against cost."""
    rows = affordable(cells, unit)
    keys = [(row["checkpoint"], sampler_name(row)) for row in rows.to_dict("records")]
    found = {key: rows[[other == key for other in keys]] for key in dict.fromkeys(keys)}
    size = {name: place for place, name in enumerate(cells.rows["checkpoint"].drop_duplicates())}
    return dict(sorted(found.items(), key=lambda item: (size[item[0][0]], item[0][1])))
