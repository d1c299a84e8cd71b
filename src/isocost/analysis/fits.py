"""Laws: quality as a function of size and of what is spent on training or on sampling, fitted over all members at once.

A law is a sum of terms with coefficients that are not negative: `E + A N^-a + B x^-b`, with N the parameters and x the
images seen or the steps (the saturating power law of arXiv 2203.15556, eq. 2, in another quantity). Its rivals have no
floor, see only the product N x (compute), are logarithmic, or turn: they let quality fall again with many steps. The
choice is by the error on the largest member (and the largest x), which the fit never saw.

Intervals are from fits to values drawn around the fitted law with the covariance of the scores: of images by influence
values, of training seeds pooled over members; where the law misses by more than that, the covariance is widened by the
ratio (Birge, Phys. Rev. 40, 1932). They are t intervals with Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from isocost.analysis.quantity import Covariance, Errors, t_quantile
from isocost.analysis.sheet import Missing, Sheet
from isocost.analysis.words import number
from isocost.errors import SpecError

EXPONENTS = np.geomspace(0.05, 4.0, 20)
DRAWS = 200


@dataclass(frozen=True)
class Form:
    """A family of curves. `terms`: (log size, log x, exponents) -> columns [m, terms], the first free in sign where
    `floor`, all others with coefficients of at least 0. `exponents`: how many. `formula`: for people.
    """

    formula: str
    exponents: int
    terms: Callable[[np.ndarray, np.ndarray, tuple[float, ...]], np.ndarray]
    floor: bool = True


def _columns(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1)


FORMS: dict[str, Form] = {
    "constant": Form("E", 0, lambda n, x, _: _columns(np.ones_like(x))),
    "size alone": Form("E + A N^-a", 1, lambda n, x, e: _columns(np.ones_like(x), np.exp(-e[0] * n))),
    "x alone": Form("E + B x^-b", 1, lambda n, x, e: _columns(np.ones_like(x), np.exp(-e[0] * x))),
    "compute": Form("E + B (N x)^-b", 1, lambda n, x, e: _columns(np.ones_like(x), np.exp(-e[0] * (n + x)))),
    "logarithmic": Form("E - A log N - B log x", 0, lambda n, x, _: _columns(np.ones_like(x), -n, -x)),
    "power": Form("A N^-a + B x^-b", 2, lambda n, x, e: _columns(np.exp(-e[0] * n), np.exp(-e[1] * x)), floor=False),
    "saturating": Form(
        "E + A N^-a + B x^-b", 2, lambda n, x, e: _columns(np.ones_like(x), np.exp(-e[0] * n), np.exp(-e[1] * x))
    ),
    "turning": Form(
        "E + A N^-a + B x^-b + D log x",
        2,
        lambda n, x, e: _columns(np.ones_like(x), np.exp(-e[0] * n), np.exp(-e[1] * x), x),
    ),
}


@dataclass(frozen=True, eq=False)
class Points:
    """What a law is fitted to: parameters [m], x [m], values [m] (lower better), members [m], and their covariance."""

    size: np.ndarray
    x: np.ndarray
    value: np.ndarray
    member: np.ndarray
    covariance: Covariance

    def part(self, kept: np.ndarray) -> Points:
        return Points(self.size[kept], self.x[kept], self.value[kept], self.member[kept], self.covariance.part(kept))


def points_of(sheet: Sheet, errors: Errors, cells: Sequence[int], x: str) -> tuple[Points, int]:
    """Report-half values of cells, lower better, with their covariance; and how many training seeds they rest on."""
    numbers = [sheet.places[cell, sheet.quality, "report"] for cell in cells]
    scores = [sheet.scores[place] for place in numbers]
    covariance = errors.covariance(numbers)
    if not np.all(np.isfinite(covariance.matrix)):
        raise Missing("scores with errors")
    sign = np.array([np.sign(score.slope) for score in scores])
    points = Points(
        size=np.array([sheet.row(cell)["params"] for cell in cells], float),
        x=np.array([sheet.row(cell)[x] for cell in cells], float),
        value=sign * np.array([np.mean(score.values) for score in scores]),
        member=np.array([score.member for score in scores]),
        covariance=covariance,
    )
    return points, covariance.seeds


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted form: of the data in row 0, then of draws around it. `coefficients` [1 + draws, terms], `exponents`."""

    form: str
    centre: tuple[float, float]
    coefficients: np.ndarray
    exponents: np.ndarray
    dof: float
    excess: float = 1.0

    def at(self, size: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Values [1 + draws, m]."""
        n, log_x = np.log(np.asarray(size, float)) - self.centre[0], np.log(np.asarray(x, float)) - self.centre[1]
        return np.stack([
            FORMS[self.form].terms(n, log_x, tuple(exponents)) @ coefficients
            for coefficients, exponents in zip(self.coefficients, self.exponents, strict=True)
        ])  # fmt: skip

    def interval(self, values: np.ndarray, own: np.ndarray | float = 0.0, coverage: float = 0.95):
        """(value, low, high) of what `values` [1 + draws, ...] says; `own`: variance of a new observation itself."""
        half = t_quantile((1 + coverage) / 2, np.array(self.dof)) * np.sqrt(values[1:].var(0, ddof=1) + own)
        return values[0], values[0] - half, values[0] + half


@dataclass(frozen=True)
class HeldOut:
    """How a form predicts points that its fit never saw: root mean square error, and each point with its interval."""

    what: str
    error: float
    observed: tuple[float, ...]
    predicted: tuple[float, ...]
    intervals: tuple[tuple[float, float], ...]

    @property
    def covered(self) -> float:
        """Share of points inside their interval."""
        inside = [low <= seen <= high for seen, (low, high) in zip(self.observed, self.intervals, strict=True)]
        return float(np.mean(inside))


@dataclass(frozen=True, eq=False)
class Law:
    """The form that predicts best what was held out, fitted to all points. `rivals`: form -> held-out error."""

    name: str
    x_name: str
    fit: Fit
    points: Points
    held_out: tuple[HeldOut, ...]
    rivals: Mapping[str, float] = field(default_factory=dict)
    seeds: int = 1

    @property
    def formula(self) -> str:
        return FORMS[self.fit.form].formula

    def predict(self, size: float, x: float) -> tuple[float, float, float]:
        """(value, low, high) for a member of so many parameters at x; 95%."""
        value, low, high = self.fit.interval(self.fit.at(np.array([size]), np.array([x])))
        return float(value[0]), float(low[0]), float(high[0])

    @property
    def exponents(self) -> dict[str, tuple[float, float, float]]:
        """Letter -> (value, low, high); intervals of the logarithm, as an exponent is positive."""
        letters = "b" if self.fit.form in ("compute", "x alone") else "ab"
        logs = np.log(self.fit.exponents)
        intervals = [self.fit.interval(logs[:, place]) for place in range(logs.shape[1])]
        return {
            letters[place]: tuple(float(np.exp(value)) for value in found)  # pyright: ignore[reportReturnType]
            for place, found in enumerate(intervals)
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name, "formula": self.formula, "x": self.x_name, "exponents": self.exponents,
            "held_out": [asdict(part) | {"covered": part.covered} for part in self.held_out],
            "rivals": dict(self.rivals), "seeds": self.seeds, "sentence": self.sentence,
        }  # fmt: skip

    @property
    def sentence(self) -> str:
        found = "; ".join(
            f"{letter} = {number(value, 2)} ({number(low, 2)} to {number(high, 2)})"
            for letter, (value, low, high) in self.exponents.items()
        )
        held = "; ".join(
            f"held out, {part.what}: off by {number(part.error, 2)}, "
            f"{part.covered:.0%} of {len(part.observed)} in their intervals"
            for part in self.held_out
        )
        seeds = "one training seed" if self.seeds == 1 else f"{self.seeds} training seeds"
        beside = f" (x: {self.x_name})" if "x" in self.formula else ""
        return f"{self.name}: {self.formula}{beside}" + (f", {found}" if found else "") + f"; {held}; {seeds}."


def law(
    points: Points,
    name: str,
    x_name: str,
    seeds: int = 1,
    forms: Sequence[str] = tuple(FORMS),
    each_last: bool = False,
) -> Law:
    """Choose among forms by what they make of the largest member, and of the largest x, unseen; then fit all points.

    A form that predicts within 5% as well as the best and has fewer terms goes first. `each_last`: the largest x of
    each member is held out, where members share none. Raises `SpecError` for fewer than three members or three values
    of x.
    """
    if len(set(points.member)) < 3 or len(set(points.x)) < 3:
        raise SpecError(
            f"{name}: a law needs three members and three values of {x_name} or more; found "
            f"{len(set(points.member))} and {len(set(points.x))}."
        )
    splits = _splits(points, x_name, each_last)
    tried = {form: tuple(_predicted(form, *split) for split in splits) for form in forms}
    error = {form: float(np.sqrt(np.mean([part.error**2 for part in parts]))) for form, parts in tried.items()}
    best = next(form for form in forms if error[form] <= 1.05 * min(error.values()))
    return Law(name, x_name, fit(points, best), points, tried[best], error, seeds)


def _splits(points: Points, x_name: str, each_last: bool) -> list[tuple[str, Points, Points]]:
    """What is held out, the points that a fit sees then, and those that it does not."""
    largest = points.size == points.size.max()
    last, what = points.x == points.x.max(), f"{x_name} {number(float(points.x.max()))}"
    if each_last:
        last = np.array([x == points.x[points.member == m].max() for m, x in zip(points.member, points.x, strict=True)])
        what = f"the most {x_name} of each member"
    name = str(points.member[np.argmax(points.size)])
    parts = [(name, largest), (what, last)]
    return [(what, points.part(~held), points.part(held)) for what, held in parts]


def _predicted(form: str, what: str, known: Points, unseen: Points) -> HeldOut:
    seen = fit(known, form)
    own = seen.excess * np.diag(unseen.covariance.matrix)
    value, low, high = seen.interval(seen.at(unseen.size, unseen.x), own)
    error = float(np.sqrt(np.mean((value - unseen.value) ** 2)))
    return HeldOut(what, error, tuple(unseen.value), tuple(value), tuple(zip(low.tolist(), high.tolist(), strict=True)))


# --- fitting ---


def fit(points: Points, form: str, draws: int = DRAWS) -> Fit:
    """Least squares of relative errors, and the same for draws around what was found."""
    n, x = np.log(points.size), np.log(points.x)
    centre = float(n.mean()), float(x.mean())
    weights = 1 / np.maximum(np.abs(points.value), 1e-3 * np.abs(points.value).max())
    choices = list(itertools.product(EXPONENTS, repeat=FORMS[form].exponents))
    tried = np.array(choices, float).reshape(len(choices), FORMS[form].exponents)
    terms = [FORMS[form].terms(n - centre[0], x - centre[1], tuple(exponents)) for exponents in tried]
    designs = np.stack(terms) * weights[:, None]
    # In the few directions that any design spans: what lies beside them is as far from all fits.
    span = _span(designs)
    reduced = span.T @ designs
    found, place = _best(reduced, (points.value[None] * weights) @ span, FORMS[form].floor)
    fitted = designs[place[0]] @ found[0] / weights
    scatter = points.covariance.matrix
    excess = _excess(points, fitted, scatter, found.shape[1] + FORMS[form].exponents)
    noise = np.sqrt(excess) * np.random.default_rng(0).standard_normal((draws, len(x))) @ points.covariance.root.T
    drawn, places = _best(reduced, ((fitted + noise) * weights) @ span, FORMS[form].floor)
    exponents = tried[np.r_[place, places]]
    return Fit(form, centre, np.concatenate([found, drawn]), exponents, points.covariance.dof, excess)


def _span(designs: np.ndarray) -> np.ndarray:
    """Orthonormal columns [m, rank] that span those of all designs [designs, m, terms]."""
    columns = np.unique(np.hstack(list(designs)), axis=1)  # many designs share theirs
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return vectors[:, sizes > 1e-13 * sizes.max()]


def _best(designs: np.ndarray, targets: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each target [r, m]: the allowed coefficients [r, terms] that fit best, and the number of their design."""
    rows, terms = len(targets), designs.shape[2]
    best, coefficients, chosen = np.full(rows, np.inf), np.zeros((rows, terms)), np.zeros(rows, int)
    for kept in _subsets(terms, floor):
        part = designs[:, :, kept]
        solved = np.linalg.pinv(part) @ targets.T  # [designs, kept, r]
        squares = np.sum((part @ solved - targets.T) ** 2, axis=1)
        allowed = np.all(solved[:, 1:] >= 0, axis=1) if floor else np.all(solved >= 0, axis=1)
        squares = np.where(allowed, squares, np.inf)
        place = squares.argmin(0)
        least = squares[place, np.arange(rows)]
        better = least < best * (1 - 1e-9)
        best[better], chosen[better] = least[better], place[better]
        coefficients[better] = 0.0
        coefficients[np.ix_(np.flatnonzero(better), np.array(kept))] = solved[place, :, np.arange(rows)][better]
    return coefficients, chosen


def _subsets(terms: int, floor: bool) -> list[list[int]]:
    """Terms that may be kept, most first; a floor always is."""
    free = list(range(1, terms)) if floor else list(range(terms))
    kept = [list(part) for size in range(len(free), -1, -1) for part in itertools.combinations(free, size)]
    return [[0, *part] if floor else part for part in kept if part or floor]


def _excess(points: Points, fitted: np.ndarray, covariance: np.ndarray, parameters: int) -> float:
    """By how much the squares of the residuals exceed what the covariance lets expect; at least 1."""
    freedom = len(fitted) - parameters
    expected = np.trace(covariance) - np.sum(covariance) / len(fitted)  # of residuals about their common level
    if freedom < 1 or expected <= 0:
        return 1.0
    return max(1.0, float(np.sum((points.value - fitted) ** 2) / (expected * freedom / len(fitted))))
