"""The figures and the table of a study of super-resolution. Figure numbers are those of arXiv 2404.01367.

Nothing is chosen in such a study, so all crops count. Floor (bicubic) and ceiling (the autoencoder's reconstruction)
stand in the table and in every figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocost.analysis.cells import Z95, members_by_size
from isocost.analysis.frames import DataFrame
from isocost.analysis.words import COST_AXES, metric_name, number, with_error
from isocost.reporting.figures import CURVE_STEPS
from isocost.reporting.plots import Chart, Series

BRIEF = 20  # steps up to which small models win, says the paper: where Fig. 12 is cut in two
GREY_SLOT = 7  # of the palette
NAMES = {"bicubic": "bicubic", "autoencoder": "autoencoder alone"}


@dataclass(frozen=True)
class Superres:
    """What the page shows: figures by key, and the table's headings and rows, floor and ceiling first."""

    plots: dict[str, Chart]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    sentences: tuple[str, ...] = ()


def superres(table: DataFrame, frames: DataFrame) -> Superres:
    """From a study's table, and the scores of floor and ceiling (`isocost.study.tables.frames`)."""
    cells = table[(table["split"] == "all") & (table["objective"] == "superres")]
    framed = frames[frames["split"] == "all"]
    metrics = list(dict.fromkeys(cells["metric"]))
    plots: dict[str, Chart | None] = {}
    for metric in metrics:
        name = metric.partition("[")[0]
        plots[f"sr-compute-{name}"] = by_compute(cells, framed, metric)
    for metric in metrics:
        name = metric.partition("[")[0]
        plots[f"sr-few-steps-{name}"] = by_cost(cells, framed, metric, most=BRIEF)
        plots[f"sr-many-steps-{name}"] = by_cost(cells, framed, metric, least=BRIEF)
    rows = [_row(part, metrics, NAMES[str(frame)]) for frame, part in framed.groupby("frame", sort=False)]
    keys = ["params", "images_seen", "steps", "member", "sampler"]
    once = cells.drop_duplicates(["sample_key", "metric"])
    for (_, seen, steps, member, sampler), part in once.groupby(keys):
        rows.append(_row(part, metrics, str(member), number(float(seen)), f"{sampler} {steps}", _cost(part)))
    columns = ("", "fine-tuned on", "sampled with", "GFLOPs", *map(metric_name, metrics))
    shown = {key: plot for key, plot in plots.items() if plot is not None}
    return Superres(shown, columns, tuple(rows), tuple(_against_bicubic(cells, framed, metrics)))


def by_compute(cells: DataFrame, frames: DataFrame, metric: str) -> Chart | None:
    """Fig. 4 and 17: quality against fine-tuning compute at 50 steps (or the most there are), one curve a size."""
    rows = cells[cells["curve"].astype(bool) & (cells["metric"] == metric)]
    if rows.empty:
        return None
    steps = CURVE_STEPS if (rows["steps"] == CURVE_STEPS).any() else rows["steps"].max()
    rows = rows[rows["steps"] == steps].sort_values("train_gflops")
    figure = "Fig. 17" if metric.startswith("is[") else "Fig. 4"
    title = f"Quality against fine-tuning compute, {steps} steps (as {figure})"
    return _chart(title, "fine-tuning GFLOPs", "train_gflops", rows, frames, metric)


def by_cost(cells: DataFrame, frames: DataFrame, metric: str, least: int = 0, most: float = np.inf) -> Chart | None:
    """Fig. 12: quality against sampling cost of final checkpoints, `least` to `most` steps, one curve a size."""
    rows = cells[~cells["curve"].astype(bool) & (cells["metric"] == metric) & cells["steps"].between(least, most)]
    if rows["steps"].nunique() < 2:
        return None
    span = f"{rows['steps'].min()} to {rows['steps'].max()} steps"
    title = f"Quality against sampling cost, {span} (as Fig. 12)"
    return _chart(title, COST_AXES["paper"], "paper_cost", rows.sort_values("steps"), frames, metric)


def _chart(title: str, x_label: str, x: str, rows: DataFrame, frames: DataFrame, metric: str) -> Chart:
    members = members_by_size(rows)
    series = []
    for slot, member in enumerate(members):
        part = rows[rows["member"] == member]
        means = part.groupby(x, sort=True).agg({"value": "mean", "stderr": "mean", "steps": "first"})
        text = [f"{member}, {steps} steps" for steps in means["steps"]]
        half = [Z95 * float(error) for error in means["stderr"]]
        values = [float(value) for value in means["value"]]
        series.append(Series(member, list(map(float, means.index)), values, half, text=text, slot=slot))
    ends = float(rows[x].min()), float(rows[x].max())
    levels = frames[frames["metric"] == metric].set_index("frame")["value"]
    for dash, (frame, name) in enumerate(NAMES.items(), 1):
        if frame in levels.index:
            level = float(levels[frame])
            series.append(Series(name, ends, (level, level), slot=GREY_SLOT, dash=dash))
    return Chart(title, x_label, metric_name(metric), tuple(series))


def _row(part: DataFrame, metrics: Sequence[str], *what: str) -> tuple[str, ...]:
    """A table's row: what it is, then each metric with its 95% interval."""
    of_metric = part.drop_duplicates("metric").set_index("metric")
    values = [
        with_error(float(of_metric.loc[metric, "value"]), Z95 * float(of_metric.loc[metric, "stderr"]))  # type: ignore
        for metric in metrics
    ]
    return (*what, *[""] * (4 - len(what)), *values)


def _cost(part: DataFrame) -> str:
    return number(float(part["gflops_per_image"].iloc[0]))


def _against_bicubic(cells: DataFrame, frames: DataFrame, metrics: Sequence[str]) -> list[str]:
    """For each metric its best cell beside bicubic, in a sentence."""
    found = []
    for metric in metrics:
        floor: Any = frames[(frames["frame"] == "bicubic") & (frames["metric"] == metric)]
        rows = cells[cells["metric"] == metric]
        if floor.empty or rows.empty:
            continue
        higher = bool(rows["higher_is_better"].iloc[0])
        best = rows.loc[rows["value"].idxmax() if higher else rows["value"].idxmin()]
        gain = (best["value"] - floor["value"].iloc[0]) * (1 if higher else -1)
        word = "better than" if gain > 0 else "not better than"
        value, level = number(float(best["value"])), number(float(floor["value"].iloc[0]))
        after = f"{best['member']} after {number(float(best['images_seen']))} images with {best['steps']} steps"
        found.append(
            f"{metric_name(metric)}: the best of {rows['sample_key'].nunique()} cells, {after}, has {value}, {word} "
            f"bicubic's {level}."
        )
    return found
