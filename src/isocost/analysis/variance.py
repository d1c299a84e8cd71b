"""How much of a score's variance is whose: size, steps, guidance, training seed, prompts and sampling noise.

Draw a cell of a grid at random (each member, step count and guidance rate as likely), train its member anew, and score
it on as many new images: the variance of its loss is then the sum of

- that of cells: the sums of squares of a factorial design (effects of levels that are fixed), over the cells' number;
- that of trainings: what a training seed moves in all cells of a member alike, and in each by itself;
- that of images: of prompts and of the noise that they are drawn from, told apart where prompts repeat.

Each is an unbiased estimate: what errors of scores add to a sum of squares y'Py, tr(P S) with S their covariance, is
taken off (Seber and Lee, Linear Regression Analysis, theorem 1.5). S is from influence values, which know what cells
share, as all are of the same prompts and noise. Intervals: for effects t with Satterthwaite's degrees of freedom, the
variance of y'Py being taken as 4 y'PSPy (at an effect of 0 that is twice too much); for trainings chi-square.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from isocost.analysis.differences import Influence
from isocost.analysis.frames import DataFrame
from isocost.analysis.quantity import t_quantile
from isocost.analysis.sheet import PRETRAINED, Missing, Score, Sheet
from isocost.analysis.words import SAMPLERS, metric_name, number
from isocost.errors import SpecError

FACTORS = {"size": "member", "steps": "steps", "guidance": "guidance_scale"}
SEED, SEED_BY_CELL = "training seed", "training seed x cell"
PROMPTS, NOISE, BOTH = "prompts", "sampling noise", "prompts and noise"
BLOCK = 1024  # images decomposed at once

Levels = tuple[tuple[Any, ...], ...]
"""Members, step counts and guidance rates of a full grid; `NONE` where there is none."""
NONE: Levels = ()


@dataclass(frozen=True)
class Component:
    """A source's part of the variance of the loss, with its 95% interval and share of the whole.

    None where it can't be told, and `said` then says why; `variance` may come out below 0 where there is nothing, and
    counts as 0 in shares. `dof`: degrees of freedom.
    """

    source: str
    variance: float | None
    interval: tuple[float, float] | None = None
    share: float | None = None
    dof: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Variance:
    """Where the variance of a metric's loss comes from, over a full grid of `levels` (factor -> its levels).

    `n`: images a cell. `seeds`: trainings that each effect's cells are of, and the most that a cell has. `total`: the
    sum. `shared`: which part of the images' variance is common to all cells, and so leaves their differences alone;
    None without influence values.
    """

    metric: str
    sampler: str
    levels: Mapping[str, tuple[Any, ...]]
    n: int
    seeds: tuple[int, int]
    total: float
    components: tuple[Component, ...]
    shared: float | None
    notes: tuple[str, ...]

    def __getitem__(self, source: str) -> Component:
        return next(found for found in self.components if found.source == source)

    @property
    def sentence(self) -> str:
        levels = " x ".join(f"{len(values)} of {name}" for name, values in self.levels.items() if len(values) > 1)
        known = [found for found in self.components if found.share is not None]
        shares = ", ".join(f"{found.source} {found.share:.1%}" for found in known)
        untold = "".join(
            f"; {found.source} not told ({found.said})" for found in self.components if found.share is None
        )
        return (
            f"variance of {metric_name(self.metric)} over {levels} ({SAMPLERS.get(self.sampler, self.sampler)}), "
            f"{self.n} images a cell: {shares}{untold}."
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row a source, as the CSV has them."""
        return [
            {
                "source": found.source, "variance": found.variance, "share": found.share,
                "low": found.interval[0] if found.interval else None,
                "high": found.interval[1] if found.interval else None, "dof": found.dof, "said": found.said,
            }
            for found in self.components
        ]  # fmt: skip

    def frame(self) -> DataFrame:
        """`rows` as a table."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"sentence": self.sentence}


def variance(
    table: DataFrame, influence: Influence | None = None, metric: str | None = None, prompts: int | None = None
) -> Variance:
    """Decompose a metric's variance over the largest full grid of a table's final plain cells (report half).

    `prompts`: distinct prompts of the report half, where images are more than those: image j is of prompt j modulo
    that. Raises `SpecError` for an empty table, an unknown metric, mixed protocols, and where fewer than two levels of
    every factor are scored alike.
    """
    sheet = Sheet.of(table, metric)
    try:
        return components(sheet, influence, prompts)
    except Missing as error:
        raise SpecError(f"a table of variance needs {error}.") from None


def components(sheet: Sheet, influence: Influence | None, prompts: int | None = None) -> Variance:
    """`variance` of a table that is read already. Raises `Missing` where it has no grid."""
    cells = _final(sheet)
    grid = Grid.of(sheet, cells)
    images = _images(grid, influence, prompts)
    trainings = _trainings(_seeded(sheet, cells), influence, prompts)
    effects = [_effect(grid, images, trainings, source) for source in grid.sources]
    found = [*effects, *trainings.components, *images.components]
    total = sum(max(part.variance, 0.0) for part in found if part.variance is not None)
    if not total > 0:
        raise Missing("scores that differ")
    shared = [replace(part, share=None if part.variance is None else max(part.variance, 0.0) / total) for part in found]
    return Variance(
        sheet.quality, str(cells["sampler"].iloc[0]), grid.levels, grid.n, (len(grid.seeds), trainings.seeds), total,
        tuple(shared), images.shared, _notes(sheet, cells, grid, images, trainings),
    )  # fmt: skip


# --- the grid ---


@dataclass(frozen=True, eq=False)
class Grid:
    """A full grid: `loss` [size, steps, guidance], the mean over the training `seeds` that have all of it.

    `scores`: of its cells, in C order.
    """

    levels: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    scores: tuple[Score, ...]
    loss: np.ndarray
    n: int

    @classmethod
    def of(cls, sheet: Sheet, cells: DataFrame) -> Grid:
        """The largest grid that one training of every member has; then all seeds that have it."""
        scores = {
            tuple(row[column] for column in FACTORS.values()): sheet.scores[place]
            for row in cells.assign(cell=cells.index).to_dict("records")
            if (place := sheet.places.get((row["cell"], sheet.quality, "report"))) is not None
        }
        names = [name for name in cells.sort_values(["params", "width"], kind="stable")["member"].drop_duplicates()]
        by_seed = {
            seed: _largest([key for key, score in scores.items() if seed in score.seeds])
            for seed in sorted({seed for score in scores.values() for seed in score.seeds})
        }
        best = max(by_seed.values(), key=_cells_in, default=NONE)
        if _cells_in(best) < 2:
            raise Missing("two cells or more that differ in size, steps or guidance alone, at every member")
        members = tuple(name for name in names if name in best[0])
        levels = {"size": members, "steps": best[1], "guidance": best[2]}
        chosen = tuple(scores[key] for key in itertools.product(*levels.values()))
        seeds = tuple(sorted(set.intersection(*(set(score.seeds) for score in chosen))))
        loss = np.array([np.mean(_losses(score, seeds)) for score in chosen])
        return cls(levels, seeds, chosen, loss.reshape([len(values) for values in levels.values()]),
                   min(score.n for score in chosen))  # fmt: skip

    @property
    def sources(self) -> list[tuple[int, ...]]:
        """Axes of each factor, and of the interactions of those that have two levels or more."""
        axes = [axis for axis, count in enumerate(self.loss.shape) if count > 1]
        together = [found for size in range(2, len(axes) + 1) for found in itertools.combinations(axes, size)]
        return [*((axis,) for axis in range(len(FACTORS))), *together]


def _final(sheet: Sheet) -> DataFrame:
    """Final cells of one objective, one sampler, and the setting of it that has most of them."""
    known = set(sheet.cells["objective"])
    objective = PRETRAINED if PRETRAINED in known else sheet.cells["objective"].mode().iloc[0]
    cells = sheet.trained(objective, "all")
    cells = cells[cells["images_seen"] == cells.groupby("member")["images_seen"].transform("max")]
    cells = sheet.sampled(cells)
    setting = ["sampler", "eta", "variance", "spacing"]
    common = cells.groupby(setting, dropna=False)["steps"].transform("size")
    return cells[common == common.max()].drop_duplicates([*FACTORS.values()])


def _largest(keys: Sequence[tuple[Any, ...]]) -> Levels:
    """(members, steps, guidance rates) of the largest full grid over every member of `keys`, or `NONE`."""
    of_member: dict[Any, set[tuple[Any, ...]]] = {}
    for member, *plan in keys:
        of_member.setdefault(member, set()).add(tuple(plan))
    common = set.intersection(*of_member.values()) if of_member else set()
    rates: dict[Any, frozenset[Any]] = {}
    for steps, rate in common:
        rates[steps] = rates.get(steps, frozenset()) | {rate}
    candidates = set(rates.values())
    for one, other in itertools.combinations(sorted(candidates, key=sorted), 2):
        candidates.add(one & other)
    grids = [
        (tuple(of_member), tuple(sorted(steps for steps in rates if rates[steps] >= kept)), tuple(sorted(kept)))
        for kept in sorted(candidates, key=sorted)
        if kept
    ]
    return max(grids, key=lambda grid: (sum(len(values) > 1 for values in grid), _cells_in(grid)), default=NONE)


def _cells_in(levels: Levels) -> int:
    return int(np.prod([len(values) for values in levels])) if levels else 0


def _losses(score: Score, seeds: Sequence[int]) -> np.ndarray:
    """The loss of every seed, to first order about the mean's."""
    values = np.array([score.values[score.seeds.index(seed)] for seed in seeds])
    return score.loss + score.slope * (values - np.mean(score.values))


