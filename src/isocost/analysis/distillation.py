"""What distillation gains: students beside what they were, at equal steps, at equal cost, and as a speed-up.

Cells are those of the best guidance, chosen on the selection half; differences are of the report half, paired.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isocost.analysis.cells import Z95, Cells
from isocost.analysis.differences import Influence, comparer
from isocost.analysis.frames import DataFrame, Series
from isocost.analysis.words import number
from isocost.specs import DISTILLED

STEPS = 4  # at which the paper compares students (arXiv 2404.01367, Fig. 13)


@dataclass(frozen=True)
class Gain:
    """A student's cell beside another one. `gain`: by how much the student is better, with its 95% `half_width`."""

    member: str
    student: dict[str, Any]
    other: dict[str, Any]
    gain: float
    half_width: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `ties`."""
        sure = abs(self.gain) > self.half_width
        return ("better" if self.gain > 0 else "worse") if sure else "ties"


@dataclass(frozen=True)
class SpeedUp:
    """Undistilled step counts that a student of `steps` ties with, fewest first; `sentence` says what that means."""

    member: str
    steps: int
    ties: tuple[int, ...]
    sentence: str

    @property
    def factors(self) -> tuple[float, float] | None:
        """From the fewest to the most of them, over the student's own; None where it ties with none."""
        return (self.ties[0] / self.steps, self.ties[-1] / self.steps) if self.ties else None


def students(cells: Cells) -> DataFrame:
    """Cells of distilled members' last checkpoints, one a member and number of steps: by the best sampler."""
    rows = cells.plain[cells.plain["objective"].isin(DISTILLED)]
    rows = rows[rows["images_seen"] == rows.groupby("member")["images_seen"].transform("max")]
    return _one_each(rows, cells)


def undistilled(cells: Cells) -> DataFrame:
    """Cells of what those members were."""
    rows = cells.plain[~cells.plain["objective"].isin(DISTILLED)]
    return _one_each(rows[rows["member"].isin(students(cells)["member"])], cells)


def _one_each(rows: DataFrame, cells: Cells) -> DataFrame:
    ordered = rows.assign(loss=cells.sign * rows["selection_value"]).sort_values("loss", kind="stable")
    return ordered.drop_duplicates(["member", "steps"]).sort_values(["params", "width", "steps"]).drop(columns="loss")


def gains(cells: Cells, influence: Influence | None = None) -> list[Gain]:
    """Each student over what it was at as many steps, smallest member first."""
    compare, before, found = comparer(influence), undistilled(cells), []
    for _, row in students(cells).iterrows():
        same = before[(before["member"] == row["member"]) & (before["steps"] == row["steps"])]
        found += _compared(row, same, cells, compare)
    return found


def at_equal_cost(cells: Cells, influence: Influence | None = None) -> list[Gain]:
    """Each student of 4 steps (or the nearest to it) over the best undistilled cell of any size that costs no more."""
    compare, before, found = comparer(influence), undistilled(cells), []
    for _, row in _few(students(cells)).iterrows():
        within = before[before["gflops_per_image"] <= row["gflops_per_image"] * (1 + 1e-9)]
        best = (cells.sign * within["selection_value"]).sort_values().index[:1]
        found += _compared(row, within.loc[best], cells, compare)
    return found


def speed_ups(cells: Cells, influence: Influence | None = None) -> list[SpeedUp]:
    """Of each student of 4 steps (or the nearest to it): which undistilled step counts it ties with."""
    compare, before, found = comparer(influence), undistilled(cells), []
    for _, row in _few(students(cells)).iterrows():
        own = before[before["member"] == row["member"]]
        each = {int(gain.other["steps"]): gain.verdict for gain in _compared(row, own, cells, compare)}
        ties = tuple(sorted(steps for steps, verdict in each.items() if verdict == "ties"))
        steps = int(row["steps"])
        found.append(SpeedUp(str(row["member"]), steps, ties, _said(str(row["member"]), steps, ties, each)))
    return found


def _few(rows: DataFrame) -> DataFrame:
    """Each member's row nearest to 4 steps."""
    away = (np.log2(rows["steps"].astype(float)) - np.log2(STEPS)).abs()
    return rows.loc[away.groupby(rows["member"], sort=False).idxmin()]


def _compared(student: Series, others: DataFrame, cells: Cells, compare: Any) -> list[Gain]:
    if others.empty:
        return []
    difference, stderr, _ = compare(student, others)
    return [
        Gain(str(student["member"]), student.to_dict(), other, float(cells.sign * one), float(Z95 * error))
        for other, one, error in zip(others.to_dict("records"), difference, stderr, strict=True)
    ]


def _said(member: str, steps: int, ties: tuple[int, ...], verdicts: dict[int, str]) -> str:
    name = f"{member} distilled, {steps} steps"
    if ties:
        low, high = (number(count / steps) for count in (ties[0], ties[-1]))
        counts = str(ties[0]) if len(ties) == 1 else f"{ties[0]} to {ties[-1]}"
        factor = f"{low} x" if low == high else f"{low} to {high} x"
        best = {"better", "worse"} & set(verdicts.values())
        rest = f"; of the others it is {' than some and '.join(sorted(best))} than some" if best else ""
        return f"{name}: ties with {counts} steps undistilled, a speed-up of {factor}{rest}."
    if set(verdicts.values()) == {"better"}:
        return (
            f"{name}: better than undistilled at any of {_listed(verdicts)} steps: no number of steps makes up for it."
        )
    if set(verdicts.values()) == {"worse"}:
        return f"{name}: worse than undistilled at any of {_listed(verdicts)} steps: no speed-up."
    better = [steps for steps, verdict in verdicts.items() if verdict == "better"]
    worse = [steps for steps, verdict in verdicts.items() if verdict == "worse"]
    return f"{name}: better than undistilled at {_listed(better)} steps, worse than at {_listed(worse)}."


def _listed(counts: Any) -> str:
    return ", ".join(map(str, sorted(counts)))
