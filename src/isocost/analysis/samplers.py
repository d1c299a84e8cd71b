"""Samplers beside one another: which is better at equal steps, and whether sizes are in the same order under each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from isocost.analysis.cells import Z95, Cells
from isocost.analysis.crossovers import Crossover, crossovers
from isocost.analysis.differences import Influence, comparer


@dataclass(frozen=True)
class SamplerDifference:
    """`other` less `sampler` in the metric's own units, for one checkpoint at equal steps, each at its best guidance.

    `interval`: 95%, paired where influence values are stored; None without an error estimate.
    """

    checkpoint: str
    steps: int
    sampler: str
    other: str
    difference: float
    interval: tuple[float, float] | None

    @property
    def decided(self) -> bool:
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def of_samplers(cells: Cells, *samplers: str) -> Cells:
    """The plain cells of some samplers, at step counts up to the most that all of them have."""
    rows = cells.plain
    rows = rows[rows["sampler"].isin(samplers)]
    most = rows.groupby("sampler")["steps"].max().min()
    return replace(cells, rows=rows[rows["steps"] <= most])


def sampler_differences(
    cells: Cells, sampler: str, other: str, influence: Influence | None = None
) -> list[SamplerDifference]:
    """`other` less `sampler`, for every checkpoint and step count that both have (arXiv 2404.01367, Fig. 11)."""
    return list(_differences(of_samplers(cells, sampler, other), sampler, other, influence))


def _differences(cells: Cells, sampler: str, other: str, influence: Influence | None) -> Iterator[SamplerDifference]:
    compare = comparer(influence)
    for (checkpoint, steps), pair in cells.rows.groupby(["checkpoint", "steps"], sort=False):
        first, second = (pair[pair["sampler"] == name] for name in (sampler, other))
        if len(first) == len(second) == 1:
            difference, stderr, _ = compare(first.iloc[0], second)
            value, half_width = float(difference[0]), float(Z95 * stderr[0])
            interval = (value - half_width, value + half_width) if np.isfinite(half_width) else None
            yield SamplerDifference(str(checkpoint), int(steps), sampler, other, value, interval)


def order_of_sizes(cells: Cells, unit: str = "paper", influence: Influence | None = None) -> dict[str, list[Crossover]]:
    """Where each member is overtaken by the next larger one, under each sampler by itself."""
    samplers = list(dict.fromkeys(cells.plain["sampler"]))
    return {sampler: crossovers(of_samplers(cells, sampler), unit, influence) for sampler in samplers}