def effect(values: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Effect of the factors `axes` among the first three [size, steps, guidance, ...]; others are averaged to 1."""
    for axis in range(3):
        mean = values.mean(axis, keepdims=True)
        values = values - mean if axis in axes else mean
    return values


# --- errors of images ---


@dataclass(frozen=True, eq=False)
class _Images:
    """Covariance S of a grid's scores by images: `rows` [cells, columns] with S = rows rows', or, unpaired, its
    diagonal `variances` [cells]. `components`: of one cell of one training. `shared`: as in `Variance`.
    """

    shape: tuple[int, ...]
    rows: np.ndarray | None
    variances: np.ndarray
    components: tuple[Component, ...] = ()
    shared: float | None = None

    def trace(self, axes: Sequence[int]) -> float:
        """tr(P S) of an effect, over the number of cells."""
        if self.rows is None:
            rank = np.prod([self.shape[axis] - 1 for axis in axes])
            return float(rank * self.variances.mean() / len(self.variances))
        squares = 0.0
        for block in _blocks(self.rows):
            found = effect(block.reshape(*self.shape, -1), axes)
            squares += float(np.mean(np.sum(found**2, axis=-1)))
        return squares

    def along(self, weights: np.ndarray) -> float:
        """w' S w."""
        flat = weights.ravel()
        if self.rows is None:
            return float(np.sum(flat**2 * self.variances))
        return float(np.sum((flat @ self.rows) ** 2))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[:, start : start + BLOCK].astype(np.float64) for start in range(0, rows.shape[1], BLOCK)]


