"""Best guidance, cost-quality frontier and crossovers of a table of scored cells.

Every choice (guidance, and then member, sampler and steps) is made on the selection half of the prompts; every value
shown is from the report half. So no value is the luckiest of several looks at the same images, as it is where guidance
is picked on the images that are then scored (arXiv 2404.01367, section 3).

Differences are paired: prompt i and its noise are the same in every cell, so with IF the centred influence values of
a metric, SE(A - B) = sd(IF_A - IF_B) / sqrt(n), which is far below the SE of either value.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.frames import DataFrame, Series
from isocost.analysis.words import UNITS, compact, cost_name, full_label, metric_name, number, sampler_name, with_error
from isocost.errors import SpecError, did_you_mean, lookup

Influence = Callable[[str], np.ndarray | None]

Z95 = 1.959963984540054
COSTS = {"paper": "paper_cost", "gflops": "gflops_per_image", "seconds": "seconds_per_image"}
CHECKPOINT = ["member", "width", "params", "images_seen", "train_gflops"]
SETTING = [*CHECKPOINT, "sampler", "eta", "variance", "spacing", "steps"]
CELL = [*SETTING, "guidance_scale"]
NUMERIC = ["value", "stderr", "bias", *COSTS.values()]
AVERAGED = {
    "value": "mean", "bias": "mean", "n": "min", "valid": "all", "higher_is_better": "first", "evaluations": "first",
    "gflops_per_image": "mean", "paper_cost": "mean", "seconds_per_image": "mean", "sample_key": "first",
    "score_key": "first",
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """The best-of-guidance cell of each (checkpoint, sampler, steps); with `keep_unguided`, the unguided one too.

    `rows`: one row a cell, cheapest first: the columns of the study's table (`value`, `stderr`, costs ... of the report
    half) and `selection_value` (the metric on the selection half), `select_score` (the `select_by` metric there),
    `guidances` (how many scales were compared), `low` and `high` (95% interval), `seeds` and `score_keys` (tuples,
    one entry a training seed), `seed_variance` (of the mean over seeds; 0 for one seed) and `checkpoint` (its name).
    `left_out` names each score that could not be used, and why.
    """

    rows: DataFrame
    metric: str
    select_by: str
    higher_is_better: bool
    left_out: tuple[str, ...] = ()

    @property
    def members(self) -> list[str]:
        """Member names, smallest first."""
        return members_by_size(self.rows)

    @property
    def sign(self) -> float:
        """Multiply a value by this and lower is better."""
        return -1.0 if self.higher_is_better else 1.0

    def of_member(self, member: str) -> DataFrame:
        return self.rows[self.rows["member"] == member]


@dataclass(frozen=True)
class Frontier:
    """The cells that beat every cheaper one on the selection half.

    `points`: rows of `Cells.rows`, by cost, with `cost`, `ties` (tuple of row indices into `cells.rows`: the cells at
    no greater cost that are not significantly worse, 95%) and `paired` (whether those differences are paired).
    """

    points: DataFrame
    cells: Cells
    unit: str


@dataclass(frozen=True)
class Crossover:
    """Where a larger member overtakes its smaller neighbour as the budget per image grows.

    `kind`: "from" (at `budget` and above), "always" (wherever it is affordable) or "none" (not at this scale).
    `difference` = larger - smaller in the metric's own units at `budget` (for "none": at the largest budget), with its
    95% `interval`; `decided`: whether that interval excludes 0. `decided_from`: the cheapest budget from which the
    interval decides for the larger member at every larger budget too.
    """

    smaller: str
    larger: str
    unit: str
    kind: str
    budget: float
    difference: float
    interval: tuple[float, float] | None
    decided: bool
    decided_from: float | None
    sentence: str


def members_by_size(table: DataFrame) -> list[str]:
    """Member names of a table, fewest parameters first."""
    sizes = table[["member", "params", "width"]].drop_duplicates("member")
    return sizes.sort_values(["params", "width", "member"])["member"].tolist()


def cost_column(unit: str) -> str:
    """Column of the table that holds a cost unit. Raises `SpecError` for an unknown unit."""
    return lookup(COSTS, unit, "cost unit")


def resolve_metric(table: DataFrame, name: str) -> str:
    """The table's full name of a metric: `fd` -> `fd[scenes-clip-score-32]` where only one metric starts so."""
    if table.empty:
        raise SpecError("the table is empty: no cell has a score yet. Run the study first.")
    known = sorted(table["metric"].unique())
    matches = [name] if name in known else [metric for metric in known if metric.startswith(f"{name}[")]
    if len(matches) > 1:
        raise SpecError(f"metric '{name}' could be any of {', '.join(matches)}: give the full name.")
    if not matches:
        raise SpecError(f"no cell has the metric '{name}'.{did_you_mean(name, known)}")
    return matches[0]


