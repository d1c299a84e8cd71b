"""The figures of a study, from its table. Figure numbers are those of arXiv 2404.01367."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from isocost.analysis.cells import CELL, Z95, Cells, affordable, cost_column, members_by_size, plain, with_plans
from isocost.analysis.frames import DataFrame
from isocost.analysis.frontier import Frontier, curves
from isocost.analysis.words import COST_AXES, full_label, metric_name, number, of_any_seed, sampler_name
from isocost.reporting.plots import DASHES, PALETTE, Bars, Chart, Map, Series, spread

CURVE_STEPS = 50  # of a training curve that was taken at several, the paper's
TICKS, COLUMNS = 10, 12  # of step counts that fit on an axis, and in a map


def training_curve(table: DataFrame, metric: str) -> Chart | None:
    """Fig 3: quality against training compute, one curve a size; None where the study kept no training curve.

    Nothing is chosen along this curve, so all prompts are used where the table has them.
    """
    table = plain(table)
    rows = table[table["curve"].astype(bool) & (table["metric"] == metric) & np.isfinite(table["value"].astype(float))]
    rows = rows[np.isfinite(rows["train_gflops"].astype(float))]
    rows = rows[rows["split"] == ("all" if (rows["split"] == "all").any() else "report")]
    if rows.empty:
        return None
    rows = rows[rows["steps"] == (CURVE_STEPS if (rows["steps"] == CURVE_STEPS).any() else rows["steps"].max())]
    sizes = members_by_size(table)
    series = []
    for member in members_by_size(rows):
        points = _seed_means(rows[rows["member"] == member].sort_values("train_gflops"), "train_gflops")
        text = [f"{member}, {number(images)} images seen" for images in points["images_seen"]]
        series.append(_series(member, points["train_gflops"], points, sizes.index(member), text=text))
    return Chart("Quality against training compute", "training GFLOPs", metric_name(metric), tuple(series))


LOSS_POINTS = 60  # of a loss curve, evenly spaced in the logarithm of compute


def loss_by_compute(losses: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Chart | None:
    """Training loss against training compute, one curve a run: its name -> (GFLOPs so far, loss) of every step.

    A point is the mean of the steps since the point before it, at their mean compute: losses of single steps are noise.
    """
    series = []
    for slot, (name, (gflops, loss)) in enumerate(losses.items()):
        if not len(gflops):
            continue
        edges = np.geomspace(gflops[0], gflops[-1] * (1 + 1e-9), LOSS_POINTS + 1)
        steps = pd.DataFrame({"gflops": gflops, "loss": loss}).groupby(np.searchsorted(edges, gflops, side="right"))
        means = pd.DataFrame(steps.mean())
        series.append(Series(name, means["gflops"].tolist(), means["loss"].tolist(), slot=slot))
    if not series:
        return None
    return Chart("Training loss against training compute", "training GFLOPs", "loss", tuple(series), True, True)


def steps_by_guidance(table: DataFrame, metric: str, member: str, sampler: str) -> Chart | None:
    """Fig 8 left: quality against steps at one size, one curve a guidance scale (report half; nothing is chosen)."""
    table = plain(table).drop(columns="checkpoint", errors="ignore")
    rows = table[(table["metric"] == metric) & (table["member"] == member) & (table["sampler"] == sampler)]
    rows = rows[rows["images_seen"] == rows["images_seen"].max()]
    rows = rows[(rows["split"] == "report") & np.isfinite(rows["value"].astype(float))]
    if rows.empty:
        return None
    series = []
    scales = sorted(rows["guidance_scale"].unique())
    shown = spread(scales, len(PALETTE))
    for slot, scale in enumerate(shown):
        points = _seed_means(rows[rows["guidance_scale"] == scale].sort_values("steps"), "steps")
        text = [full_label(row) for row in points.to_dict("records")]
        name = "none" if scale == 1 else number(float(scale))
        series.append(_series(name, points["steps"], points, slot, text=text))
    of_all = f" ({len(shown)} of {len(scales)})" if len(shown) < len(scales) else ""
    title = f"{member}, {sampler_name(rows.iloc[0])}, by guidance scale{of_all}"
    return Chart(title, "steps", metric_name(metric), tuple(series), True, _is_wide(rows), _steps(rows))


def guidance_map(cells: Cells, sampler: str) -> Map | None:
    """Fig 8 right: the best guidance scale over (size, steps), as chosen on the selection half."""
    rows = cells.plain[cells.plain["sampler"] == sampler]
    if rows.empty:
        return None
    rows = rows.sort_values("seeds", key=lambda seeds: -seeds.map(len), kind="stable")  # of more training seeds first
    rows = rows.assign(checkpoint=rows["checkpoint"].map(of_any_seed)).drop_duplicates(["checkpoint", "steps"])
    best = rows.pivot(index="checkpoint", columns="steps", values="guidance_scale")
    counts = list(best.columns)
    order = [name for name in _slots(cells) if name in best.index]
    best = best.reindex(order)[list(spread(counts, COLUMNS))]
    of_all = f" ({best.shape[1]} of {len(counts)} step counts)" if best.shape[1] < len(counts) else ""
    title = f"Best guidance, {sampler_name(rows.iloc[0])}{of_all}"
    steps = tuple(str(int(count)) for count in best.columns)
    return Map(title, "steps", "size", steps, tuple(best.index), best.to_numpy(float))


def cost_by_steps(cells: Cells, unit: str) -> Chart | None:
    """Fig 9 left: sampling cost against steps, one curve a size (each plain cell at its best guidance)."""
    rows = plain(affordable(cells, unit))
    if rows.empty:
        return None
    first = rows["sampler"].iloc[0]
    rows = rows[rows["sampler"] == first].assign(checkpoint=rows["checkpoint"].map(of_any_seed))
    rows = rows.drop_duplicates(["checkpoint", "steps"]).sort_values("steps")
    series = tuple(
        Series(name, part["steps"].tolist(), part["cost"].tolist(), slot=slot)
        for slot, name in enumerate(_slots(cells))
        if len(part := rows[rows["checkpoint"] == name])
    )
    title = f"Sampling cost, {sampler_name(rows.iloc[0])}"
    return Chart(title, "steps", COST_AXES[unit], series, True, True, _steps(rows))


def quality_by_cost(cells: Cells, unit: str) -> Chart:
    """Fig 9 right (and 11): best-of-guidance quality against sampling cost, one curve a size and sampler."""
    slots = _slots(cells)
    found = curves(cells, unit)
    samplers = list(dict.fromkeys(sampler for _, sampler in found))
    series = []
    for (name, sampler), rows in found.items():
        text = [full_label(row) for row in rows.to_dict("records")]
        kind = "points" if (rows["stages"] != "").any() else "line"  # shares and steps lie on no one curve
        slot = slots.index(of_any_seed(name))
        curve = _series(name, rows["cost"], rows, slot, samplers.index(sampler), text, kind)
        first = name not in {other.name for other in series}
        series.append(replace(curve, in_legend=first, faint=_is_of_one_seed(name, cells)))
    key = ", ".join(f"{sampler} {DASHES[k % len(DASHES)][0]}" for k, sampler in enumerate(samplers))
    title = "Quality against sampling cost" + (f"\n({key})" if len(samplers) > 1 else "")
    title += "\nfaint: of one training seed" if any(curve.faint for curve in series) else ""
    return Chart(title, COST_AXES[unit], metric_name(cells.metric), tuple(series), log_y=_is_wide(cells.rows))


def frontier_chart(front: Frontier) -> Chart:
    """Every cell at its best guidance, and the frontier as a staircase: the best quality each budget buys."""
    cells, unit = front.cells, front.unit
    rows = affordable(cells, unit)
    series, slots = [], _slots(cells)
    for name, part in _in_order(rows, cells):
        text = [full_label(row) for row in part.to_dict("records")]
        points = _series(name, part["cost"], part, slots.index(of_any_seed(name)), text=text, kind="points")
        series.append(replace(points, faint=_is_of_one_seed(name, cells)))
    text = [full_label(row) for row in front.points.to_dict("records")]
    series.append(_series("frontier", front.points["cost"], front.points, 0, text=text, kind="frontier"))
    labels = COST_AXES[unit], metric_name(cells.metric)
    return Chart("Best quality for a budget", *labels, tuple(series), log_y=_is_wide(cells.rows))


def best_cell_of_members(cells: Cells) -> DataFrame:
    """Each member's best cell at any cost (chosen on the selection half), smallest member first."""
    loss = cells.sign * cells.rows["selection_value"]
    return cells.rows.loc[loss.groupby(cells.rows["checkpoint"], sort=False).idxmin()]


