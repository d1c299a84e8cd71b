"""Images seen per parameter as the axis of a law: does one curve hold for members of all sizes?

Two looks at it. A law of images per parameter alone is fitted beside laws that know the size too, and has to predict
the largest member, and every member's last checkpoint, as well as the best of those. And neighbours are compared where
they have seen as many images per parameter: on one curve their difference is 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from isocost.analysis.claims.pretraining import STABLE, curve_cells
from isocost.analysis.fits import Law, law, points_of
from isocost.analysis.optima import at_cost
from isocost.analysis.quantity import Errors, Quantity, mean, t_quantile
from isocost.analysis.sheet import Missing, Sheet, neighbours
from isocost.analysis.words import metric_name, number

X = "images per parameter"
ALONE = "x alone"
FORMS = ("constant", ALONE, "size alone", "logarithmic", "power", "saturating")
PLACES = 8  # compared in what two neighbours share
LEVEL = 0.95


@dataclass(frozen=True)
class Gap:
    """By how much the larger of two neighbours is ahead at equal images per parameter, the mean over `range`.

    `gain` and its 95% `interval`: of the loss, 0.01 being 1%; corrected for the number of pairs.
    """

    smaller: str
    larger: str
    gain: float
    interval: tuple[float, float]
    range: tuple[float, float]

    @property
    def verdict(self) -> str:
        low, high = self.interval
        if low > -STABLE and high < STABLE:
            return f"within {STABLE:.0%} of one curve"
        return "off one curve" if low > 0 or high < 0 else "undecided"

    @property
    def sentence(self) -> str:
        low, high = self.interval
        return f"{self.larger} beside {self.smaller} {self.gain:+.1%} ({low:+.1%} to {high:+.1%}), {self.verdict}"


@dataclass(frozen=True, eq=False)
class PerParameter:
    """`law`: the best of those tried, over images per parameter. `one_curve`: whether the law of that alone predicts
    what was held out within 5% as well. `gaps`: between neighbours that share some range.
    """

    law: Law
    one_curve: bool
    gaps: tuple[Gap, ...]

    @property
    def sentence(self) -> str:
        alone, best = self.law.rivals[ALONE], min(self.law.rivals.values())
        held = "holds" if self.one_curve else "does not hold"
        found = [
            self.law.sentence.removesuffix("."),
            f"one curve for all sizes {held} (its error on what was held out {number(alone, 2)}, the best "
            f"{number(best, 2)})",
        ]
        gaps = "; ".join(gap.sentence for gap in self.gaps)
        found.append(f"at equal {X}: {gaps}" if gaps else f"no two neighbours share a range of {X}")
        return "; ".join(found) + "."

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        gaps = [asdict(gap) | {"verdict": gap.verdict} for gap in self.gaps]
        return {"law": self.law.as_dict(), "one_curve": self.one_curve, "gaps": gaps, "sentence": self.sentence}


def per_parameter(sheet: Sheet, errors: Errors) -> PerParameter:
    """The law over images per parameter, of the cells of the training curve.

    Raises `Missing` or `SpecError` for fewer than three members with three checkpoints.
    """
    curves = curve_cells(sheet)
    points, seeds = points_of(sheet, errors, [cell for cells in curves.values() for cell in cells], "images_seen")
    points = replace(points, x=points.x / points.size)
    found = law(points, f"{metric_name(sheet.quality)} by {X}", X, seeds, FORMS, each_last=True)
    alone = found.rivals[ALONE] <= 1.05 * min(found.rivals.values())
    return PerParameter(found, alone, _gaps(sheet, errors, curves))


def _gaps(sheet: Sheet, errors: Errors, curves: dict[str, list[int]]) -> tuple[Gap, ...]:
    pairs, gains = [], []
    for smaller, larger in neighbours(list(curves)):
        small, large = _curve(sheet, curves[smaller]), _curve(sheet, curves[larger])
        low, high = max(small[0][0], large[0][0]), min(small[0][-1], large[0][-1])
        if high > low:
            pairs.append((smaller, larger, (float(low), float(high))))
            gains.append(mean([at_cost(*small, x) - at_cost(*large, x) for x in np.geomspace(low, high, PLACES)]))
    if not pairs:
        return ()
    found = errors.estimates(gains)
    tail = 1 - (1 - LEVEL) / 2 / len(pairs)
    half = t_quantile(tail, found.dof) * np.nan_to_num(found.stderr, nan=np.inf)
    return tuple(
        Gap(smaller, larger, float(value), (float(value - by), float(value + by)), shared)
        for (smaller, larger, shared), value, by in zip(pairs, found.value, half, strict=True)
    )


def _curve(sheet: Sheet, cells: list[int]) -> tuple[np.ndarray, list[Quantity]]:
    """Images per parameter, rising, and losses there."""
    rows = [sheet.row(cell) for cell in cells]
    if len(rows) < 2:
        raise Missing("two checkpoints of every member")
    x = np.array([row["images_seen"] / row["params"] for row in rows], float)
    return x, [sheet.loss(cell) for cell in cells]