def filtered(table: DataFrame, filters: Mapping[str, Any] | None) -> DataFrame:
    """Rows whose columns hold the wanted values: `{"sampler": "ddim", "member": ["c8", "c16"]}`."""
    for column, wanted in (filters or {}).items():
        if column not in table.columns:
            raise SpecError(f"cannot filter by '{column}'.{did_you_mean(column, map(str, table.columns))}")
        values = list(wanted) if isinstance(wanted, Collection) and not isinstance(wanted, str) else [wanted]
        kept = table[table[column].isin(values)]
        if kept.empty and not table.empty:
            known = ", ".join(map(str, sorted(table[column].dropna().unique())))
            raise SpecError(f"no cell has {column} {' or '.join(map(str, values))}. Known: {known}.")
        table = kept
    return table


def grid_cells(table: DataFrame) -> DataFrame:
    """Cells of the sampling grid: those off the training curve, and any cell of a member's last checkpoint, once.

    Where a cell was scored again on more images, the score from most images counts.
    """
    last = table.groupby("member")["images_seen"].transform("max")
    rows = table[~table["curve"].astype(bool) | (table["images_seen"] == last)]
    most_images = rows.sort_values("n", ascending=False, kind="stable")
    return most_images.drop_duplicates([*CELL, "seed", "metric", "split"]).sort_index()


def mean_over_seeds(rows: DataFrame) -> DataFrame:
    """One row a cell, metric and split: the mean over training seeds.

    Images of several seeds share prompts and noise, so image errors are taken as fully correlated, and the variance
    between seeds is added: SE^2 = mean(SE^2) + var(values) / seeds. `sample_key` and `score_key` are the first seed's.
    """
    if rows["seed"].nunique() <= 1:
        return each_seed(rows)
    by = [*CELL, "split", "metric"]
    groups = rows.sort_values("seed").groupby(by, dropna=False, sort=False)
    mean = groups.agg(AVERAGED)
    mean["seeds"] = groups["seed"].agg(tuple)
    mean["score_keys"] = groups["score_key"].agg(tuple)
    mean["seed_variance"] = (groups["value"].var(ddof=1) / groups["value"].size()).fillna(0.0)
    image_variance = groups["stderr"].agg(lambda stderr: np.mean(np.square(stderr)))
    mean["stderr"] = np.sqrt(image_variance + mean["seed_variance"])
    return mean.reset_index()


def each_seed(rows: DataFrame) -> DataFrame:
    """The columns that `mean_over_seeds` adds, with each seed kept apart."""
    seeds = [(seed,) for seed in rows["seed"]]
    return rows.assign(seeds=seeds, score_keys=[(key,) for key in rows["score_key"]], seed_variance=0.0)


