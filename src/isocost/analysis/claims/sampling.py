"""Claims on guidance, sampling cost and samplers (arXiv 2404.01367, Fig. 7 to 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from isocost.analysis.claims.hypotheses import Hypothesis, Part
from isocost.analysis.claims.pretraining import norm_cost
from isocost.analysis.frames import DataFrame
from isocost.analysis.quantity import Quantity, mean
from isocost.analysis.sheet import Missing, Sheet, common_steps, members, neighbours

SAME = 0.02  # a difference of the loss, 2%, that "no difference" allows
FEW, UP_TO, MANY = 10, 20, 50  # steps: few; the bound of DPM-Solver++ and of "small wins" in super-resolution; many
SUPERRES = "superres"
SMALL, SMALL_COST = 0.13, 3.0  # 83M, by its norm. cost, and the cost at which it is said to be best


# --- guidance ---


def guidance_moves_fd_more(sheet: Sheet) -> Hypothesis:
    """C11: between the rates that are best and worst by FD (of the selection half), FD moves by more than CLIP does."""
    cells, clip = sheet.sampled(sheet.final(guidance="all")), sheet.metric("clip")
    steps = max(common_steps(cells, most=MANY))
    parts = []
    for member in members(cells):
        rates = _rates(sheet, cells.index[(cells["member"] == member) & (cells["steps"] == steps)])
        if len(rates) < 2:
            raise Missing(f"two guidance rates or more at {steps} steps of {member}")
        moved = [_spread(sheet, list(rates.values()), metric) for metric in (sheet.quality, clip)]
        parts.append(Part(member, moved[0] - moved[1]))
    return Hypothesis(tuple(parts))


def _spread(sheet: Sheet, cells: Sequence[int], metric: str) -> Quantity:
    """Worst less best rate by a metric: chosen on the selection half, so the report half may have it below 0."""
    ordered = sorted(cells, key=lambda cell: sheet.seen(cell, metric))
    return sheet.loss(ordered[-1], metric) - sheet.loss(ordered[0], metric)


@dataclass(frozen=True)
class SameBest:
    """Is one rate the best of all groups? `facets`: of each facet, of each group in it, rate -> number of the part that
    says by how much it is worse than the group's own best (None for that itself). `common`: numbers of the parts that
    say by how much a facet's common rate is worse than each other rate, in every group.
    """

    facets: tuple[tuple[dict[float, int | None], ...], ...]
    common: tuple[int, ...]

    def differ(self, worse: np.ndarray) -> np.ndarray:
        """p of "one rate is best in all groups", [...]: rejected where every rate is worse somewhere."""
        each = [self._facet(groups, worse) for groups in self.facets]
        return np.minimum(len(each) * np.min(each, axis=0), 1.0)

    def _facet(self, groups: tuple[dict[float, int | None], ...], worse: np.ndarray) -> np.ndarray:
        ones = np.ones(worse.shape[:-1])
        of_rate = [
            np.min([ones if (part := group[rate]) is None else worse[..., part] for group in groups], axis=0)
            for rate in groups[0]
        ]
        return np.minimum(len(groups) * np.max(of_rate, axis=0), 1.0)

    def same(self, within: np.ndarray) -> np.ndarray:
        """p of "somewhere another rate is better than the common one by the margin", [...]."""
        return within[..., list(self.common)].max(-1)


def best_guidance_differs(sheet: Sheet) -> Hypothesis:
    """C12: no rate is best at every size, of some step count, nor at every step count, of some size.

    A rate is ruled out where it is worse than the group's own best rate (of the selection half); the optima differ
    where every rate is ruled out in some group. Refuted: over sizes or over steps, no rate is 2% better anywhere than a
    common one.
    """
    cells = sheet.sampled(sheet.final(guidance="all"))
    parts: list[Part] = []
    by_size, by_steps = (_same_best(sheet, cells, across, parts) for across in ("member", "steps"))

    def rule(holds: np.ndarray, fails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        supports = np.maximum(by_size.differ(holds), by_steps.differ(holds))
        refutes = np.minimum(2 * np.minimum(by_size.same(holds), by_steps.same(holds)), 1.0)
        return supports, refutes

    return Hypothesis(tuple(parts), rule, margin="2%", speak=by_size.common + by_steps.common)


def _same_best(sheet: Sheet, cells: DataFrame, across: str, parts: list[Part]) -> SameBest:
    """Groups of a facet differ in `across` alone; what their rates lack of one another is appended to `parts`."""
    facets, common = [], []
    for _, facet in cells.groupby("steps" if across == "member" else "member", sort=False):
        found = [_rates(sheet, group.index) for _, group in facet.groupby(across, sort=False)]
        found = [rates for rates in found if len(rates) > 1]
        shared = sorted(set.intersection(*map(set, found))) if len(found) > 1 else []
        if len(shared) < 2:
            continue
        seen = np.array([[sheet.seen(rates[rate], sheet.quality) for rate in shared] for rates in found])
        for_all = shared[int(seen.mean(0).argmin())]
        groups = []
        for rates, losses in zip(found, seen, strict=True):
            own = shared[int(losses.argmin())]
            lacks = {rate: Part("", sheet.loss(rates[rate]) - sheet.loss(rates[own])) for rate in shared if rate != own}
            groups.append({rate: _number(lacks[rate], parts) if rate in lacks else None for rate in shared})
            common += [_number(_behind(sheet, rates, for_all, rate), parts) for rate in shared if rate != for_all]
        facets.append(tuple(groups))
    if not facets:
        raise Missing(f"two guidance rates or more at two {'members' if across == 'member' else 'step counts'} or more")
    return SameBest(tuple(facets), tuple(common))


def _behind(sheet: Sheet, rates: dict[float, int], for_all: float, rate: float) -> Part:
    """The claim's opposite: the rate for all is not 2% worse than another."""
    row = sheet.row(rates[rate])
    name = f"{row['member']} at {int(row['steps'])} steps: guidance {for_all:g}, as for all, behind {rate:g}"
    return Part(name, sheet.loss(rates[for_all]) - sheet.loss(rates[rate]), low=-np.inf, high=SAME)


