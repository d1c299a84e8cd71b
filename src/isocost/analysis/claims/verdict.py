"""What is said of a claim: the verdict, its numbers, and the sentence that a person reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isocost.analysis.claims.hypotheses import Hypothesis, Needed, intervals
from isocost.analysis.quantity import Estimates
from isocost.analysis.words import number

SUPPORTED, REFUTED, INCONCLUSIVE, UNTESTABLE = "supported", "refuted", "inconclusive", "not testable here"
SHOWN = 3  # parts named in a sentence


@dataclass(frozen=True)
class PartOfVerdict:
    """A part's effect, in the verdict's unit, with its 95% interval, and the p of it and of its opposite."""

    name: str
    effect: float
    interval: tuple[float, float] | None
    holds: float
    fails: float


@dataclass(frozen=True)
class Verdict:
    """A claim as a table answers it.

    `verdict`: "supported", "refuted", "inconclusive" or "not testable here". `effect` with its 95% `interval`, in
    `unit`: of the part that decides, `weakest`; positive is the claim's direction, where it has one. `p_supports` and
    `p_refutes`: adjusted by Holm over all claims that could be tested. `cells`, `images` (of a cell; or what else it is
    a score `of`: subjects, pairs of captions) and `seeds`: what it rests on. `needed`: so many of either, in all, as
    would decide it. `missing`: what the table lacks. `study`: the one it rests on, or more where it is of several, or
    the one that lacks least; "" where all lack as much.
    """

    id: str
    claim: str
    verdict: str
    sentence: str
    metric: str = ""
    effect: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = "%"
    margin: str = ""
    weakest: str = ""
    p_supports: float | None = None
    p_refutes: float | None = None
    cells: int = 0
    images: int = 0
    of: str = "images"
    seeds: int = 0
    paired: bool = False
    needed: Needed | None = None
    missing: str = ""
    study: str = ""
    notes: tuple[str, ...] = ()
    parts: tuple[PartOfVerdict, ...] = ()


def parts_of(hypothesis: Hypothesis, estimates: Estimates) -> tuple[PartOfVerdict, ...]:
    holds, fails = hypothesis.of_parts(estimates)
    each = zip(
        hypothesis.parts, estimates.value.tolist(), intervals(estimates), holds.tolist(), fails.tolist(), strict=True
    )
    return tuple(
        PartOfVerdict(part.name, shown(value, hypothesis.scale), _shown_interval(bounds, hypothesis.scale), p, opposite)
        for part, value, bounds, p, opposite in each
    )


def shown(value: float, scale: str) -> float:
    """A difference of losses as percent, or as a ratio."""
    return float(np.exp(value)) if scale == "x" else 100 * value


def _shown_interval(bounds: tuple[float, float] | None, scale: str) -> tuple[float, float] | None:
    return None if bounds is None else (shown(bounds[0], scale), shown(bounds[1], scale))


def deciding(parts: tuple[PartOfVerdict, ...], verdict: str, hypothesis: Hypothesis) -> PartOfVerdict:
    """The part to be shown: what refutes most, or supports least (most, where one part makes the claim)."""
    parts = tuple(parts[place] for place in hypothesis.speak) or parts
    if not np.isfinite(parts[0].holds):
        return min(parts, key=lambda part: part.effect)
    if verdict == REFUTED:
        return min(parts, key=lambda part: part.fails)
    return (min if hypothesis.strongest else max)(parts, key=lambda part: part.holds)


def written(effect: float, bounds: tuple[float, float] | None, unit: str) -> str:
    """`+2.1% (0.4 to 3.8)`."""
    sign = "+" if effect > 0 and unit == "%" else ""
    text = f"{sign}{number(effect, 2)}{unit}"
    return f"{text} ({number(bounds[0], 2)} to {number(bounds[1], 2)})" if bounds else f"{text} (no error given)"


def rests_on(verdict: Verdict) -> str:
    """`12 cells of 512 images, 1 training seed`."""
    seeds = "one training seed" if verdict.seeds == 1 else f"{verdict.seeds} training seeds"
    return f"{verdict.cells} cells of {verdict.images:,} {verdict.of}, {seeds}"


def advice(verdict: Verdict) -> str:
    """What would decide it."""
    found, seeds = verdict.needed, verdict.seeds
    if found is None:
        return ""
    ways = []
    if found.images:
        ways.append(f"{found.images:,} {verdict.of} a cell instead of {verdict.images:,}")
    if found.seeds:
        ways.append(f"{found.seeds} training seeds instead of {seeds}")
    if ways:
        return f"{' or '.join(ways)} would decide it with a probability of 0.8"
    if seeds > 1:
        return f"neither more {verdict.of} alone nor 100 training seeds would decide it with a probability of 0.8"
    return f"no number of {verdict.of} would decide it: what was found is too near to the margin"