def best_guidance(
    table: DataFrame,
    metric: str,
    select_by: str | None = None,
    filters: Mapping[str, Any] | None = None,
    average_seeds: bool = True,
    keep_unguided: bool = False,
) -> Cells:
    """The best guidance scale of each (checkpoint, sampler, steps), chosen on one half and reported on the other.

    `table`: a study's tidy table, one row a (cell, metric, split). The scale is chosen by `select_by` (default: the
    metric itself) on split "selection"; values, errors and intervals are of `metric` on split "report". Training seeds
    are averaged first, unless `average_seeds` is False. With `keep_unguided` the cell at scale 1 stays beside the best
    guided one: it needs half the evaluations, so under an honest cost the two are different offers. Scores that are
    NaN, and cells without both halves, are left out and named. Raises `SpecError` where nothing is left.
    """
    metric = resolve_metric(table, metric)
    select_by = resolve_metric(table, select_by or metric)
    rows = grid_cells(filtered(table, filters))
    rows = rows[rows["metric"].isin({metric, select_by}) & rows["split"].isin({"selection", "report"})]
    rows, left_out = _finite(rows)
    rows = mean_over_seeds(rows) if average_seeds else each_seed(rows)
    on = CELL if average_seeds else [*CELL, "seed"]
    cells, missing = _joined_halves(rows, metric, select_by, on)
    if cells.empty:
        reason = f" Left out: {left_out[0]}." if left_out else ""
        raise SpecError(f"no cell has {metric} on both halves of the prompts (selection and report).{reason}")
    higher = {name: bool(part["higher_is_better"].iloc[0]) for name, part in rows.groupby("metric")}
    loss = cells["select_score"] * (-1.0 if higher[select_by] else 1.0)
    by = [column for column in on if column != "guidance_scale"] + (["guided"] if keep_unguided else [])
    ordered = cells.assign(loss=loss, guided=cells["guidance_scale"] != 1).sort_values(["loss", "guidance_scale"])
    groups = ordered.groupby(by, dropna=False, sort=False)
    best = groups.head(1).drop(columns=["loss", "guided"])
    best = best.assign(guidances=groups["guidance_scale"].transform("size").loc[best.index])
    half_width = Z95 * best["stderr"]
    best = best.assign(low=best["value"] - half_width, high=best["value"] + half_width, checkpoint=_checkpoints(best))
    best = best.sort_values(["params", "paper_cost", "sampler"], kind="stable").reset_index(drop=True)
    known = tuple(f"{name.partition(', seed ')[0]}:" for name in left_out)  # a NaN score is named once, as such
    missing = [name for name in missing if not name.startswith(known)] if known else missing
    return Cells(best, metric, select_by, higher[metric], tuple(left_out + missing))


def frontier(cells: Cells, unit: str = "paper", influence: Influence | None = None) -> Frontier:
    """The cost-quality frontier under a cost unit ("paper", "gflops" or "seconds").

    `influence`: score_key -> centred influence values [n] of the metric, or None where they are not stored; without it
    differences are taken as unpaired, which widens them.
    """
    rows = affordable(cells, unit)
    loss = cells.sign * rows["selection_value"]
    ordered = rows.assign(loss=loss).sort_values(["cost", "loss"], kind="stable")
    cheaper_best = ordered["loss"].cummin().shift(fill_value=np.inf)
    points = ordered[ordered["loss"] < cheaper_best].drop(columns="loss")
    compare = comparer(influence)
    ties = [tied(point, rows[rows["cost"] <= point["cost"]], cells.sign, compare) for _, point in points.iterrows()]
    points = points.assign(ties=[found for found, _ in ties], paired=[paired for _, paired in ties])
    return Frontier(points, cells, unit)


def affordable(cells: Cells, unit: str, limit: float = np.inf) -> DataFrame:
    """Rows of `cells` with a known `cost` of at most `limit`, cheapest first.

    Raises `SpecError` that names the cheapest cell where even that costs more, or where no cell has this cost.
    """
    column = cost_column(unit)
    rows = cells.rows.assign(cost=cells.rows[column].astype(float))
    rows = rows[np.isfinite(rows["cost"])].sort_values("cost", kind="stable")
    if rows.empty:
        raise SpecError(f"no cell has a known cost in {UNITS[unit]} ({column}): choose another of {', '.join(COSTS)}.")
    within = rows[rows["cost"] <= limit * (1 + 1e-9)]
    if within.empty:
        cheapest = rows.iloc[0]
        raise SpecError(
            f"budget of {cost_name(limit, unit)} per image is below the cheapest cell: {full_label(cheapest)}, "
            f"costs {number(cheapest['cost'])}. Raise the limit to that."
        )
    return within


Compare = Callable[[Series, DataFrame], tuple[np.ndarray, np.ndarray, np.ndarray]]