def _number(part: Part, parts: list[Part]) -> int:
    parts.append(part)
    return len(parts) - 1


def _rates(sheet: Sheet, cells: Iterable[int]) -> dict[float, int]:
    """Guidance scale -> cell, of the cells that have both halves."""
    whole = [
        int(cell) for cell in cells if sheet.has(cell, sheet.quality) and np.isfinite(sheet.seen(cell, sheet.quality))
    ]
    return {float(sheet.row(cell)["guidance_scale"]): cell for cell in whole}


# --- cost ---


def smaller_wins_when_tight(sheet: Sheet) -> Hypothesis:
    """C13: mean over neighbours; see `_smaller_wins`."""
    return Hypothesis((_smaller_wins(sheet, _costs(sheet.sampled(sheet.final()))),))


def _costs(cells: DataFrame) -> DataFrame:
    """The cells, where there is something to trade. Raises `Missing` for a single step count."""
    if cells["steps"].nunique() < 2:
        raise Missing("cells at two step counts or more")
    return cells


def _smaller_wins(sheet: Sheet, cells: DataFrame, name: str = "the smaller of two neighbours") -> Part:
    """At the cost of the larger's cheapest cell: the smaller's best of the same cost over the larger's, on average."""
    gains = []
    for smaller, larger in neighbours(members(cells)):
        small, large = (cells[cells["member"] == member] for member in (smaller, larger))
        budget = min(sheet.cost(cell) for cell in large.index)
        gains.append(_difference(sheet, large, small, budget))
    return Part(name, mean(_there(gains, "a smaller member that costs no more than the larger one's cheapest cell")))


def _difference(sheet: Sheet, one: DataFrame, other: DataFrame, budget: float) -> Quantity | None:
    """What the best of `other` has over the best of `one` within a budget; None where either can't be afforded."""
    cells = [sheet.within(cells, budget) for cells in (one, other)]
    if None in cells:
        return None
    return sheet.loss(cells[0]) - sheet.loss(cells[1])  # pyright: ignore[reportArgumentType]


def _there(found: Sequence[Quantity | None], what: str) -> list[Quantity]:
    quantities = [quantity for quantity in found if quantity is not None]
    if not quantities:
        raise Missing(what)
    return quantities


def small_member_is_best(sheet: Sheet) -> Hypothesis:
    """C13b: at a cost of 3 the member of norm. cost 0.13 (83M) beats every other that can be afforded."""
    cells = sheet.sampled(sheet.final())
    small = stand_in(sheet, cells, SMALL)
    own = cells[cells["member"] == small]
    parts = []
    for member in members(cells):
        other = _difference(sheet, cells[cells["member"] == member], own, SMALL_COST) if member != small else None
        if other is not None:
            parts.append(Part(f"{small} over {member}", other))
    if not parts:
        raise Missing("another member that a cost of 3 affords")
    return Hypothesis(tuple(parts), notes=(f"83M is {small} here, the member nearest to its cost",))


def larger_overtakes(sheet: Sheet) -> Hypothesis:
    """C14: with no limit on cost the larger of two neighbours has the better best cell, on average."""
    return Hypothesis((_larger_wins(sheet, _costs(sheet.sampled(sheet.final()))),))


def _larger_wins(sheet: Sheet, cells: DataFrame) -> Part:
    gains = []
    for smaller, larger in neighbours(members(cells)):
        small, large = (cells[cells["member"] == member] for member in (smaller, larger))
        gains.append(_difference(sheet, small, large, np.inf))
    return Part("the larger of two neighbours", mean(_there(gains, "two members")))


