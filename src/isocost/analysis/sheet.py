"""A results table as claims and laws read it: cells by what they are, with their scores on both halves of the prompts.

A claim compares cells by their *loss*: the logarithm of a score, so that differences are relative (0.01 is 1%), with
its sign turned where higher is better. A score that comes near 0 within its error (an unbiased KID may) has no useful
logarithm: its loss is its share of the table's median instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import CELL, COSTS, plain, resolve_metric, with_plans
from isocost.analysis.frames import DataFrame
from isocost.analysis.quantity import Quantity
from isocost.errors import SpecError
from isocost.scoring.protocols import one_protocol

SETTING = [name for name in CELL if name != "guidance_scale"]
PRETRAINED = "denoise"
DISTANCES = ("fd", "kid", "cmmd")  # what claims on FID can be judged by
HALVES = ("selection", "report")
ERRORS_FROM_ZERO = 4.0  # a score nearer to 0 than so many of its standard errors has no useful logarithm


class Missing(Exception):
    """What a claim needs and the table lacks, in words that end no sentence.

    `nothing`: the table has nothing of what the claim is about, so that another table's lack says more.
    """

    def __init__(self, what: str, nothing: bool = False):
        super().__init__(what)
        self.nothing = nothing


@dataclass(frozen=True)
class Score:
    """A cell's score by one metric on one half, of every training seed: values, keys of influence values, one a seed.

    `stderr`: of images alone, root mean square over seeds; NaN where there is none. `loss` and `slope`: the mean
    value's loss, and by how much that moves with the value.
    """

    member: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    keys: tuple[str, ...]
    stderr: float
    n: int
    loss: float
    slope: float


@dataclass(frozen=True, eq=False)
class Sheet:
    """`cells`: a row a plain cell (columns `CELL`, costs). `scores`: every score, by its number.

    `places`: (cell, metric, half) -> number of its score. `quality`: the metric that claims on FID are judged by.
    `one_half`: whether the table has no selection half, so that guidance is chosen on the images it is judged by.
    `left_out`: what could not be used, in sentences. Beside other sheets: `study`, its name; `start`, that of the study
    that trained what its members start from; `first`, what its scores are numbered on from in quantities.
    `all_seeds`: where it has only the cells that all training seeds have, how many those are.
    """

    cells: DataFrame
    scores: tuple[Score, ...]
    places: dict[tuple[int, str, str], int]
    quality: str
    metrics: tuple[str, ...]
    unit: str
    one_half: bool = False
    left_out: tuple[str, ...] = ()
    linear: frozenset[str] = field(default=frozenset())
    study: str = ""
    start: str = ""
    first: int = 0
    all_seeds: int = 0

    @classmethod
    def of(cls, table: DataFrame, metric: str | None = None, unit: str = "paper") -> Sheet:
        """Read a table: as `best_guidance` takes it, with `objective` where members were tuned or distilled.

        `metric`: what claims on FID are judged by; default: the Frechet distance, else KID. Raises `SpecError` for an
        empty table, an unknown metric, and scores of one metric by two protocols or against two references.
        """
        if table.empty:
            raise SpecError("the table is empty: no cell has a score yet. Run the study first.")
        quality = resolve_metric(table, metric or _default_metric(table))
        rows, one_half = _with_halves(plain(with_plans(_with_seed(table))))
        one_protocol(
            rows[["metric", *{"protocol", "reference"} & set(rows.columns)]].drop_duplicates().to_dict("records")
        )
        finite = np.isfinite(rows["value"].astype(float))
        left_out = _left_out(rows[~finite])
        rows = rows[finite].sort_values("n", ascending=False, kind="stable")
        rows = rows.drop_duplicates([*CELL, "seed", "metric", "split"])
        if rows.empty:
            raise SpecError("no plain cell has a finite score: claims have nothing to go by.")
        cell = rows.groupby(CELL, dropna=False, sort=False).ngroup().to_numpy()
        cells = rows.assign(cell=cell).drop_duplicates("cell").set_index("cell")
        cells = cells[[*CELL, *COSTS.values()]]
        scores, places, linear = _scores(rows.assign(cell=cell))
        metrics = tuple(rows["metric"].unique())
        left_out += _on_one_half(cells, places, quality)
        return cls(cells, scores, places, quality, metrics, unit, one_half, tuple(left_out), linear)

    # --- cells ---

    @cached_property
    def on_all_seeds(self) -> Sheet | None:
        """The cells that every training seed has; None where that is all of them, or none, or there is one seed."""
        most = max(len(score.seeds) for score in self.scores)
        fewer = {cell for (cell, _, _), number in self.places.items() if len(self.scores[number].seeds) < most}
        kept = self.cells.drop(index=list(fewer))
        if not fewer or kept.empty:
            return None
        places = {place: number for place, number in self.places.items() if place[0] not in fewer}
        return replace(self, cells=kept, places=places, all_seeds=most)

    @cached_property
    def chosen(self) -> DataFrame:
        """The cells at the guidance that is best, by `quality` on the selection half, of each setting."""
        losses = [self.seen(cell, self.quality) for cell in self.cells.index]
        ordered = self.cells.assign(seen=losses).sort_values(["seen", "guidance_scale"], kind="stable")
        ordered = ordered[np.isfinite(ordered["seen"])]
        return ordered.drop_duplicates(SETTING).sort_values(["params", "steps"], kind="stable")

    def final(self, objective: str = PRETRAINED, guidance: str = "best") -> DataFrame:
        """Cells of every member's last checkpoint under an objective, at the best guidance or (`"all"`) at each.

        Raises `Missing` where there are fewer than two members.
        """
        cells = self.trained(objective, guidance)
        cells = cells[cells["images_seen"] == cells.groupby("member")["images_seen"].transform("max")]
        if cells["member"].nunique() < 2:
            raise Missing(f"{_cells_of(objective)} of two members or more", nothing=cells.empty)
        return cells

    def trained(self, objective: str, guidance: str = "best") -> DataFrame:
        """Cells of every checkpoint under an objective."""
        cells = self.chosen if guidance == "best" else self.cells
        return cells[cells["objective"] == objective]

    def sampled(self, cells: DataFrame, sampler: str = "ddim") -> DataFrame:
        """Those by a sampler; where the table lacks DDIM altogether, by the sampler that has most cells."""
        found = cells[cells["sampler"] == sampler]
        if found.empty and sampler == "ddim" and len(cells):
            found = cells[cells["sampler"] == cells["sampler"].mode().iloc[0]]
        if found.empty:
            raise Missing(f"cells by the sampler {sampler}")
        return found

    def one_each(self, cells: DataFrame, steps: int | None = None) -> dict[str, int]:
        """member -> its cell at `steps`, smallest member first; None: the most steps, up to 50, that all members have.

        Raises `Missing` where fewer than two members have it.
        """
        if steps is None:
            steps = max(common_steps(cells, most=50))
        found = cells[cells["steps"] == steps].sort_values(["params", "width"], kind="stable")
        found = found.drop_duplicates("member")
        if len(found) < 2:
            raise Missing(f"cells of two members or more at {steps} steps")
        return dict(zip(found["member"], map(int, found.index), strict=True))

    def within(self, cells: DataFrame, budget: float) -> int | None:
        """The cell that the selection half calls best among those of at most this cost."""
        cost = cells[COSTS[self.unit]]
        affordable = cells.index[cost <= budget * (1 + 1e-9)]
        return min(map(int, affordable), key=lambda cell: self.seen(cell, self.quality), default=None)

    def cost(self, cell: int) -> float:
        return float(self.row(cell)[COSTS[self.unit]])

    def row(self, cell: int) -> dict[str, Any]:
        """What a cell is."""
        return self._records[cell]

    @cached_property
    def _records(self) -> dict[int, dict[str, Any]]:
        return dict(zip(self.cells.index, self.cells.to_dict("records"), strict=True))

    # --- scores ---

    def metric(self, *families: str) -> str:
        """The first of these metrics that the table has: `clip` -> `clip[scenes-clip-score]`. Raises `Missing`."""
        for family in families:
            for name in self.metrics:
                if name == family or name.partition("[")[0] == family or name.startswith(f"{family}-"):
                    return name
        raise Missing(f"scores by {' or '.join(families)}")

    def has(self, cell: int, metric: str) -> bool:
        return (cell, metric, "report") in self.places

    def loss(self, cell: int, metric: str | None = None) -> Quantity:
        """The loss of a cell on the report half (of the quality metric, unless told). Raises `Missing`."""
        number = self.places.get((cell, metric or self.quality, "report"))
        if number is None:
            raise Missing(f"{metric or self.quality} of {self.name(cell)}")
        score = self.scores[number]
        return Quantity(score.loss, {self.first + number: score.slope})

    def seen(self, cell: int, metric: str) -> float:
        """The loss of a cell on the selection half; infinite where it has none."""
        number = self.places.get((cell, metric, "selection"))
        return np.inf if number is None else self.scores[number].loss

    def cells_behind(self, numbers: Iterable[int]) -> set[int]:
        """The cells whose scores have these numbers in quantities; none for those of other sheets."""
        return {self._cell_of[number - self.first] for number in numbers if number - self.first in self._cell_of}

    @cached_property
    def _cell_of(self) -> dict[int, int]:
        return {number: cell for (cell, _, _), number in self.places.items()}

    def name(self, cell: int) -> str:
        row = self.row(cell)
        return f"{row['member']} at {int(row['steps'])} steps ({row['sampler']}, guidance {row['guidance_scale']:g})"


def members(cells: DataFrame) -> list[str]:
    """Names, smallest first."""
    return cells.sort_values(["params", "width"], kind="stable")["member"].drop_duplicates().tolist()


def common_steps(cells: DataFrame, least: int = 1, most: int = 10**9) -> list[int]:
    """Step counts from `least` to `most` that every member has. Raises `Missing` where there are none."""
    each = cells.groupby("member")["steps"].agg(set)
    common = sorted(int(steps) for steps in set.intersection(*each) if least <= steps <= most) if len(each) else []
    if not common:
        bounds = f" from {least}" * (least > 1) + f" up to {most}" * (most < 10**9)
        raise Missing(f"a number of steps{bounds} that all members share")
    return common


def _default_metric(table: DataFrame) -> str:
    known = list(table["metric"].unique())
    for family in DISTANCES:
        for name in known:
            if name.partition("[")[0] == family:
                return str(name)
    raise SpecError("no cell has a distance to references (fd, kid or cmmd): claims on FID are judged by one.")


def _cells_of(objective: str) -> str:
    return "cells" if objective == PRETRAINED else f"cells of objective {objective}"


def _with_seed(table: DataFrame) -> DataFrame:
    return table.assign(seed=table["seed"].fillna(-1) if "seed" in table else -1)


def _with_halves(rows: DataFrame) -> tuple[DataFrame, bool]:
    """Rows of the two halves; where a table has one set of images only, that is both."""
    halves = rows[rows["split"].isin(HALVES)]
    if not halves.empty and set(halves["split"]) == set(HALVES):
        return halves, False
    one = halves if not halves.empty else rows
    return pd.concat([one.assign(split=half) for half in HALVES], ignore_index=True), True


def _left_out(rows: DataFrame) -> list[str]:
    """Which scores are not finite: a sentence for each member and metric."""
    counts = rows.groupby(["member", "metric"], sort=False).size()
    return [
        f"{count} scores of {member} by {metric} are not finite: left out" for (member, metric), count in counts.items()
    ]


def _on_one_half(cells: DataFrame, places: dict[tuple[int, str, str], int], quality: str) -> list[str]:
    """Which cells have a score on one half only, and so can't be chosen or can't be judged: a sentence a member."""
    on = {half: {cell for cell, metric, at in places if (metric, at) == (quality, half)} for half in HALVES}
    counts = cells.loc[sorted(set.symmetric_difference(*on.values()))].groupby("member", sort=False).size()
    return [
        f"{count} cell{'s' * (count > 1)} of {member} without {quality} on one half of the prompts: left out"
        for member, count in counts.items()
    ]


def _scores(rows: DataFrame) -> tuple[tuple[Score, ...], dict[tuple[int, str, str], int], frozenset[str]]:
    """Scores over seeds, where each is, and the metrics whose loss is a share of the median."""
    rows = rows.sort_values(["cell", "metric", "split", "seed"], kind="stable")
    number = rows.groupby(["cell", "metric", "split"], sort=False).ngroup().to_numpy()
    starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
    ends, counts = np.r_[starts[1:], len(rows)].tolist(), np.diff(np.r_[starts, len(rows)])
    value, stderr = rows["value"].to_numpy(float), rows["stderr"].to_numpy(float)
    metrics = rows["metric"].to_numpy()
    linear = _without_logarithm(metrics, value, stderr)
    means = np.add.reduceat(value, starts) / counts
    errors = np.sqrt(np.add.reduceat(stderr**2, starts) / counts).tolist()
    least = np.minimum.reduceat(rows["n"].to_numpy(), starts).tolist()
    losses, slopes = _losses(metrics[starts], means, rows["higher_is_better"].to_numpy(bool)[starts], {
        metric: float(np.median(np.abs(value[metrics == metric]))) or 1.0 for metric in linear
    })  # fmt: skip
    columns = {name: rows[name].tolist() for name in ("cell", "metric", "split", "member", "seed", "score_key")}
    values = value.tolist()
    scores, places = [], {}
    for place, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        score = Score(
            member=str(columns["member"][start]),
            seeds=tuple(columns["seed"][start:end]),
            values=tuple(values[start:end]),
            keys=tuple(columns["score_key"][start:end]),
            stderr=errors[place],
            n=int(least[place]),
            loss=losses[place],
            slope=slopes[place],
        )
        scores.append(score)
        places[int(columns["cell"][start]), str(columns["metric"][start]), str(columns["split"][start])] = place
    return tuple(scores), places, frozenset(linear)


def _losses(
    metrics: np.ndarray, means: np.ndarray, higher: np.ndarray, scales: dict[str, float]
) -> tuple[list[float], list[float]]:
    """Loss of each mean value, and its derivative; `scales`: of the metrics that have no useful logarithm."""
    sign = np.where(higher, -1.0, 1.0)
    scale = np.array([scales.get(metric, np.nan) for metric in metrics])
    with np.errstate(divide="ignore", invalid="ignore"):  # of metrics in `scales` the logarithm is not taken
        loss = np.where(np.isnan(scale), sign * np.log(means), sign * means / scale)
        slope = np.where(np.isnan(scale), sign / means, sign / scale)
    return loss.tolist(), slope.tolist()


def _without_logarithm(metric: np.ndarray, value: np.ndarray, stderr: np.ndarray) -> set[str]:
    near_zero = value <= ERRORS_FROM_ZERO * np.nan_to_num(stderr)
    return set(metric[near_zero])


def neighbours(names: Sequence[str]) -> Iterable[tuple[str, str]]:
    return itertools.pairwise(names)