def _images(grid: Grid, influence: Influence | None, prompts: int | None) -> _Images:
    shape = grid.loss.shape
    variances = np.array([(score.slope * score.stderr) ** 2 for score in grid.scores])
    first = _influence_rows(grid.scores, grid.seeds[:1], influence)
    if first is None:
        found = Component(BOTH, None, said="scores have no errors, so what images add is not taken off the rest")
        if np.all(np.isfinite(variances)):
            found = Component(BOTH, float(variances.mean()), said="from standard errors, as of unpaired cells")
        return _Images(shape, None, np.nan_to_num(variances), (found,))
    repeated = prompts is not None and 2 * prompts <= grid.n
    parts = _by_prompt(first, prompts) if prompts is not None and repeated else _together(first, grid.n)
    one = _scaled(first, grid.n, prompts if repeated else None)
    every = one
    if len(grid.seeds) > 1:
        rows = _influence_rows(grid.scores, grid.seeds, influence)
        every = one if rows is None else _scaled(rows, grid.n, prompts if repeated else None)
    of_cells, of_sum = float(np.sum(one.astype(np.float64) ** 2)), float(np.sum(one.sum(0, dtype=np.float64) ** 2))
    count = len(one)
    common = max(0.0, (of_sum - of_cells) / (count - 1) / of_cells) if of_cells else None
    return _Images(shape, every, variances, parts, common)


def _influence_rows(scores: Sequence[Score], seeds: Sequence[int], influence: Influence | None) -> np.ndarray | None:
    """Influence values on the loss [cells, n + references], the mean over seeds; None where any is not stored."""
    rows = []
    for score in scores:
        keys = [score.keys[score.seeds.index(seed)] for seed in seeds]
        arrays = [influence(key) if influence else None for key in keys]
        known = [array for array in arrays if array is not None]
        if len(known) < len(keys) or len({len(array) for array in known}) != 1:
            return None
        rows.append((score.slope * np.mean(known, axis=0)).astype(np.float32))
    return np.stack(rows) if len({len(row) for row in rows}) == 1 else None


