"""Adaptive search: a grid's cost-quality frontier from a fraction of its images. The decisions alone, pure and seeded.

An arm is a way to spend a budget: a cell of the grid. Its images come in one order of prompts, the same for all arms,
and are taken from the front: sample sets are nested, and any two arms have their first n images on the same prompts and
noise. What is asked for is the answer that full search would give, had it made all `total` images of every arm: at each
budget the best arm that it buys. So an arm whose images are all made is known, and what is uncertain of another is how
its first n images differ from all.

1. A pilot: one chunk of images of every `pilot`-th arm.
2. A belief. Looks are an arm's values on its first n images, at every n that it has had. Their errors are correlated:
   between arms as the influence values of their shared images are, between the n of one arm because one set holds the
   other. So an arm that is known also tells how lucky the first n prompts were, and corrects all others by what they
   share with it. Of arms without a look a Gaussian process tells, over (log steps, log guidance) for each checkpoint
   and sampler, with one kernel for all.
3. Draws from the belief say how likely it is that an arm that a budget buys is better, by more than `tolerance`, than
   the one chosen. The arms that this comes from get a chunk more, until that is as unlikely as `confidence` asks.

Values are compared at equal n: the bias of a Frechet distance on n images is much the same in all arms, so what is
left of it after a first correction is an offset of each n, which arms that were looked at with several n tell.
Decisions follow from the seed and the features alone: a search that is run again over what it has stored goes on where
it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from isocost.errors import SpecError
from isocost.scoring.uncertainty import Estimate
from isocost.study.gaussian_process import Kernel, cholesky, draw, fit, interpolation

FACTORS = 8  # of the correlation of errors between arms: with more, a pilot's few images fit their own noise
OFFSET_SHARE = 0.15  # deviation of a bias that all share about its estimate (measured at n of 1 to 4 dims: .08 to .17)
BIAS_SHARE = 0.07  # deviation of an arm's own bias about the shared one (there: .05 to .07)
EXACT = 1e-4  # deviation of what is known, on the scale of a logarithm
REFIT_AT = 1.25  # the kernel is fitted again once so many times more arms were looked at
SAME_COST = 1 + 1e-9


@dataclass(frozen=True)
class Arm:
    """One cell as the search sees it.

    `name`: what it is called in the result. `curve`: arms of one curve differ in steps and guidance alone, and are one
    smooth function. `place`: (log steps, log guidance). `cost`: of one image, in the unit of the budgets.
    """

    name: str
    curve: str
    place: tuple[float, float]
    cost: float


class Images(Protocol):
    """Where a search's images come from. Those of an arm have an order, the same prompts in the same places for all."""

    @property
    def total(self) -> int:
        """Images an arm that full search looks at."""
        ...

    @property
    def chunk(self) -> int:
        """Images are made so many at a time."""
        ...

    def make(self, counts: Mapping[int, int]) -> None:
        """Have the first counts[arm] images of each arm made."""
        ...

    def estimate(self, arm: int, rows: slice) -> Estimate:
        """An arm's metric on those of its images, all of them made."""
        ...


@dataclass(frozen=True)
class Settings:
    """What a search promises and how it goes about it.

    `confidence`: probability with which the answer holds, at all budgets together. `tolerance`: by how large a share of
    the best value an answer may miss it. `unit`: of the arms' costs. `pilot`: one arm in so many is looked at first.
    `arms`: how many get more images in a round. `draws`: from the belief, each round.
    """

    confidence: float = 0.95
    tolerance: float = 0.01
    unit: str = "paper"
    pilot: int = 3
    arms: int = 16
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise SpecError(f"confidence {self.confidence:g} is not between 0 and 1; 0.95 is usual.")
        if self.tolerance <= 0 or min(self.pilot, self.arms, self.draws) < 1:
            raise SpecError("tolerance, pilot, arms and draws of a search have to be positive.")


