"""Claims on training compute and on size (arXiv 2404.01367, Table 1, Fig. 1 and 3)."""

from __future__ import annotations

import numpy as np

from isocost.analysis.claims.hypotheses import Hypothesis, Part
from isocost.analysis.frames import DataFrame
from isocost.analysis.quantity import Quantity, weighted
from isocost.analysis.sheet import PRETRAINED, Missing, Sheet, members, neighbours

STABLE_FROM = 0.4  # share of training: 200K of the paper's 500K iterations
STABLE = 0.05  # a change of the loss, 5%, that "stable" allows
FLAT = 0.01  # a change of the CLIP score, 1%, that "flattens" allows; over all of Table 1 it rises by 2.9%
FLAT_FROM = 0.53  # 430M, by its cost beside the member of norm. cost 1


def improves_with_compute(sheet: Sheet) -> Hypothesis:
    """C1: from a member's first checkpoint to the one near 40% of training, by FD and by CLIP score, at every size."""
    curves, clip = training_curves(sheet), sheet.metric("clip")
    parts = [
        Part(f"{member} by {metric}", sheet.loss(first, metric) - sheet.loss(middle, metric))
        for member, (first, middle, _) in curves.items()
        for metric in (sheet.quality, clip)
    ]
    return Hypothesis(tuple(parts), notes=(_moderate(sheet, curves),))


def stable_after(sheet: Sheet) -> Hypothesis:
    """C2: from the checkpoint near 40% of training to the end, every member's FD changes by less than 5%."""
    curves = training_curves(sheet)
    parts = [
        Part(member, sheet.loss(middle) - sheet.loss(last), -STABLE, STABLE)
        for member, (_, middle, last) in curves.items()
    ]
    return Hypothesis(tuple(parts), margin="a change of 5%", notes=(_moderate(sheet, curves),))


def falls_with_size(sheet: Sheet) -> Hypothesis:
    """C3: every member has a lower FD than the next smaller one, at the most steps up to 50 that all share."""
    return Hypothesis(better_than_smaller(sheet, sheet.one_each(sheet.sampled(sheet.final()))))


def clip_flattens(sheet: Sheet) -> Hypothesis:
    """C3b: from 430M (0.53 of the cost of the member of cost 1) on, no member's CLIP score is 1% off that one's."""
    cells, clip = sheet.one_each(sheet.sampled(sheet.final())), sheet.metric("clip")
    large = [member for member in cells if norm_cost(sheet, cells[member]) >= FLAT_FROM * (1 - 1e-6)]
    if len(large) < 2:
        raise Missing("two members from 0.53 of the reference's cost (430M) up")
    first = sheet.loss(cells[large[0]], clip)
    parts = [
        Part(f"{member} beside {large[0]}", first - sheet.loss(cells[member], clip), -FLAT, FLAT)
        for member in large[1:]
    ]
    return Hypothesis(tuple(parts), margin="a change of 1%")


def looks_better_with_size(sheet: Sheet) -> Hypothesis:
    """C4: precision (else density), the share of images that could be real ones, rises over all but the smallest."""
    cells, metric = sheet.one_each(sheet.sampled(sheet.final())), sheet.metric("precision", "density")
    part = Part("a doubling of the size", gain_a_doubling(sheet, dict(list(cells.items())[1:]), metric))
    return Hypothesis((part,), notes=(f"visual quality is {metric} here: nobody looked",))


# --- shared ---


def training_curves(sheet: Sheet, objective: str = PRETRAINED) -> dict[str, tuple[int, int, int]]:
    """member -> its cells at the first checkpoint, at the one near 40% of training, and at the last.

    Raises `Missing` for fewer than three checkpoints or two members.
    """
    found = {}
    for member, cells in curve_cells(sheet, objective).items():
        seen = np.array([sheet.row(cell)["images_seen"] for cell in cells], float)
        middle = 1 + int(np.argmin(np.abs(np.log(seen[1:-1] / (STABLE_FROM * seen[-1])))))
        found[member] = (cells[0], cells[middle], cells[-1])
    return found


def curve_cells(sheet: Sheet, objective: str = PRETRAINED) -> dict[str, list[int]]:
    """member -> its cells by images seen, of three checkpoints or more, all by the plan that has most checkpoints.

    Raises `Missing` for fewer than two such members.
    """
    cells = sheet.trained(objective, "all")
    plan = ["sampler", "eta", "variance", "spacing", "steps", "guidance_scale"]
    several = cells.groupby([*plan, "member"], dropna=False)["images_seen"].transform("nunique")
    cells = cells[several == several.max()] if len(cells) else cells
    curves = {}
    for member in members(cells):
        own = cells[cells["member"] == member].sort_values("images_seen", kind="stable").drop_duplicates("images_seen")
        if len(own) >= 3:
            curves[member] = [int(cell) for cell in own.index]
    if len(curves) < 2:
        what = "pretraining" if objective == PRETRAINED else objective
        raise Missing(f"three scored checkpoints of {what} of two members or more", nothing=cells.empty)
    return curves


def better_than_smaller(sheet: Sheet, cells: dict[str, int], metric: str | None = None) -> tuple[Part, ...]:
    """A part for each member but the smallest: what it has over the next smaller one."""
    return tuple(
        Part(f"{larger} over {smaller}", sheet.loss(cells[smaller], metric) - sheet.loss(cells[larger], metric))
        for smaller, larger in neighbours(list(cells))
    )


def gain_a_doubling(sheet: Sheet, cells: dict[str, int], metric: str | None = None) -> Quantity:
    """By how much a doubling of the parameters lowers the loss: least squares over members.

    Raises `Missing` for fewer than three members.
    """
    if len(cells) < 3:
        raise Missing("three members or more")
    sizes = np.log2(sheet.cells.loc[list(cells.values()), "params"].to_numpy(float))
    losses = [sheet.loss(cell, metric) for cell in cells.values()]
    return -slope(sizes, losses)


def slope(x: np.ndarray, losses: list[Quantity]) -> Quantity:
    """Slope of losses over x, by least squares."""
    centred = x - x.mean()
    if not np.any(centred):
        raise Missing("members that differ")
    return weighted(losses, centred / np.sum(centred**2))


def norm_cost(sheet: Sheet, cell: int) -> float:
    """Cost of an evaluation beside that of the member of cost 1."""
    return float(sheet.row(cell)["paper_cost"] / sheet.row(cell)["steps"])


def finals(sheet: Sheet, objective: str) -> DataFrame:
    """Final cells under an objective, by DDIM or what there is."""
    return sheet.sampled(sheet.final(objective))


def _moderate(sheet: Sheet, curves: dict[str, tuple[int, int, int]]) -> str:
    first, middle, last = (sheet.row(cell)["images_seen"] for cell in next(iter(curves.values())))
    return f"checkpoints at {first / last:.0%} and {middle / last:.0%} of training, for the start and 40%"
