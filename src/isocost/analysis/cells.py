"""The cells of a table that are worth a look: each (checkpoint, sampler, steps) at its best guidance.

Every choice (guidance, and then member, sampler and steps) is made on the selection half of the prompts; every value
shown is from the report half. So no value is the luckiest of several looks at the same images, as it is where guidance
is picked on the images that are then scored (arXiv 2404.01367, section 3).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.frames import DataFrame, Series
from isocost.analysis.words import ACTS_AT_1, UNITS, compact, cost_name, full_label, is_guided, number
from isocost.errors import SpecError, did_you_mean, lookup
from isocost.scoring.protocols import one_protocol
from isocost.specs import DISTILLED

Z95 = 1.959963984540054
COSTS = {"paper": "paper_cost", "gflops": "gflops_per_image", "seconds": "seconds_per_image"}
CHECKPOINT = ["member", "objective", "width", "params", "images_seen", "train_gflops"]
# What tells a plan from a plain one, and what it is there: one checkpoint, guided by the empty prompt all the way, each
# image the only candidate. Tables made before these columns were hold plain cells only.
PLAIN = {
    "stages": "", "guidance_mode": "cfg", "guidance_interval": "", "guide": "", "best_of": 1, "scorer": "",
}  # fmt: skip
SETTING = [*CHECKPOINT, "sampler", "eta", "variance", "spacing", "steps", *PLAIN]
CELL = [*SETTING, "guidance_scale"]
NUMERIC = ["value", "stderr", "bias", *COSTS.values()]
AVERAGED = {
    "value": "mean", "bias": "mean", "n": "min", "valid": "all", "higher_is_better": "first", "evaluations": "first",
    "gflops_per_image": "mean", "paper_cost": "mean", "seconds_per_image": "mean", "seconds_as": "first",
    "sample_key": "first", "score_key": "first",
}  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """The best-of-guidance cell of each (checkpoint, sampler, steps); with `keep_unguided`, the unguided one too.

    Stitched checkpoints and their shares, ways of guiding and best-of-n are told apart as samplers are.

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
        """Member names, smallest first; pairs that share a trajectory are none."""
        return members_by_size(self.rows[self.rows["stages"] == ""])

    @property
    def plain(self) -> DataFrame:
        """Rows of plain plans (`PLAIN`)."""
        return plain(self.rows)

    @property
    def sign(self) -> float:
        """Multiply a value by this and lower is better."""
        return -1.0 if self.higher_is_better else 1.0

    def of_member(self, member: str) -> DataFrame:
        return self.rows[self.rows["member"] == member]


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
    NaN, and cells without both halves, are left out and named. Raises `SpecError` where nothing is left, and where
    scores of one metric are by two protocols or against two references.
    """
    metric = resolve_metric(table, metric)
    select_by = resolve_metric(table, select_by or metric)
    table = with_plans(table)
    table = table.assign(guiding=guiding(table)) if "guiding" in (filters or {}) else table
    rows = grid_cells(filtered(table, filters)).drop(columns="checkpoint", errors="ignore")
    rows = rows[rows["metric"].isin({metric, select_by}) & rows["split"].isin({"selection", "report"})]
    one_protocol(rows[["metric", *{"protocol", "reference"} & set(rows.columns)]].drop_duplicates().to_dict("records"))
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
    guided = [is_guided(cell) for cell in cells[["guidance_scale", "guidance_mode"]].to_dict("records")]
    ordered = cells.assign(loss=loss, guided=guided).sort_values(["loss", "guidance_scale"])
    groups = ordered.groupby(by, dropna=False, sort=False)
    best = groups.head(1).drop(columns=["loss", "guided"])
    best = best.assign(guidances=groups["guidance_scale"].transform("size").loc[best.index])
    half_width = Z95 * best["stderr"]
    best = best.assign(low=best["value"] - half_width, high=best["value"] + half_width, checkpoint=_checkpoints(best))
    best = best.sort_values(["params", "paper_cost", "sampler"], kind="stable").reset_index(drop=True)
    known = tuple(f"{name.partition(', seed ')[0]}:" for name in left_out)  # a NaN score is named once, as such
    missing = [name for name in missing if not name.startswith(known)] if known else missing
    return Cells(best, metric, select_by, higher[metric], tuple(left_out + missing))


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


def members_by_size(table: DataFrame) -> list[str]:
    """Member names of a table, fewest parameters first (a guide's, where a member has one, not counted)."""
    sizes = table.groupby("member", as_index=False)[["params", "width"]].min()
    return sizes.sort_values(["params", "width", "member"])["member"].tolist()


def with_plans(table: DataFrame) -> DataFrame:
    """The table with all columns of `PLAIN`, and `objective`, which those made before lack, in part or whole."""
    columns = {"objective": "denoise", **PLAIN}
    filled = {name: table[name].fillna(value) if name in table else value for name, value in columns.items()}
    return table.assign(**filled).astype({"best_of": int})


def guiding(table: DataFrame) -> Series:
    """How each row is guided, as filters name it: "none", or its mode, and " interval" where that is limited to one."""
    mode = table["guidance_mode"].astype(object)
    mode = mode.where(table["guidance_interval"] == "", mode + " interval")
    acts = (table["guidance_scale"] != 1) | table["guidance_mode"].isin(ACTS_AT_1)
    return mode.where(acts, "none")


def plain(table: DataFrame) -> DataFrame:
    """Rows of plain plans. A scale that is embedded in a checkpoint is the plain way to guide that one."""
    table = with_plans(table)
    ways = table.assign(guidance_mode=table["guidance_mode"].replace("embedded", PLAIN["guidance_mode"]))
    return table[np.logical_and.reduce([ways[name] == value for name, value in PLAIN.items()])]


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
    """Names of checkpoints: the member's, that it is distilled, images seen where there are several of it, and the seed
    where kept apart."""
    several = rows.groupby(["member", "objective"])["images_seen"].transform("nunique") > 1
    apart = rows["seeds"].map(len).eq(1) & (rows.groupby("member")["seeds"].transform("nunique") > 1)
    names = []
    records = rows[["member", "objective", "images_seen", "seeds"]].to_dict("records")
    for row, many, own in zip(records, several, apart, strict=True):
        images, seed = f"@{compact(row['images_seen'])}" if many else "", f" seed {row['seeds'][0]}" if own else ""
        distilled = " distilled" if row["objective"] in DISTILLED else ""
        names.append(f"{row['member']}{distilled}{images}{seed}")
    return names
