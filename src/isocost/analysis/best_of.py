"""Best-of-n as a way to spend a sampling budget: quality against n at a fixed cost per image.

What n candidates cost could pay for more steps of one, or for a larger member: so at every cost the best of each n is
compared with the best single image, each chosen on the selection half and judged by its paired difference on the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isocost.analysis.cells import COSTS, Z95, Cells, best_guidance
from isocost.analysis.differences import Compare, Influence, comparer
from isocost.analysis.frames import DataFrame
from isocost.analysis.sheet import Missing
from isocost.analysis.words import cost_name, full_label, metric_name, number

COSTS_SHOWN = 6  # of a member: where there are more, these spread over them
ANY = "any size"
NEEDED = "cells of best-of-n (grid.best_of)"


@dataclass(frozen=True)
class Choice:
    """The best within a cost that makes `n` candidates: `use` says which, `key` its sample key.

    `gain`: by how much it is better than the best single image there (positive: better; None: it is that one, or none
    is affordable), with its 95% interval. NaN in an interval: no error is known.
    """

    n: int
    use: str
    key: str
    value: float
    interval: tuple[float, float]
    gain: float | None = None
    gain_interval: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `ties`; "" for the single image itself."""
        if self.gain is None or self.gain_interval is None:
            return ""
        low, high = self.gain_interval
        return "better" if low > 0 else "worse" if high < 0 else "ties"


@dataclass(frozen=True)
class AtCost:
    """The choices for at most `cost` an image (of `unit`), by n; `member`: whose, or any."""

    member: str
    unit: str
    cost: float
    choices: tuple[Choice, ...]

    @property
    def sentence(self) -> str:
        several = [choice for choice in self.choices if choice.verdict]
        said = ", ".join(
            f"best of {choice.n} {choice.verdict} by {_signed(choice)} ({choice.use})" for choice in several
        )
        return f"{self.member}, {cost_name(self.cost, self.unit)} an image, beside {self.choices[0].use}: {said}."


def _signed(choice: Choice) -> str:
    assert choice.gain is not None and choice.gain_interval is not None
    low, high = choice.gain_interval
    return f"{number(choice.gain, 2)} ({number(low, 2)} to {number(high, 2)})"


@dataclass(frozen=True)
class BestOf:
    """Quality by `metric` against n: at each cost of each member, and of any. `chosen_by`: the CLIPs that choose."""

    metric: str
    chosen_by: tuple[str, ...]
    at: tuple[AtCost, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """Each member at the most that it was sampled for, and how often n candidates pay."""
        found = []
        for member in dict.fromkeys(point.member for point in self.at):
            points = [point for point in self.at if point.member == member]
            pays = sum(any(choice.verdict == "better" for choice in point.choices) for point in points)
            found.append(f"best of n pays surely at {pays} of {len(points)} costs; {points[-1].sentence}")
        return tuple(found)

    def rows(self) -> list[dict[str, Any]]:
        """One row a (member, cost, n), as the CSV has them."""
        return [
            {
                "member": point.member, "unit": point.unit, "cost": point.cost, "n": choice.n, "use": choice.use,
                "value": choice.value, "low": choice.interval[0], "high": choice.interval[1], "gain": choice.gain,
                "gain_low": choice.gain_interval[0] if choice.gain_interval else None,
                "gain_high": choice.gain_interval[1] if choice.gain_interval else None,
                "verdict": choice.verdict, "sample_key": choice.key,
            }
            for point in self.at for choice in point.choices
        ]  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"sentences": list(self.sentences)}


def best_of(
    table: DataFrame,
    metric: str,
    influence: Influence | None = None,
    select_by: str | None = None,
    unit: str | None = None,
    filters: Mapping[str, Any] | None = None,
) -> BestOf:
    """Quality against n at fixed cost, of a table's cells. `unit`: default GFLOPs, else the paper's cost.

    Single images are by the samplers that n candidates were made by. Raises `Missing` where no cell makes several, or
    none that makes one is affordable beside it; `SpecError` as `best_guidance` does.
    """
    if "best_of" not in table or not (table["best_of"] > 1).any():
        raise Missing(NEEDED)
    cells = best_guidance(table, metric, select_by, filters, keep_unguided=True)
    return best_of_cells(cells, influence, unit)