def under_other_samplers(sheet: Sheet) -> Hypothesis:
    """C15: C13 under DDPM and under DPM-Solver++ by itself."""
    cells = sheet.final()
    parts = [
        _smaller_wins(sheet, _costs(sheet.sampled(cells, sampler)), f"the smaller neighbour under {sampler}")
        for sampler in ("ddpm", "dpmpp_2m")
    ]
    return Hypothesis(tuple(parts))


# --- samplers and steps ---


def ddpm_is_worse(sheet: Sheet) -> Hypothesis:
    """C16: DDIM over DDPM, mean over members and the step counts up to 10 that both have."""
    return Hypothesis((_over(sheet, "ddim", "ddpm", FEW),))


def dpm_solver_is_better(sheet: Sheet) -> Hypothesis:
    """C17: DPM-Solver++ over DDIM, mean over members and the step counts up to 20 that both have."""
    return Hypothesis((_over(sheet, "dpmpp_2m", "ddim", UP_TO, least=2),))


def _over(sheet: Sheet, better: str, worse: str, most: int, least: int = 1) -> Part:
    """What one sampler has over another; from `least` steps, as at one step DPM-Solver++ is DDIM."""
    cells = sheet.final()
    good, bad = (_by_plan(sheet.sampled(cells, sampler), least, most) for sampler in (better, worse))
    gains = [sheet.loss(bad[plan]) - sheet.loss(good[plan]) for plan in good if plan in bad]
    if not gains:
        raise Missing(f"step counts up to {most} that {better} and {worse} share")
    return Part(f"{better} over {worse}, up to {most} steps", mean(gains))


def _by_plan(cells: DataFrame, least: int, most: int) -> dict[tuple[str, int], int]:
    cells = cells[(cells["steps"] >= least) & (cells["steps"] <= most)].drop_duplicates(["member", "steps"])
    return {
        (member, int(steps)): int(cell)
        for cell, member, steps in zip(cells.index, cells["member"], cells["steps"], strict=True)
    }


def many_steps_buy_nothing(sheet: Sheet) -> Hypothesis:
    """C18: no member's best cell beyond 50 steps is 2% better than its best up to 50."""
    cells = sheet.sampled(sheet.final())
    parts = []
    for member in members(cells):
        own = cells[cells["member"] == member]
        more = sheet.within(own[own["steps"] > MANY], np.inf)
        fewer = sheet.within(own[own["steps"] <= MANY], np.inf)
        if more is not None and fewer is not None:
            parts.append(Part(member, sheet.loss(fewer) - sheet.loss(more), low=-np.inf, high=SAME))
    if not parts:
        raise Missing(f"cells of more than {MANY} steps")
    return Hypothesis(tuple(parts), margin="a gain of 2%")


# --- super-resolution ---


def small_wins_in_superres(sheet: Sheet) -> Hypothesis:
    """C19: C13 in super-resolution, up to 20 steps."""
    cells = sheet.sampled(sheet.final(SUPERRES))
    return Hypothesis((_smaller_wins(sheet, cells[cells["steps"] <= UP_TO]),))


def large_wins_in_superres(sheet: Sheet) -> Hypothesis:
    """C20: at over 20 steps the larger of two neighbours has the better cell within any cost, on average."""
    cells = sheet.sampled(sheet.final(SUPERRES))
    many = cells[cells["steps"] > UP_TO]
    if many.empty:
        raise Missing(f"cells of objective {SUPERRES} at more than {UP_TO} steps")
    return Hypothesis((_larger_wins(sheet, many),))


def gaps_shrink(sheet: Sheet) -> Hypothesis:
    """C20b: the smallest and the largest member differ by less at the most steps than at the fewest over 20.

    Which of the two is ahead, at either, is taken from the selection half.
    """
    cells = sheet.sampled(sheet.final(SUPERRES))
    steps = common_steps(cells, least=UP_TO)
    if len(steps) < 2:
        raise Missing(f"two step counts from {UP_TO} that all members share")
    gaps = [_gap(sheet, list(sheet.one_each(cells, count).values())) for count in (steps[0], steps[-1])]
    return Hypothesis((Part(f"the gap at {steps[0]} less that at {steps[-1]} steps", gaps[0] - gaps[1]),))


def _gap(sheet: Sheet, cells: list[int]) -> Quantity:
    ends = cells[0], cells[-1]
    seen = sheet.seen(ends[0], sheet.quality) - sheet.seen(ends[1], sheet.quality)
    return (1.0 if seen >= 0 else -1.0) * (sheet.loss(ends[0]) - sheet.loss(ends[1]))


# --- members that the claims name ---


def stand_in(sheet: Sheet, cells: DataFrame, cost: float) -> str:
    """The member whose evaluation is nearest in cost to `cost` of the reference's, by ratio."""
    first = cells.drop_duplicates("member")
    distance: Callable[[int], float] = lambda cell: abs(np.log(norm_cost(sheet, cell) / cost))  # noqa: E731
    return str(first.at[min(first.index, key=distance), "member"])
