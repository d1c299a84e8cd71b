"""Laws of a results table: over training, over sampling, over images per parameter, of the best size and steps for a
budget, crossovers, best-of-n at equal cost, and how much of the variance is whose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from isocost.analysis.best_of import BestOf, best_of
from isocost.analysis.cells import COSTS
from isocost.analysis.claims.pretraining import curve_cells
from isocost.analysis.differences import Influence
from isocost.analysis.fits import FORMS, Law, law, points_of
from isocost.analysis.frames import DataFrame
from isocost.analysis.optima import BestGuidance, CrossoverBudget, best_guidance_intervals, crossover_budgets
from isocost.analysis.per_parameter import PerParameter, per_parameter
from isocost.analysis.quantity import Errors
from isocost.analysis.sheet import Missing, Sheet
from isocost.analysis.variance import Variance, components
from isocost.analysis.words import metric_name, number
from isocost.errors import SpecError

SIZES = 60  # tried between the smallest and the largest member
BUDGETS = 24
FORMS_OF = {
    "training": [form for form in FORMS if form not in ("turning", "x alone")],
    "sampling": [form for form in FORMS if form != "x alone"],
}


@dataclass(frozen=True)
class Allocation:
    """The best size and steps for a budget, by the law of sampling: parameters ~ budget^`size_exponent`.

    Exponents are (value, low, high), over budgets at which a size between the smallest and the largest is best; None
    where an end is always best. `budgets`, `sizes` and `steps`: the law itself, over the costs that were sampled.
    """

    unit: str
    size_exponent: tuple[float, float, float] | None
    steps_exponent: tuple[float, float, float] | None
    budgets: tuple[float, ...]
    sizes: tuple[float, ...]
    steps: tuple[float, ...]
    sentence: str


@dataclass(frozen=True)
class Laws:
    """What could be fitted; `missing` says of the rest what it needs."""

    metric: str
    training: Law | None
    sampling: Law | None
    allocation: Allocation | None
    crossovers: tuple[CrossoverBudget, ...]
    guidance: tuple[BestGuidance, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    per_parameter: PerParameter | None = None
    best_of: BestOf | None = None
    variance: Variance | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        laws = (self.training, self.sampling, self.per_parameter, self.allocation)
        found = [law.sentence for law in laws if law]
        found += [f"{cross.unit}: {cross.sentence}" for cross in self.crossovers]
        found += self.best_of.sentences if self.best_of else ()
        found += [self.variance.sentence] if self.variance else []
        return (*found, *self.missing, *self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "metric": self.metric,
            "laws": [law.as_dict() for law in (self.training, self.sampling) if law],
            "allocation": asdict(self.allocation) if self.allocation else None,
            "crossovers": [asdict(cross) for cross in self.crossovers],
            "guidance": [asdict(best) for best in self.guidance],
            "per_parameter": self.per_parameter.as_dict() if self.per_parameter else None,
            "best_of": self.best_of.as_dict() if self.best_of else None,
            "variance": self.variance.as_dict() if self.variance else None,
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def laws(
    table: DataFrame,
    influence: Influence | None = None,
    metric: str | None = None,
    prompts: int | None = None,
    axes: bool = False,
) -> Laws:
    """Fit what a table allows. `axes`: also best-of-n and, with `prompts` as there, variance by source.

    Raises `SpecError` for an empty table, an unknown metric, and mixed protocols.
    """
    sheet = Sheet.of(table, metric)
    errors = Errors(sheet.scores, influence)
    missing: list[str] = []

    def attempt(what: str, build: Callable[[], Any]) -> Any:
        """What `build` gives; None where the table lacks what it needs, which is noted."""
        try:
            return build()
        except (Missing, SpecError) as error:
            missing.append(f"{what}: needs {error}" if isinstance(error, Missing) else str(error))
            return None

    training = attempt("law of training", lambda: training_law(sheet, errors))
    sampling = attempt("law of sampling", lambda: sampling_law(sheet, errors))
    ratio = attempt("law of images per parameter", lambda: per_parameter(sheet, errors))
    allocation = attempt("best size and steps", lambda: best_allocation(sampling, sheet)) if sampling else None
    crossovers: list[CrossoverBudget] = []
    for unit in COSTS:
        crossovers += (
            attempt(f"crossovers in {unit}", lambda unit=unit: crossover_budgets(replace(sheet, unit=unit), errors))
            or []
        )
    guidance = attempt("best guidance", lambda: best_guidance_intervals(sheet, errors)) or []
    chosen = attempt("best of n", lambda: best_of(table, sheet.quality, influence)) if axes else None
    sources = attempt("variance by source", lambda: components(sheet, influence, prompts)) if axes else None
    one_seed = all(len(score.seeds) == 1 for score in sheet.scores)
    notes = [
        "One training seed: intervals are of these checkpoints, and leave out what another training would give."
    ] * one_seed
    return Laws(
        sheet.quality, training, sampling, allocation, tuple(crossovers), tuple(guidance), tuple(missing), tuple(notes),
        ratio, chosen, sources,
    )  # fmt: skip


def training_law(sheet: Sheet, errors: Errors) -> Law:
    """Quality against parameters and images seen, of the cells of the training curve."""
    points, seeds = points_of(
        sheet, errors, [cell for cells in curve_cells(sheet).values() for cell in cells], "images_seen"
    )
    return law(points, f"{metric_name(sheet.quality)} by training", "images seen", seeds, FORMS_OF["training"])


def sampling_law(sheet: Sheet, errors: Errors) -> Law:
    """Quality against parameters and steps, of final checkpoints at their best guidance."""
    cells = sheet.sampled(sheet.final()).drop_duplicates(["member", "steps"])
    points, seeds = points_of(sheet, errors, [int(cell) for cell in cells.index], "steps")
    return law(points, f"{metric_name(sheet.quality)} by sampling", "steps", seeds, FORMS_OF["sampling"])


def best_allocation(found: Law, sheet: Sheet) -> Allocation:
    """The size and the steps that the law of sampling makes the best of each budget.

    A step's cost is taken as a power of the parameters, fitted over members; steps as any number from 1 on. Raises
    `Missing` where the law does not depend on both.
    """
    if found.fit.form in ("constant", "size alone"):
        raise Missing(f"a law in which steps count; {found.formula} predicted best")
    cells = sheet.sampled(sheet.final())
    cost_a_step = cells["paper_cost"].to_numpy(float) / cells["steps"].to_numpy(float)
    log_size = np.log(cells["params"].to_numpy(float))
    power, level = np.polyfit(log_size, np.log(cost_a_step), 1)
    sizes = np.geomspace(np.exp(log_size.min()), np.exp(log_size.max()), SIZES)
    each = np.exp(level + power * np.log(sizes))
    budgets = np.geomspace(each[0] * 2, cells["paper_cost"].max(), BUDGETS)
    steps = budgets[:, None] / each
    values = found.fit.at(np.broadcast_to(sizes, steps.shape).ravel(), np.maximum(steps, 1.0).ravel())
    values = np.where(steps.ravel() >= 1, values, np.inf).reshape(-1, *steps.shape)
    best = values.argmin(-1)  # [1 + draws, budgets]
    chosen = sizes[best]
    exponents = [
        _slope(np.log(budgets), np.log(row), inside)
        for row, inside in zip(chosen, (best > 0) & (best < SIZES - 1), strict=True)
    ]
    inside = np.array([exponent is not None for exponent in exponents])
    size_exponent = steps_exponent = None
    if exponents[0] is not None and inside.mean() > 0.5:
        known = np.array([exponent for exponent in exponents if exponent is not None])
        value, low, high = (float(part) for part in found.fit.interval(known))
        size_exponent = (value, low, high)
        steps_exponent = (1 - power * value, *sorted((1 - power * low, 1 - power * high)))
    at = steps[np.arange(BUDGETS), best[0]]
    sentence = _allocation_sentence(size_exponent, steps_exponent, best[0], budgets)
    return Allocation("paper", size_exponent, steps_exponent, tuple(budgets), tuple(chosen[0]), tuple(at), sentence)


def _slope(x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> float | None:
    """Of y over x where neither end was the best; None for fewer than three such places."""
    return float(np.polyfit(x[inside], y[inside], 1)[0]) if inside.sum() >= 3 else None


def _allocation_sentence(size, steps, best: np.ndarray, budgets: np.ndarray) -> str:
    if size is not None:
        return (
            f"best for a budget C: parameters ~ C^{number(size[0], 2)} ({number(size[1], 2)} to {number(size[2], 2)}), "
            f"steps ~ C^{number(steps[0], 2)} ({number(steps[1], 2)} to {number(steps[2], 2)})."
        )
    share_large = float(np.mean(best == SIZES - 1))
    if share_large > 0.5:
        which = "the largest member that a step is affordable of"
    elif float(np.mean(best == 0)) > 0.5:
        which = "the smallest member"
    else:
        which = "no size between the smallest and the largest over three budgets or more"
    return f"best for a budget, from {number(budgets[0])} to {number(budgets[-1])}: {which}; no exponent can be given."
