"""Numbers that remember which scores they hang on, so that errors follow from the scores' own.

A claim is a sum or difference of losses. To first order its error is that of the same combination of the scores:
`Quantity` keeps the weights, and `estimates` turns them into errors,

- of images: sd(sum of weights x influence values) / sqrt(n), as all cells share prompts and noise; where influence
  values are not stored, the larger of what independent and what fully correlated scores would give;
- of training seeds: the variance over seeds of the same combination, member by member, as every member is trained by
  itself. It is pooled over the quantities of one claim, as two or three seeds say little alone; its degrees of freedom
  are counted by trainings, not by cells.

The two are added, with Satterthwaite's degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from isocost.analysis.differences import Influence

if TYPE_CHECKING:
    from isocost.analysis.sheet import Score


AT_ONCE = 2**22  # numbers of influence values that are summed at a time


@dataclass(frozen=True)
class Quantity:
    """`value`, and d value / d score by number of the score."""

    value: float
    weights: Mapping[int, float]

    def __add__(self, other: Quantity) -> Quantity:
        weights = dict(self.weights)
        for number, weight in other.weights.items():
            weights[number] = weights.get(number, 0.0) + weight
        return Quantity(self.value + other.value, weights)

    def __mul__(self, factor: float) -> Quantity:
        return Quantity(factor * self.value, {number: factor * weight for number, weight in self.weights.items()})

    __rmul__ = __mul__

    def __neg__(self) -> Quantity:
        return -1.0 * self

    def __sub__(self, other: Quantity) -> Quantity:
        return self + (-other)


def mean(quantities: Sequence[Quantity]) -> Quantity:
    return weighted(quantities, [1 / len(quantities)] * len(quantities))


def weighted(quantities: Iterable[Quantity], weights: Iterable[float]) -> Quantity:
    """Sum of weight x quantity."""
    total = Quantity(0.0, {})
    for quantity, weight in zip(quantities, weights, strict=True):
        total = total + weight * quantity
    return total


@dataclass(frozen=True, eq=False)
class Estimates:
    """Quantities [m] with the two parts of their variance. `image_variance` is NaN where a score has no error.

    `seeds`: trainings of each member that they rest on, the least over members. `n`: images of a cell, the least.
    `paired`: whether all errors are from influence values.
    """

    value: np.ndarray
    image_variance: np.ndarray
    image_dof: np.ndarray
    seed_variance: np.ndarray
    seed_dof: float
    n: int
    seeds: int
    paired: bool

    def scaled(self, images: float = 1.0, seeds: float = 1.0) -> Estimates:
        """The same values with the errors that so many times the images and seeds would have."""
        dof = self.seed_dof * max(seeds * self.seeds - 1, 1) / max(self.seeds - 1, 1)
        return Estimates(
            self.value, self.image_variance / images, self.image_dof * images, self.seed_variance / seeds, dof,
            round(self.n * images), round(self.seeds * seeds), self.paired,
        )  # fmt: skip

    @property
    def stderr(self) -> np.ndarray:
        return np.sqrt(self.image_variance + self.seed_variance)

    @property
    def dof(self) -> np.ndarray:
        """Satterthwaite's (Biometrics Bulletin 2(6), 1946): of a sum of two variances that were both estimated."""
        total = self.image_variance + self.seed_variance
        terms = self.image_variance**2 / self.image_dof
        if self.seed_dof:
            terms = terms + self.seed_variance**2 / self.seed_dof
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(terms > 0, total**2 / terms, self.image_dof)