def comparer(influence: Influence | None) -> Compare:
    """compare(cell, others) -> (difference others - cell [m], its SE [m], paired [m] bool), influence arrays cached."""
    stored = functools.cache(influence or (lambda score_key: None))

    @functools.cache
    def of(score_keys: tuple[str, ...]) -> np.ndarray | None:
        arrays = [stored(key) for key in score_keys]
        if any(array is None for array in arrays) or len({len(array) for array in arrays if array is not None}) != 1:
            return None
        return np.mean(np.asarray(arrays, dtype=np.float64), axis=0)

    def standard_error(cell: Series, score_keys: tuple, stderr: float, seed_variance: float) -> tuple[float, bool]:
        a, b = of(cell["score_keys"]), of(score_keys)
        if a is None or b is None or len(a) != len(b):
            return float(np.hypot(cell["stderr"], stderr)), False
        image_variance = np.var(a - b, ddof=1) / len(a)
        return float(np.sqrt(image_variance + cell["seed_variance"] + seed_variance)), True

    def compare(cell: Series, others: DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = zip(others["score_keys"], others["stderr"], others["seed_variance"], strict=True)
        errors = [standard_error(cell, *values) for values in columns]
        difference = others["value"].to_numpy(float) - float(cell["value"])
        return difference, np.array([se for se, _ in errors]), np.array([paired for _, paired in errors], dtype=bool)

    return compare


def tied(winner: Series, others: DataFrame, sign: float, compare: Compare) -> tuple[tuple[int, ...], bool]:
    """Indices of the `others` that are not significantly worse than `winner` (95%), and whether all were paired.

    A cell without an error estimate ties only where its value is as good.
    """
    others = others.drop(index=winner.name, errors="ignore")
    difference, stderr, paired = compare(winner, others)
    worse = sign * difference - Z95 * np.nan_to_num(stderr) > 0
    return tuple(others.index[~worse]), bool(paired.all()) and len(others) > 0


def best_within(rows: DataFrame, budgets: np.ndarray, sign: float) -> list[int]:
    """Row index of the cell that is best on the selection half at a cost within each budget (rows have `cost`)."""
    ordered = rows.assign(loss=sign * rows["selection_value"]).sort_values(["cost", "loss"], kind="stable")
    better = ordered["loss"] < ordered["loss"].cummin().shift(fill_value=np.inf)
    envelope = ordered[better]
    places = np.searchsorted(envelope["cost"].to_numpy(), budgets * (1 + 1e-9), side="right") - 1
    return [int(envelope.index[place]) for place in places]


def curves(cells: Cells, unit: str = "paper") -> dict[tuple[str, str], DataFrame]:
    """(checkpoint name, sampler name with its settings) -> its cells by cost: best-of-guidance quality against cost."""
    rows = affordable(cells, unit)
    keys = [(row["checkpoint"], sampler_name(row)) for row in rows.to_dict("records")]
    found = {key: rows[[other == key for other in keys]] for key in dict.fromkeys(keys)}
    size = {name: place for place, name in enumerate(cells.rows["checkpoint"].drop_duplicates())}
    return dict(sorted(found.items(), key=lambda item: (size[item[0][0]], item[0][1])))


def crossovers(cells: Cells, unit: str = "paper", influence: Influence | None = None) -> list[Crossover]:
    """Where each member is overtaken by the next larger one, as the budget grows."""
    rows, compare = affordable(cells, unit), comparer(influence)
    names = members_by_size(rows)
    return [_crossover(cells, rows, unit, compare, *pair) for pair in itertools.pairwise(names)]


def _crossover(cells: Cells, rows: DataFrame, unit: str, compare: Compare, smaller: str, larger: str) -> Crossover:
    small, large = rows[rows["member"] == smaller], rows[rows["member"] == larger]
    budgets = np.union1d(small["cost"], large["cost"])
    budgets = budgets[budgets >= max(small["cost"].min(), large["cost"].min())]
    pairs = zip(best_within(small, budgets, cells.sign), best_within(large, budgets, cells.sign), strict=True)
    differences, errors = zip(*(_pair(compare, rows, *pair) for pair in pairs), strict=True)
    gain = -cells.sign * np.array(differences)  # positive: the larger member is better
    half_width = Z95 * np.array(errors)
    better = _from_here_on(gain > 0)
    decides = _from_here_on(gain - half_width > 0)
    place = int(np.argmax(better)) if better.any() else len(budgets) - 1
    kind = "none" if not better.any() else "always" if better.all() else "from"
    difference, width = float(differences[place]), float(half_width[place])
    crossover = {
        "smaller": smaller,
        "larger": larger,
        "unit": unit,
        "kind": kind,
        "budget": float(budgets[place]),
        "difference": difference,
        "interval": (difference - width, difference + width) if np.isfinite(width) else None,
        "decided": bool(abs(difference) > width),
        "decided_from": float(budgets[np.argmax(decides)]) if decides.any() else None,
    }
    return Crossover(**crossover, sentence=_crossover_sentence(crossover, cells.metric, float(small["cost"].max())))


def _pair(compare: Compare, rows: DataFrame, small: int, large: int) -> tuple[float, float]:
    difference, stderr, _ = compare(rows.loc[small], rows.loc[[large]])
    return float(difference[0]), float(stderr[0])


def _from_here_on(flags: np.ndarray) -> np.ndarray:
    """True where this and every later flag is True."""
    return np.logical_and.accumulate(flags[::-1])[::-1]


def _crossover_sentence(found: Mapping[str, Any], metric: str, small_up_to: float) -> str:
    smaller, larger, unit = found["smaller"], found["larger"], found["unit"]
    interval, later, decided = found["interval"], found["decided_from"], found["decided"]
    half_width = None if interval is None else (interval[1] - interval[0]) / 2
    side = "lower" if found["difference"] < 0 else "higher"
    gap = f"its {metric_name(metric)} there is {side} by {with_error(abs(found['difference']), half_width)}"
    verdict = "which decides" if decided else "which does not decide"
    at = cost_name(found["budget"], unit)
    if found["kind"] == "none":
        return f"{larger} does not overtake {smaller} at this scale, up to {at}: {gap}, {verdict}."
    start = f"{larger} overtakes {smaller} at {at}"
    if found["kind"] == "always":
        start = f"{larger} is ahead of {smaller} wherever both can be afforded, from {at}"
    if not decided:
        verdict += f"; from {cost_name(later, unit)} on it does" if later else ", nor does any larger budget"
    beyond = f" {smaller} was measured up to {number(small_up_to)} only." if found["budget"] > small_up_to else ""
    return f"{start}: {gap}, {verdict}.{beyond}"


def _finite(rows: DataFrame) -> tuple[DataFrame, list[str]]:
    """Rows with a finite value, and the names of the others."""
    rows = rows.assign(**{name: rows[name].astype(float) for name in NUMERIC})  # a column of None alone is not float
    finite = np.isfinite(rows["value"])
    named = [
        f"{full_label(row)}, seed {row['seed']}: {row['metric']} on the {row['split']} half is {row['value']}"
        for row in rows[~finite].to_dict("records")
    ]
    return rows[finite], named


def _joined_halves(rows: DataFrame, metric: str, select_by: str, on: list[str]) -> tuple[DataFrame, list[str]]:
    """Report rows of `metric` with what the selection half says of the same cell, and the cells that lack a half."""

    def part(name: str, split: str) -> DataFrame:
        return rows[(rows["metric"] == name) & (rows["split"] == split)]

    report = part(metric, "report")
    chosen = part(metric, "selection")[[*on, "value"]].rename(columns={"value": "selection_value"})
    score = part(select_by, "selection")[[*on, "value"]].rename(columns={"value": "select_score"})
    joined = report.merge(chosen, on=on, how="outer").merge(score, on=on, how="left")
    whole = joined["value"].notna() & joined["selection_value"].notna() & joined["select_score"].notna()
    missing = []
    for row in joined[~whole].to_dict("records"):
        lacking = [
            f"{name} on the {split} half"
            for name, split, field in (
                (metric, "report", "value"), (metric, "selection", "selection_value"),
                (select_by, "selection", "select_score"),
            )
            if pd.isna(row[field])
        ]  # fmt: skip
        missing.append(f"{full_label(row)}: lacks {' and '.join(dict.fromkeys(lacking))}")
    return joined[whole].reset_index(drop=True), missing


def _checkpoints(rows: DataFrame) -> list[str]:
    """Names of checkpoints: the member's, with images seen where it has several, and the seed where kept apart."""
    several = rows.groupby("member")["images_seen"].transform("nunique") > 1
    apart = rows["seeds"].map(len).eq(1) & (rows.groupby("member")["seeds"].transform("nunique") > 1)
    names = []
    for row, many, own in zip(rows.to_dict("records"), several, apart, strict=True):
        images, seed = f"@{compact(row['images_seen'])}" if many else "", f" seed {row['seeds'][0]}" if own else ""
        names.append(f"{row['member']}{images}{seed}")
    return names