@dataclass(frozen=True)
class Round:
    """After a look: `images` made so far, the `doubt` that the answer holds, and how many arms it has."""

    images: int
    doubt: float
    frontier: int


@dataclass(frozen=True)
class SearchResult:
    """The answer: `frontier`, arms by rising cost, each the choice from its cost on; `counts` [arms] of images made;
    `doubt`, the probability that full search finds a choice more than the tolerance better at any budget."""

    frontier: tuple[int, ...]
    counts: tuple[int, ...]
    doubt: float
    rounds: tuple[Round, ...]

    @property
    def images(self) -> int:
        return sum(self.counts)


def search(
    arms: Sequence[Arm],
    images: Images,
    settings: Settings,
    on_round: Callable[[SearchResult], None] = lambda so_far: None,
) -> SearchResult:
    """Search the cost-quality frontier of `arms`. `on_round`: called with the answer so far, after every look.

    Raises:
        SpecError: no arms, or a metric without influence values.
    """
    if not arms:
        raise SpecError("nothing to search: the grid has no cells.")
    looks, belief = Looks(images, len(arms)), Belief(arms, settings)
    looks.take({arm: images.chunk for arm in pilot(arms, settings.pilot)})
    rounds: list[Round] = []
    while True:
        losses, mean = belief.draws(looks)
        verdict = judge(arms, losses, mean, settings.tolerance)
        rounds.append(Round(sum(looks.counts), verdict.doubt, len(verdict.chosen)))
        found = SearchResult(verdict.chosen, tuple(looks.counts), verdict.doubt, tuple(rounds))
        on_round(found)
        wanted = _wanted(verdict, looks, settings)
        if not wanted:
            return found
        looks.take(wanted)


def pilot(arms: Sequence[Arm], every: int) -> list[int]:
    """Every `every`-th arm of each curve, in a lattice that has all steps and all guidance rates: 2 is a chessboard."""
    shift = next(shift for shift in range(math.isqrt(every), 0, -1) if math.gcd(shift, every) == 1)
    chosen = []
    for curve in dict.fromkeys(arm.curve for arm in arms):
        members = [number for number, arm in enumerate(arms) if arm.curve == curve]
        steps, rates = (sorted({arms[number].place[axis] for number in members}) for axis in (0, 1))
        for number in members:
            row, column = steps.index(arms[number].place[0]), rates.index(arms[number].place[1])
            if (row * shift + column) % every == 0:
                chosen.append(number)
    return chosen


def _wanted(verdict: Verdict, looks: Looks, settings: Settings) -> dict[int, int]:
    """Arms that are to have more images, and how many in all; none when the search is over.

    While the answer is in doubt, those that the doubt comes from get a chunk more. Then the choices get all they lack,
    and the answer is looked at again.
    """
    if verdict.doubt <= 1 - settings.confidence:
        return {arm: looks.total for arm in verdict.chosen if looks.counts[arm] < looks.total}
    open_arms = [arm for arm in np.argsort(-verdict.blame, kind="stable") if looks.counts[arm] < looks.total]
    blamed = [int(arm) for arm in open_arms if verdict.blame[arm] > 0]
    return {arm: min(looks.counts[arm] + looks.chunk, looks.total) for arm in blamed[: settings.arms]}


# --- the answer that a belief gives ---


@dataclass(frozen=True, eq=False)
class Verdict:
    """`chosen`: the frontier by the belief's mean; `doubt`: how likely it misses; `blame` [arms]: from where."""

    chosen: tuple[int, ...]
    doubt: float
    blame: np.ndarray