def upper_tail(t: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """P(T > t) of Student's t.

    From 30 degrees of freedom on by the normal's (Abramowitz and Stegun 26.7.8, to 3e-5), which is 50 times as fast.
    """
    from scipy.special import ndtr, stdtr

    t, dof = np.broadcast_arrays(np.asarray(t, float), dof)
    if np.any(dof < 30):
        return stdtr(dof, -t)
    bounded = np.clip(t, -1e6, 1e6)
    return ndtr(-bounded * (1 - 1 / (4 * dof)) / np.sqrt(1 + bounded**2 / (2 * dof)))


def t_quantile(probability: float, dof: np.ndarray) -> np.ndarray:
    from scipy.special import stdtrit

    return stdtrit(dof, probability)


@dataclass(frozen=True, eq=False)
class Covariance:
    """Of scores [m, m]: images and training seeds together, with Satterthwaite's degrees of freedom of their sum."""

    matrix: np.ndarray
    dof: float
    seeds: int = 1

    @cached_property
    def root(self) -> np.ndarray:
        """R [m, m] with R R' = the matrix, of any rank."""
        values, vectors = np.linalg.eigh((self.matrix + self.matrix.T) / 2)
        return vectors * np.sqrt(np.clip(values, 0, None))

    def part(self, kept: np.ndarray) -> Covariance:
        return Covariance(self.matrix[np.ix_(kept, kept)], self.dof, self.seeds)


class Errors:
    """Errors of quantities over the scores of a sheet; influence arrays are read once."""

    def __init__(self, scores: Sequence[Score], influence: Influence | None):
        self.scores = scores
        stored = influence or (lambda key: None)

        @cache
        def of_scores(number: int, seeds: tuple[int, ...]) -> np.ndarray | None:
            score = scores[number]
            keys = [key for seed, key in zip(score.seeds, score.keys, strict=True) if seed in seeds]
            arrays = [stored(key) for key in keys]
            if (
                any(array is None for array in arrays)
                or len({len(array) for array in arrays if array is not None}) != 1
            ):
                return None
            return np.mean(np.asarray(arrays, np.float64), axis=0)

        self.influence = of_scores

    def estimates(self, quantities: Sequence[Quantity]) -> Estimates:
        """The errors of the quantities of one claim, which pool their variance over training seeds."""
        found = [self._parts(quantity) for quantity in quantities]
        image_variance, paired = self._image_variance(quantities, [parts.seeds for parts in found])
        deviations = [part for parts in found for part in parts.deviations]
        squares = [float(np.var(values, ddof=1)) for _, values in deviations if len(values) > 1]
        pooled = float(np.mean(squares)) if squares else 0.0
        trained = {member: len(values) for member, values in deviations if len(values) > 1}
        seed_variance = [sum(pooled / len(values) for _, values in parts.deviations) for parts in found]
        n = [parts.n for parts in found]
        return Estimates(
            value=np.array([parts.value for parts in found]),
            image_variance=image_variance,
            image_dof=np.maximum(np.array(n, float) - 1, 1),
            seed_variance=np.array(seed_variance),
            seed_dof=float(sum(count - 1 for count in trained.values())),
            n=min(n, default=0),
            seeds=min((len(values) for _, values in deviations), default=1),
            paired=paired,
        )

    def covariance(self, numbers: Sequence[int]) -> Covariance:
        """Of the values of these scores.

        Images: by influence values, else independent. Training seeds: what the cells of a member share, and what each
        has by itself, both pooled over members; nothing where there is one seed.
        """
        scores = [self.scores[number] for number in numbers]
        arrays = [self.influence(number, score.seeds) for number, score in zip(numbers, scores, strict=True)]
        if any(array is None for array in arrays) or len({len(array) for array in arrays if array is not None}) > 1:
            images = np.diag([score.stderr**2 for score in scores])
        else:
            values = np.asarray(arrays)
            n = scores[0].n
            images = np.cov(values[:, :n]) / n
            if values.shape[1] > n:
                images = images + np.cov(values[:, n:]) / (values.shape[1] - n)
        trained, dof = self._over_seeds(scores)
        total, images_dof = images + trained, max(min(score.n for score in scores) - 1, 1)
        of_seeds, of_all = float(np.trace(trained)), float(np.trace(total))
        parts = (of_all - of_seeds) ** 2 / images_dof + (of_seeds**2 / dof if dof else 0.0)
        return Covariance(np.atleast_2d(total), of_all**2 / parts if parts else 1.0, min(len(s.seeds) for s in scores))

    def _over_seeds(self, scores: Sequence[Score]) -> tuple[np.ndarray, float]:
        """Covariance of means over seeds [m, m], and its degrees of freedom: trainings less members."""
        by_member: dict[str, list[int]] = {}
        for place, score in enumerate(scores):
            by_member.setdefault(score.member, []).append(place)
        shared, own, dof = [], [], 0
        for places in by_member.values():
            seeds = _shared_seeds([scores[place] for place in places])
            if len(seeds) > 1:
                # Relative, so that members pool: a seed moves a large distance by more than a small one.
                values = np.stack(
                    [_of_seeds(scores[place], seeds) / abs(np.mean(scores[place].values)) for place in places]
                )
                covariance = np.atleast_2d(np.cov(values))
                count = len(places)
                between = (covariance.sum() - np.trace(covariance)) / (count * (count - 1)) if count > 1 else 0.0
                shared.append(between)
                own.append(np.trace(covariance) / count - between)
                dof += len(seeds) - 1
        found = np.zeros((len(scores), len(scores)))
        if shared:
            common, rest = max(float(np.mean(shared)), 0.0), max(float(np.mean(own)), 0.0)
            for places in by_member.values():
                size = np.array([abs(np.mean(scores[place].values)) for place in places])
                count = min(len(scores[place].seeds) for place in places)
                found[np.ix_(places, places)] = (common * np.outer(size, size) + rest * np.diag(size**2)) / count
        return found, float(dof)

    def _parts(self, quantity: Quantity) -> _Parts:
        """Value on the seeds that all scores of a member share, and each member's sum by seed."""
        by_member: dict[str, list[int]] = {}
        for number in quantity.weights:
            by_member.setdefault(self.scores[number].member, []).append(number)
        value, deviations, seeds = quantity.value, [], {}
        for member, numbers in by_member.items():
            weights, scores = [quantity.weights[number] for number in numbers], [self.scores[n] for n in numbers]
            if all(score.seeds == scores[0].seeds for score in scores):
                common = scores[0].seeds
                deviations.append((member, np.dot(weights, [score.values for score in scores])))
            elif common := _shared_seeds(scores):
                sums = np.dot(weights, [_of_seeds(score, common) for score in scores])
                value += float(np.mean(sums) - np.dot(weights, [np.mean(score.values) for score in scores]))
                deviations.append((member, sums))
            seeds |= {number: common or self.scores[number].seeds for number in numbers}
        n = min((self.scores[number].n for number in quantity.weights), default=1)
        return _Parts(value, n, seeds, deviations)

    def _image_variance(
        self, quantities: Sequence[Quantity], seeds: Sequence[Mapping[int, tuple[int, ...]]]
    ) -> tuple[np.ndarray, bool]:
        """Variances by images [m], and whether all are from influence values."""
        found = self._paired(quantities, seeds)
        if found is not None:
            return found, True
        each = [self._variance_of(quantity, own) for quantity, own in zip(quantities, seeds, strict=True)]
        return np.array([variance for variance, _ in each]), all(paired for _, paired in each)

    def _paired(
        self, quantities: Sequence[Quantity], seeds: Sequence[Mapping[int, tuple[int, ...]]]
    ) -> np.ndarray | None:
        """Many at once, from influence values that are all of as many images; None where they are not.

        A claim may have 10,000 quantities: one by one, the calls would take longer than the sums.
        """
        places: dict[tuple[int, tuple[int, ...]], int] = {}
        used = [
            places.setdefault((number, own[number]), len(places))
            for quantity, own in zip(quantities, seeds, strict=True)
            for number in quantity.weights
        ]
        counts = np.array([len(quantity.weights) for quantity in quantities])
        arrays = [self.influence(number, own) for number, own in places]
        kinds = {
            (None if array is None else len(array), self.scores[number].n)
            for (number, _), array in zip(places, arrays, strict=True)
        }
        if len(kinds) != 1 or (length := next(iter(kinds)))[0] is None or not counts.all():
            return None
        values = np.asarray(arrays)
        weights = np.array([weight for quantity in quantities for weight in quantity.weights.values()])
        ends = np.cumsum(counts)
        variances = np.empty(len(quantities))
        at_once = max(1, AT_ONCE // (values.shape[1] * int(counts.max())))
        for first in range(0, len(quantities), at_once):
            some = slice(first, first + at_once)
            start, end = ends[some][0] - counts[first], ends[some][-1]
            terms = weights[start:end, None] * values[used[start:end]]
            totals = np.add.reduceat(terms, ends[some] - counts[some] - start)
            variances[some] = _of_means(totals[:, : length[1]])
            if totals.shape[1] > length[1]:
                variances[some] += _of_means(totals[:, length[1] :])
        return variances

    def _variance_of(self, quantity: Quantity, seeds: Mapping[int, tuple[int, ...]]) -> tuple[float, bool]:
        weights = quantity.weights
        arrays = {number: self.influence(number, seeds[number]) for number in weights}
        lengths = {(None if array is None else len(array), self.scores[number].n) for number, array in arrays.items()}
        if len(lengths) == 1 and (length := next(iter(lengths)))[0] is not None:
            total = sum((weights[number] * array for number, array in arrays.items() if array is not None), 0.0)
            images, references = np.split(np.asarray(total)[None], [length[1]], axis=1)
            return float((_of_means(images) + (_of_means(references) if references.size else 0.0))[0]), True
        errors = np.array([weight * self.scores[number].stderr for number, weight in weights.items()])
        return float(max(np.sum(errors**2), np.sum(errors) ** 2)), False


@dataclass(frozen=True)
class _Parts:
    value: float
    n: int
    seeds: dict[int, tuple[int, ...]]
    deviations: list[tuple[str, np.ndarray]]


def _shared_seeds(scores: Sequence[Score]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*(set(score.seeds) for score in scores))))


def _of_seeds(score: Score, seeds: tuple[int, ...]) -> np.ndarray:
    """Values of some seeds, in the order of the score's own."""
    return np.array([value for seed, value in zip(score.seeds, score.values, strict=True) if seed in seeds])


def _of_means(values: np.ndarray) -> np.ndarray:
    """Variance of the mean of each row."""
    return np.var(values, axis=1, ddof=1) / values.shape[1]