def accuracy_bars(
    table: DataFrame, cells: Cells, baselines: Mapping[str, Mapping[str, float]] | None = None
) -> Bars | None:
    """Caption accuracy by attribute of each member's best cell, report half; None where accuracy was not scored.

    `baselines`: attribute ("overall" for all at once) -> {"chance": share, "ceiling": share}, the ceiling being what
    real images score after a pass through the autoencoder.
    """
    table = with_plans(table)
    rows = table[table["metric"].str.fullmatch(r"accuracy(/.*)?") & (table["split"] == "report")]
    rows = rows[np.isfinite(rows["value"].astype(float))].assign(attribute=rows["metric"].map(attribute_name))
    if rows.empty:
        return None
    attributes = tuple(sorted(rows["attribute"].unique(), key=lambda name: (name != "overall", name)))
    series = []
    for slot, cell in enumerate(best_cell_of_members(cells).to_dict("records")):
        same = np.logical_and.reduce(
            [(rows[name] == cell[name]) | (rows[name].isna() & pd.isna(cell[name])) for name in CELL]
        )
        part = rows[same & rows["seed"].isin(cell["seeds"])]
        found = _seed_means(part.drop_duplicates(["seed", "metric"]), "attribute").set_index("attribute")
        found = found.reindex(attributes)
        text = [full_label(cell)] * len(attributes)
        series.append(_series(cell["checkpoint"], attributes, found, slot, text=text, kind="bar"))
    levels = {
        name: tuple(float((baselines or {}).get(attribute, {}).get(name, math.nan)) for attribute in attributes)
        for name in ("chance", "ceiling")
    }
    return Bars("Caption accuracy by attribute", "accuracy", attributes, tuple(series), **levels)


