"""What a claim says of its quantities, as a test of both sides: what supports it, and what refutes it.

A part says that a quantity lies between two bounds. "Better" is (0, inf); "no change" and "saturates" are
(-margin, margin), two one-sided tests (Schuirmann, J. Pharmacokin. Biopharm. 15, 1987); "buys nothing" is
(-inf, margin). How parts make a claim is a rule: under `every` all must hold, so the largest p supports (an
intersection-union test, Berger, Technometrics 24, 1982: no correction) and the smallest, times their number, refutes.

A claim that is neither is inconclusive; `needed` says how many more images or training seeds would decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isocost.analysis.quantity import Estimates, Quantity, t_quantile, upper_tail

LEVEL = 0.05  # of all claims together, on either side
POWER = 0.8
PLANNED = 0.85  # what is planned for, as a plan rests on errors that a pilot only estimates
MOST = 1e4  # times the images, or seeds in all: more than that is no advice
DRAWS = 2000

Rule = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(p [..., parts] that each part does not hold by more than chance, p [..., parts] the same of its opposite) -> the p
that supports the claim and the p that refutes it, [...]."""


@dataclass(frozen=True)
class Part:
    """`low` < quantity < `high` is what the claim says; `name` says of what.

    `opposite`: a part of a claim of a difference is refuted once the quantity is below this, not only below `low`.
    """

    name: str
    quantity: Quantity
    low: float = 0.0
    high: float = np.inf
    opposite: float | None = None


def every(holds: np.ndarray, fails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All parts hold."""
    return holds.max(-1), np.minimum(fails.shape[-1] * fails.min(-1), 1.0)


def some(holds: np.ndarray, fails: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At least one part holds."""
    return np.minimum(holds.shape[-1] * holds.min(-1), 1.0), fails.max(-1)


@dataclass(frozen=True)
class Hypothesis:
    """A claim about a table. `scale`: "%" of relative differences, "x" of ratios. `margin`: of equivalence, in words.

    `notes`: what stood in for what the claim names. `strongest`: whether one part is enough, so that the strongest, not
    the weakest, speaks for the claim. `speak`: numbers of the parts that may, () for all. `of`: what scores are means
    over.
    """

    parts: tuple[Part, ...]
    rule: Rule = every
    scale: str = "%"
    margin: str = ""
    notes: tuple[str, ...] = ()
    strongest: bool = False
    speak: tuple[int, ...] = ()
    of: str = "images"

    @property
    def quantities(self) -> list[Quantity]:
        return [part.quantity for part in self.parts]

    def p_values(self, estimates: Estimates, value: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """p that supports and p that refutes, of the estimates, or of other `value` [..., parts] with their errors."""
        return self.rule(*self.of_parts(estimates, value))

    def of_parts(self, estimates: Estimates, value: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """p [..., parts] of each part and of its opposite."""
        value = estimates.value if value is None else value
        low, high, opposite, two_sided = self._bounds()
        error, dof = estimates.stderr, estimates.dof
        with np.errstate(divide="ignore", invalid="ignore"):
            holds = upper_tail((value - low) / error, dof)
            fails = upper_tail((opposite - value) / error, dof)
            if np.any(np.isfinite(high)):
                holds = np.maximum(holds, upper_tail((high - value) / error, dof))
                fails = np.minimum(fails, upper_tail((value - high) / error, dof)) * two_sided
        return holds, np.minimum(fails, 1.0)

    def _bounds(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        low, high = (np.array([getattr(part, name) for part in self.parts]) for name in ("low", "high"))
        opposite = np.array([part.low if part.opposite is None else part.opposite for part in self.parts])
        return low, high, opposite, np.where(np.isfinite(low) & np.isfinite(high), 2.0, 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm, Scand. J. Statist. 6, 1979); NaN stays NaN, and counts as a test."""
    values = np.array(p, float)
    adjusted, running = np.full(len(values), np.nan), 0.0
    for rank, place in enumerate(np.argsort(values, kind="stable")):  # NaN comes last
        if np.isfinite(values[place]):
            running = max(running, min(1.0, (len(values) - rank) * values[place]))
            adjusted[place] = running
    return adjusted.tolist()


def intervals(estimates: Estimates, coverage: float = 0.95) -> list[tuple[float, float] | None]:
    """The interval of each quantity; None without an error."""
    half = t_quantile((1 + coverage) / 2, estimates.dof) * estimates.stderr
    low, high = (estimates.value - half).tolist(), (estimates.value + half).tolist()
    known = np.isfinite(estimates.stderr).tolist()
    return [bounds if there else None for there, bounds in zip(known, zip(low, high, strict=True), strict=True)]


@dataclass(frozen=True)
class Needed:
    """What would decide a claim with a probability of `POWER` or more: in all, not on top. None: not by this alone."""

    images: int | None
    seeds: int | None


def needed(hypothesis: Hypothesis, estimates: Estimates, level: float) -> Needed:
    """Images of a cell, or seeds of a member, in all, that would decide a claim, one way or the other.

    What is true is drawn around what was found, as far as its errors let it be elsewhere, and a study of so many images
    (or seeds) around that; counted is how often it is decided at `level`. A plan that took the effect found for the
    true one would promise too much.
    """
    by_images = _least(lambda times: decided(hypothesis, estimates, level, images=times))
    several = estimates.seeds > 1 and bool(np.any(estimates.seed_variance > 0))
    by_seeds = _least(lambda times: decided(hypothesis, estimates, level, seeds=times)) if several else None
    return Needed(
        _rounded(by_images * estimates.n) if by_images else None,
        int(np.ceil(by_seeds * estimates.seeds)) if by_seeds and by_seeds * estimates.seeds <= 100 else None,
    )


def decided(
    hypothesis: Hypothesis, estimates: Estimates, level: float, images: float = 1.0, seeds: float = 1.0
) -> float:
    """The probability that so many times the images and seeds decide it."""
    rng = np.random.default_rng(0)
    parts = len(hypothesis.parts)
    draws = int(np.clip(2e5 / parts, 100, DRAWS))
    truth = estimates.value + estimates.stderr * rng.standard_normal((draws, parts))
    then = estimates.scaled(images, seeds)
    found = truth + then.stderr * rng.standard_normal((draws, parts))
    supports, refutes = hypothesis.p_values(then, found)
    return float(np.mean((supports < level) | (refutes < level)))


def _least(probability: Callable[[float], float]) -> float | None:
    """The least factor, up to `MOST`, that reaches `PLANNED`, to 3%."""
    low, high = 1.0, MOST
    if probability(high) < PLANNED:
        return None
    while high / low > 1.03:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if probability(middle) >= PLANNED else (middle, high)
    return high


def _rounded(count: float) -> int:
    """Up, to two digits."""
    unit = 10 ** max(int(np.floor(np.log10(count))) - 1, 0)
    return int(np.ceil(count / unit) * unit)