def judge(arms: Sequence[Arm], losses: np.ndarray, mean: np.ndarray, tolerance: float) -> Verdict:
    """What draws of all arms' losses [draws, arms] say of the choice by their `mean` [arms] at every budget.

    A draw blames, at each budget where it finds an arm better than the choice by more than `tolerance` of it, that arm
    and the choice.
    """
    costs = np.array([arm.cost for arm in arms])
    chosen: list[int] = []
    missed = np.zeros(len(losses), dtype=bool)
    blame = np.zeros(len(arms))
    for budget in _budgets(costs):
        within = np.flatnonzero(costs <= budget * SAME_COST)
        choice = int(within[np.argmin(mean[within])])
        best = within[np.argmin(losses[:, within], axis=1)]
        least = losses[np.arange(len(losses)), best]
        misses = losses[:, choice] - least > tolerance * np.abs(least)
        missed |= misses
        blame += np.bincount(best[misses], minlength=len(arms)) / len(losses)
        blame[choice] += misses.mean()
        if choice not in chosen:
            chosen.append(choice)
    return Verdict(tuple(chosen), float(missed.mean()), blame)


def _budgets(costs: np.ndarray) -> list[float]:
    """The costs at which another arm comes within reach, rising; such as differ by rounding are one."""
    budgets: list[float] = []
    for cost in np.sort(costs):
        if not budgets or cost > budgets[-1] * SAME_COST:
            budgets.append(float(cost))
    return budgets


# --- what has been looked at ---


@dataclass(frozen=True)
class Look:
    """An arm's value on its first n images, lower is better, with influence values [n] and the bias that the halves of
    these images show."""

    arm: int
    n: int
    loss: float
    influence: np.ndarray
    bias: float