def attribute_name(metric: str) -> str:
    """`accuracy/colour` -> `colour`; `accuracy` -> `overall`."""
    return metric.partition("/")[2] or "overall"


def known_units(cells: Cells) -> list[str]:
    """Cost units that at least one cell has a value for."""
    return [unit for unit in COST_AXES if cells.rows[cost_column(unit)].notna().any()]


def _series(name, x, rows, slot, dash=0, text=(), kind="line") -> Series:
    valid = [bool(flag) if pd.notna(flag) else True for flag in rows["valid"]]
    half_width = [float(value) for value in Z95 * rows["stderr"].astype(float)]
    y = [float(value) for value in rows["value"]]
    return Series(name, list(x), y, half_width, valid, tuple(text), slot, dash, kind)


def _seed_means(rows: DataFrame, x: str) -> DataFrame:
    """One row a value of `x`: the mean over seeds, its SE holding both the images' and the seeds' spread."""
    # A store's columns with None in them, for an error that a metric has not, are not of floats.
    value, stderr = rows["value"].astype(float), rows["stderr"].astype(float)
    groups = rows.assign(value=value, stderr=stderr, image_variance=stderr**2).groupby(x, sort=False)
    between = (groups["value"].var(ddof=1) / groups["value"].size()).fillna(0.0)
    within = groups["image_variance"].mean()
    means = groups.first().assign(value=groups["value"].mean(), stderr=np.sqrt(between + within))
    return means.assign(valid=groups["valid"].all()).reset_index()


def _slots(cells: Cells) -> list[str]:
    """Names of checkpoints, of any training seed: each has one colour."""
    return list(dict.fromkeys(cells.rows["checkpoint"].map(of_any_seed)))


def _is_of_one_seed(checkpoint: str, cells: Cells) -> bool:
    """Whether it is of one training seed, while others of its name are of several."""
    name = of_any_seed(checkpoint)
    return checkpoint != name and (cells.rows["checkpoint"] == name).any()


def _in_order(rows: DataFrame, cells: Cells) -> list[tuple[str, DataFrame]]:
    names = cells.rows["checkpoint"].drop_duplicates()
    return [(name, rows[rows["checkpoint"] == name]) for name in names]


def _steps(rows: DataFrame) -> tuple[float, ...]:
    return spread([float(count) for count in sorted(rows["steps"].unique())], TICKS)


def _is_wide(rows: DataFrame) -> bool:
    """Whether positive values span so much that a linear axis would hide the small ones."""
    values = rows["value"].astype(float)
    return bool(values.min() > 0 and values.max() > 8 * values.min())