def _scaled(rows: np.ndarray, n: int, prompts: int | None) -> np.ndarray:
    """Columns whose products sum to covariances of means: of n images, or of prompts, and of references."""
    images = rows[:, :n]
    if prompts is not None:
        images = images[:, : prompts * (n // prompts)].reshape(len(rows), -1, prompts).mean(1)
    parts = [images, rows[:, n:]] if rows.shape[1] > n else [images]
    centred = [part - part.mean(1, keepdims=True) for part in parts]
    return np.concatenate([part / np.sqrt(part.shape[1] * (part.shape[1] - 1)) for part in centred], axis=1)


def _together(rows: np.ndarray, n: int) -> tuple[Component, ...]:
    """The variance that images add to a cell; its error from how much each image's part varies."""
    images = rows[:, :n].astype(np.float64)
    squares = np.mean((images - images.mean(1, keepdims=True)) ** 2, axis=0) / (n - 1)
    said = "one image of a prompt: its noise cannot be told from it"
    return (_of_means(BOTH, squares, said),)


def _by_prompt(rows: np.ndarray, prompts: int) -> tuple[Component, ...]:
    """A one-way analysis by prompt, whose images differ in noise alone; means over cells."""
    replicates = rows.shape[1] // prompts
    images = rows[:, : prompts * replicates].astype(np.float64).reshape(len(rows), replicates, prompts)
    within = images.var(1, ddof=1)
    means = images.mean(1)
    between = (means - means.mean(1, keepdims=True)) ** 2 * prompts / (prompts - 1) - within / replicates
    said = f"{prompts} prompts of {replicates} images"
    return (
        _of_means(PROMPTS, between.mean(0) / prompts, said),
        _of_means(NOISE, within.mean(0) / (prompts * replicates), said),
    )


def _of_means(source: str, parts: np.ndarray, said: str) -> Component:
    """A component that is the mean of `parts`, independent of one another."""
    value, half = float(parts.mean()), 1.96 * float(parts.std(ddof=1)) / np.sqrt(len(parts))
    return Component(source, value, (max(value - half, 0.0), value + half), dof=float(len(parts) - 1), said=said)


# --- trainings ---


@dataclass(frozen=True)
class _Trainings:
    """Variance over training seeds: `common` to a member's cells, and `own` of each; 0 where not told."""

    common: float
    own: float
    dof: float
    seeds: int
    components: tuple[Component, ...]


def _seeded(sheet: Sheet, cells: DataFrame) -> list[tuple[tuple[int, ...], tuple[Score, ...]]]:
    """Of every member: the seeds, two or more, and the cells that have all of them, that say most of seeds."""
    found = []
    for _, group in cells.groupby("member", sort=False):
        places = [sheet.places.get((int(cell), sheet.quality, "report")) for cell in group.index]
        scores = [sheet.scores[place] for place in places if place is not None]
        sets = {score.seeds for score in scores if len(score.seeds) > 1}
        choices = [(seeds, tuple(s for s in scores if set(seeds) <= set(s.seeds))) for seeds in sorted(sets)]
        if choices:
            found.append(max(choices, key=lambda choice: (len(choice[0]) - 1) * len(choice[1])))
    return found


def _trainings(
    groups: Sequence[tuple[tuple[int, ...], tuple[Score, ...]]], influence: Influence | None, prompts: int | None
) -> _Trainings:
    if not groups:
        said = "one training seed: part of size, and of what size does with the rest"
        return _Trainings(0.0, 0.0, 0.0, 1, (Component(SEED, None, said=said),))
    squares, squares_own, noise, noise_own, dof, dof_own, weight = np.zeros(7)
    for seeds, scores in groups:
        values = np.stack([_losses(score, seeds) for score in scores])  # [cells, seeds]
        count, freedom = len(scores), len(seeds) - 1
        errors = _seed_errors(scores, seeds, influence, prompts)
        squares += count * np.sum((values.mean(0) - values.mean()) ** 2)
        squares_own += np.sum(_own(values) ** 2)
        noise, noise_own = noise + errors[0], noise_own + errors[1]
        dof, dof_own, weight = dof + freedom, dof_own + freedom * (count - 1), weight + freedom * count
    own = (squares_own - noise_own) / dof_own if dof_own else 0.0
    taken_off = noise + max(own, 0.0) * dof
    common = (squares - taken_off) / weight
    said = f"{number(dof)} degrees of freedom: trainings less members"
    return _Trainings(
        max(common, 0.0), max(own, 0.0), dof, max(len(seeds) for seeds, _ in groups),
        (
            Component(SEED, common, _chi_square(squares, taken_off, weight, dof), dof=dof, said=said),
            Component(SEED_BY_CELL, own, _chi_square(squares_own, noise_own, dof_own, dof_own), dof=dof_own)
            if dof_own
            else Component(SEED_BY_CELL, None, said="one cell a member has several seeds: part of the seed's"),
        ),
    )  # fmt: skip


def _own(values: np.ndarray) -> np.ndarray:
    """What is left of [cells, seeds, ...] of cells' and seeds' means."""
    return values - values.mean(0) - values.mean(1, keepdims=True) + values.mean((0, 1))


def _seed_errors(
    scores: Sequence[Score], seeds: Sequence[int], influence: Influence | None, prompts: int | None
) -> tuple[float, float]:
    """What errors of images add to the sums of squares of seeds, and of seeds by cells."""
    n = min(score.n for score in scores)
    rows = [_influence_rows(scores, [seed], influence) for seed in seeds]
    known = [_scaled(row, n, prompts if prompts and 2 * prompts <= n else None) for row in rows if row is not None]
    if len(known) < len(seeds) or len({row.shape for row in known}) != 1:
        return 0.0, 0.0  # most of their error is common to all seeds, whose images are of the same prompts and noise
    values = np.stack(known, axis=1).astype(np.float64)  # [cells, seeds, columns]
    alike = values.mean(0) - values.mean((0, 1))
    return len(scores) * float(np.sum(alike**2)), float(np.sum(_own(values) ** 2))


def _chi_square(squares: float, taken_off: float, weight: float, dof: float) -> tuple[float, float]:
    """Of (squares - taken_off) / weight, where the squares are a multiple of chi-square."""
    from scipy.special import chdtri

    low, high = (squares * dof / float(chdtri(dof, tail)) for tail in (0.025, 0.975))
    return max((low - taken_off) / weight, 0.0), max((high - taken_off) / weight, 0.0)


# --- effects ---


def _effect(grid: Grid, images: _Images, trainings: _Trainings, axes: tuple[int, ...]) -> Component:
    """An effect's variance over cells, less what images and trainings add to it."""
    shape, count, seeds = grid.loss.shape, grid.loss.size, len(grid.seeds)
    names = [list(FACTORS)[axis] for axis in axes]
    if shape[axes[0]] == 1:
        return Component(names[0], None, said=f"one level in common: {grid.levels[names[0]][0]}")
    found = np.broadcast_to(effect(grid.loss, axes), shape)
    rank = float(np.prod([shape[axis] - 1 for axis in axes]))
    of_trainings = rank * trainings.own / count / seeds
    along = trainings.own * float(np.sum(found**2)) / seeds
    if axes == (0,):
        of_trainings += (shape[0] - 1) / shape[0] * trainings.common / seeds
        along += trainings.common * float(np.sum(found.sum((1, 2)) ** 2)) / seeds
    value = float(np.mean(found**2)) - images.trace(axes) - of_trainings
    of_images, of_seeds = (4 * part / count**2 for part in (images.along(found), along))
    spread = of_images + of_seeds
    terms = of_images**2 / max(grid.n - 1, 1) + (of_seeds**2 / trainings.dof if of_seeds else 0.0)
    half = float(t_quantile(0.975, np.array(spread**2 / terms))) * np.sqrt(spread) if terms else 0.0
    return Component(" x ".join(names), value, (max(value - half, 0.0), max(value + half, 0.0)), dof=rank)


def _notes(sheet: Sheet, cells: DataFrame, grid: Grid, images: _Images, trainings: _Trainings) -> tuple[str, ...]:
    found = []
    if sheet.quality not in sheet.linear:
        found.append("of the logarithm, so that 0.01 of standard deviation is 1% of the score")
    if (left := len(cells) - grid.loss.size) > 0:
        found.append(f"{left} of {len(cells)} cells are outside the full grid and left out")
    if images.shared is not None:
        found.append(
            f"{images.shared:.0%} of the images' variance is common to all cells (same prompts and noise), "
            "and leaves their differences alone"
        )
    elif any(part.variance is not None for part in images.components):
        found.append("no influence values: cells count as if their images were independent, so effects come out small")
    if trainings.seeds == 1:
        found.append("one training seed: what another training would move counts as size, not as a source of its own")
    elif len(grid.seeds) == 1:
        found.append(f"the grid is of training seed {grid.seeds[0]}; the others' cells are what tells of seeds")
    return (*found, *sheet.left_out)