@dataclass(eq=False)
class Looks:
    """All looks taken, in order: of each arm on its first n images, for every n that it has had."""

    images: Images
    arms: int
    taken: list[Look] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * self.arms
        self.total = self.images.total
        self.chunk = self.images.chunk

    def take(self, counts: Mapping[int, int]) -> None:
        """Have images made, and look at every n on the way."""
        counts = {arm: min(count, self.total) for arm, count in counts.items()}
        self.images.make(counts)
        for arm, count in counts.items():
            while self.counts[arm] < count:
                self.counts[arm] = min(self.counts[arm] + self.chunk, self.total)
                self.taken.append(self._look(arm, self.counts[arm]))

    def _look(self, arm: int, n: int) -> Look:
        estimate = self.images.estimate(arm, slice(0, n))
        if estimate.influence is None:
            raise SpecError(f"adaptive search needs a metric with influence values, and '{estimate.unit}' has none.")
        sign = -1.0 if estimate.higher_is_better else 1.0
        if n == self.total:
            return Look(arm, n, sign * estimate.corrected, sign * estimate.influence, 0.0)
        halves = [self.images.estimate(arm, half).value for half in (slice(0, n // 2), slice(n // 2, n))]
        bias = sum(halves) / 2 - estimate.value
        return Look(arm, n, sign * estimate.value, sign * estimate.influence, sign * bias)


# --- what is believed of all arms ---


class Belief:
    """What all images of every arm would show, on the scale asinh(loss / s) with s the usual standard error of a first
    look: a logarithm far from 0, so that errors and tolerance are shares, and linear where a loss passes 0.

    Arms that were looked at speak for themselves, through `corrected`; a Gaussian process of every curve tells of the
    others. It does not smooth what was looked at: errors on shared prompts are as smooth along a curve as the curve
    itself, and it would take them for it (in simulation, with every arm in the pilot, 3 of 3 searches missed so).
    """

    def __init__(self, arms: Sequence[Arm], settings: Settings):
        self.places = np.array([arm.place for arm in arms])
        self.curves = np.unique([arm.curve for arm in arms], return_inverse=True)[1]
        self.settings = settings
        self.kernel: Kernel | None = None
        self.fitted_to = 0
        self.generator = np.random.Generator(np.random.Philox(settings.seed))

    def draws(self, looks: Looks) -> tuple[np.ndarray, np.ndarray]:
        """Losses [draws, arms] that all images of every arm may have, and those at the belief's mean [arms]."""
        scale = usual_error(looks.taken)
        seen, values, errors = corrected(*observations(looks.taken, looks.total, scale))
        if self.kernel is None or len(seen) >= REFIT_AT * self.fitted_to:
            self.kernel, self.fitted_to = fit(self.places[seen], self.curves[seen], values), len(seen)
        weights, rest = interpolation(self.kernel, self.places, self.curves, seen)
        mean = values.mean() + weights @ (values - values.mean())
        drawn = draw(mean, rest + weights @ errors @ weights.T, self.settings.draws, self.generator)
        return scale * np.sinh(drawn), scale * np.sinh(mean)


def usual_error(taken: Sequence[Look]) -> float:
    """Median standard error of the looks at fewest images."""
    least = min(look.n for look in taken)
    errors = [look.influence.std(ddof=1) / math.sqrt(look.n) for look in taken if look.n == least]
    return float(np.median(errors)) or 1.0


def observations(taken: Sequence[Look], total: int, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arms [k], values [k] on the scale asinh(loss / scale), and the covariance [k, k] of their errors, of all looks.

    The error of a look at n images is the mean of the arm's influence over these less that over all, so that it has the
    covariance C_ab (1 / max(n, m) - 1 / total) with a look at arm b on m images. Its bias is what all looks at n share,
    taken off as the median of what their halves show and left open by an offset of this n; and a little of its own.
    """
    arm, n = np.array([look.arm for look in taken]), np.array([look.n for look in taken])
    bias = np.zeros(len(taken))
    for size in np.unique(n[n < total]):
        bias[n == size] = np.median([look.bias for look in taken if look.n == size])
    losses = np.array([look.loss for look in taken]) - bias
    slopes = 1 / np.hypot(losses, scale)

    newest = {look.arm: row for row, look in enumerate(taken)}
    first = {look.arm: look.influence[: n.min()] for look in reversed(taken)}
    arms = np.array(sorted(newest))
    deviations = np.array([taken[newest[a]].influence.std(ddof=1) * slopes[newest[a]] for a in arms])
    covariance = correlations(np.stack([first[a] for a in arms])) * np.outer(deviations, deviations)
    at = np.searchsorted(arms, arm)
    errors = covariance[np.ix_(at, at)] * (1 / np.maximum.outer(n, n) - 1 / total)
    shifts = bias * slopes
    errors += np.equal.outer(n, n) * np.outer(shifts, shifts) * OFFSET_SHARE**2
    errors[np.diag_indices_from(errors)] += np.square(BIAS_SHARE * shifts)
    return arm, np.arcsinh(losses / scale), errors


def corrected(arm: np.ndarray, values: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arms [m] that were looked at, their values [m] and covariance [m, m], by generalised least squares.

    Arms whose errors are known, as all their images are made, are controls: what is shared with them is taken off.
    """
    from scipy.linalg import cho_solve, solve_triangular

    arms, at = np.unique(arm, return_inverse=True)
    root = cholesky(errors + EXACT**2 * np.eye(len(arm)))
    design = solve_triangular(root, np.equal.outer(at, np.arange(len(arms))).astype(float), lower=True)
    covariance = cho_solve((cholesky(design.T @ design), True), np.eye(len(arms)))
    return arms, covariance @ design.T @ solve_triangular(root, values, lower=True), covariance


def correlations(influence: np.ndarray) -> np.ndarray:
    """Correlation [A, A] of the influence values [A, n] of arms on the same images, by their first principal factors.

    The sample's own correlation has rank n and would let a belief about many arms cancel errors that it does not know;
    a few factors and a rest of each arm's own do not.
    """
    rows = influence - influence.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    left, singular, _ = np.linalg.svd(rows / np.where(lengths > 0, lengths, 1), full_matrices=False)
    kept = min(FACTORS, max(len(singular) // 4, 1))
    loadings = left[:, :kept] * singular[:kept]
    shared = loadings @ loadings.T
    np.fill_diagonal(shared, 1.0)
    return shared