def best_of_cells(cells: Cells, influence: Influence | None = None, unit: str | None = None) -> BestOf:
    """`best_of`, from cells whose guidance is chosen already."""
    rows = cells.rows[cells.rows["stages"] == ""]
    several = rows[rows["best_of"] > 1]
    if several.empty:
        raise Missing(NEEDED)
    rows = rows[rows["sampler"].isin(several["sampler"]) & rows["member"].isin(several["member"])]
    unit = unit or next((name for name in ("gflops", "paper") if rows[COSTS[name]].notna().all()), "seconds")
    rows = rows.assign(cost=rows[COSTS[unit]].astype(float), seen=cells.sign * rows["selection_value"])
    compare = comparer(influence)
    names = [name for name in cells.members if name in set(several["member"])]
    groups = {name: rows[rows["member"] == name] for name in names}
    if len(groups) > 1:
        groups[ANY] = rows
    found = [
        point
        for name, group in groups.items()
        for cost in _costs(group)
        if (point := _at(name, unit, cost, group[group["cost"] <= cost * (1 + 1e-9)], cells, compare)) is not None
    ]
    if not found:
        raise Missing("single images that cost no more than the cells of best-of-n do")
    return BestOf(cells.metric, tuple(sorted(set(several["scorer"]) - {""})), tuple(found))


def _costs(rows: DataFrame) -> list[float]:
    """Costs of cells that make several candidates; where there are many, some spread over them, the last one kept."""
    costs = np.unique(rows.loc[rows["best_of"] > 1, "cost"].dropna().to_numpy(float))
    if len(costs) <= COSTS_SHOWN:
        return costs.tolist()
    wanted = np.linspace(np.log(costs[0]), np.log(costs[-1]), COSTS_SHOWN)
    return costs[np.unique([np.abs(np.log(costs) - place).argmin() for place in wanted])].tolist()


def _at(member: str, unit: str, cost: float, rows: DataFrame, cells: Cells, compare: Compare) -> AtCost | None:
    """The best of each n within a cost, beside the best single image; None where there is none."""
    ordered = rows.sort_values(["seen", "cost"], kind="stable").drop_duplicates("best_of")
    ordered = ordered.sort_values("best_of", kind="stable")
    if len(ordered) < 2 or ordered["best_of"].iloc[0] != 1:
        return None
    single = ordered.iloc[0]
    difference, stderr, _ = compare(single, ordered.iloc[1:])
    gains = [
        (None, None),
        *((float(gain), _around(gain, error)) for gain, error in zip(-cells.sign * difference, stderr, strict=True)),
    ]
    choices = tuple(
        Choice(
            int(row["best_of"]), full_label(row), str(row["sample_key"]), float(row["value"]),
            (float(row["low"]), float(row["high"])), gain, interval,
        )
        for row, (gain, interval) in zip(ordered.to_dict("records"), gains, strict=True)
    )  # fmt: skip
    return AtCost(member, unit, cost, choices)


def _around(value: float, stderr: float) -> tuple[float, float]:
    return float(value - Z95 * stderr), float(value + Z95 * stderr)


def judges_that_chose(metric: str, scorers: Iterable[str]) -> list[str]:
    """A sentence for each of the `scorers` of best-of-n that is the metric's own extractor."""
    _, _, judge = metric.rstrip("]").partition("[")
    return [
        f"Best-of-n keeps the image that {scorer} finds closest to its caption, and {metric_name(metric)} is by "
        f"{scorer} too: in those cells it is what was optimised, and says little of quality. Judge them by another."
        for scorer in sorted(set(scorers) - {""})
        if re.fullmatch(rf"{re.escape(scorer)}(-\d+)?", judge)
    ]
