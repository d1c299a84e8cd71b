"""The figures of a study, each a small value (`Chart`, `Map`, `Bars`, `Strip`) that matplotlib or plotly can draw.

A figure is made once from the table, so that the paper's PNG and the page's interactive version hold the same numbers.
Figure numbers in the names are those of arXiv 2404.01367.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isocost.analysis.frames import DataFrame
from isocost.analysis.frontier import Z95, Cells, Frontier, affordable, cost_column, curves, frontier, members_by_size
from isocost.analysis.words import COST_AXES, compact, full_label, metric_name, number, sampler_name, with_error
from isocost.errors import SpecError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, safe for colour-blind readers (without yellow, which is lost on white); shape repeats colour.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C6BB1", "#7F7F7F")
MARKERS = (("circle", "o"), ("square", "s"), ("diamond", "D"), ("triangle-up", "^"), ("triangle-down", "v"),
           ("cross", "P"), ("x", "X"), ("star", "*"))  # fmt: skip
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))
INK, GREY = "ink", "#9aa0a6"


@dataclass(frozen=True)
class Series:
    """One curve: `x`, `y` [n]; `half_width` [n] of the 95% interval (NaN: none); `valid` [n] (False is drawn grey).

    `slot` picks colour and marker, `dash` the line; `kind` "line", "points" or "frontier" (a staircase in ink).
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    half_width: Sequence[float] | None = None
    valid: Sequence[bool] | None = None
    text: Sequence[str] = ()
    slot: int = 0
    dash: int = 0
    kind: str = "line"
    in_legend: bool = True


@dataclass(frozen=True)
class Chart:
    """Curves on common axes, linear or logarithmic.

    `x_ticks`: places of the x axis's ticks, where they should be the measured ones.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = True
    log_y: bool = False
    x_ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Map:
    """A grid of values: `z` [len(y), len(x)], NaN where not measured."""

    title: str
    x_label: str
    y_label: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    z: np.ndarray


@dataclass(frozen=True)
class Bars:
    """Accuracy by attribute: `series` hold one value a category; `chance` and `ceiling` [categories] frame them."""

    title: str
    y_label: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    chance: tuple[float, ...] = ()
    ceiling: tuple[float, ...] = ()


@dataclass(frozen=True)
class Strip:
    """Images side by side: `images` uint8 [rows, columns, H, W, 3] (or [columns, H, W, 3] for one row), labelled."""

    images: np.ndarray
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    caption: str = ""
    grid: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        images = np.asarray(self.images)
        grid = images[None] if images.ndim == 4 else images
        if grid.ndim != 5 or grid.shape[-1] != 3 or grid.dtype != np.uint8:
            raise SpecError(f"a strip needs uint8 [rows, columns, H, W, 3], found {images.dtype} {images.shape}.")
        for labels, count, side in ((self.columns, grid.shape[1], "columns"), (self.rows, grid.shape[0], "rows")):
            if labels and len(labels) != count:
                raise SpecError(f"a strip of {count} {side} has {len(labels)} labels for them.")
        object.__setattr__(self, "grid", grid)


Plot = Chart | Map | Bars


# --- from the table to figures ---------------------------------------------------------------------------------------


def training_curve(table: DataFrame, metric: str) -> Chart | None:
    """Fig 3: quality against training compute, one curve a size; None where the study kept no training curve.

    Nothing is chosen along this curve, so all prompts are used where the table has them.
    """
    rows = table[table["curve"].astype(bool) & (table["metric"] == metric) & np.isfinite(table["value"].astype(float))]
    rows = rows[np.isfinite(rows["train_gflops"].astype(float))]
    rows = rows[rows["split"] == ("all" if (rows["split"] == "all").any() else "report")]
    if rows.empty:
        return None
    sizes = members_by_size(table)
    series = []
    for member in members_by_size(rows):
        points = _seed_means(rows[rows["member"] == member].sort_values("train_gflops"), "train_gflops")
        text = [f"{member}, {number(images)} images seen" for images in points["images_seen"]]
        series.append(_series(member, points["train_gflops"], points, sizes.index(member), text=text))
    return Chart("Quality against training compute", "training GFLOPs", metric_name(metric), tuple(series))


def steps_by_guidance(table: DataFrame, metric: str, member: str, sampler: str) -> Chart | None:
    """Fig 8 left: quality against steps at one size, one curve a guidance scale (report half; nothing is chosen)."""
    rows = table[(table["metric"] == metric) & (table["member"] == member) & (table["sampler"] == sampler)]
    rows = rows[rows["images_seen"] == rows["images_seen"].max()]
    rows = rows[(rows["split"] == "report") & np.isfinite(rows["value"].astype(float))]
    if rows.empty:
        return None
    series = []
    for slot, (scale, part) in enumerate(rows.groupby("guidance_scale")):
        points = _seed_means(part.sort_values("steps"), "steps")
        text = [full_label(row) for row in points.to_dict("records")]
        name = "none" if scale == 1 else number(float(str(scale)))
        series.append(_series(name, points["steps"], points, slot, text=text))
    title = f"{member}, {sampler_name(rows.iloc[0])}, by guidance scale"
    return Chart(title, "steps", metric_name(metric), tuple(series), True, _is_wide(rows), _steps(rows))


def guidance_map(cells: Cells, sampler: str) -> Map | None:
    """Fig 8 right: the best guidance scale over (size, steps), as chosen on the selection half."""
    rows = cells.rows[cells.rows["sampler"] == sampler].drop_duplicates(["checkpoint", "steps"])
    if rows.empty:
        return None
    best = rows.pivot(index="checkpoint", columns="steps", values="guidance_scale")
    best = best.reindex(rows["checkpoint"].drop_duplicates())
    title = f"Best guidance, {sampler_name(rows.iloc[0])}"
    steps = tuple(str(int(count)) for count in best.columns)
    return Map(title, "steps", "size", steps, tuple(best.index), best.to_numpy(float))


def cost_by_steps(cells: Cells, unit: str) -> Chart:
    """Fig 9 left: sampling cost against steps, one curve a size (each cell at its best guidance)."""
    rows = affordable(cells, unit)
    first = rows["sampler"].iloc[0]
    rows = rows[rows["sampler"] == first].drop_duplicates(["checkpoint", "steps"])
    series = tuple(
        Series(name, part["steps"].tolist(), part["cost"].tolist(), slot=slot)
        for slot, (name, part) in enumerate(_in_order(rows.sort_values("steps"), cells))
    )
    title = f"Sampling cost, {sampler_name(rows.iloc[0])}"
    return Chart(title, "steps", COST_AXES[unit], series, True, True, _steps(rows))


def quality_by_cost(cells: Cells, unit: str) -> Chart:
    """Fig 9 right (and 11): best-of-guidance quality against sampling cost, one curve a size and sampler."""
    names = list(cells.rows["checkpoint"].drop_duplicates())
    found = curves(cells, unit)
    samplers = list(dict.fromkeys(sampler for _, sampler in found))
    series = []
    for (name, sampler), rows in found.items():
        text = [full_label(row) for row in rows.to_dict("records")]
        curve = _series(name, rows["cost"], rows, names.index(name), samplers.index(sampler), text)
        first = name not in {other.name for other in series}
        series.append(replace(curve, in_legend=first))
    key = ", ".join(f"{sampler} {DASHES[k % len(DASHES)][0]}" for k, sampler in enumerate(samplers))
    title = "Quality against sampling cost" + (f" ({key})" if len(samplers) > 1 else "")
    return Chart(title, COST_AXES[unit], metric_name(cells.metric), tuple(series), log_y=_is_wide(cells.rows))


def frontier_chart(front: Frontier) -> Chart:
    """Every cell at its best guidance, and the frontier as a staircase: the best quality each budget buys."""
    cells, unit = front.cells, front.unit
    rows = affordable(cells, unit)
    series = []
    for slot, (name, part) in enumerate(_in_order(rows, cells)):
        text = [full_label(row) for row in part.to_dict("records")]
        series.append(_series(name, part["cost"], part, slot, text=text, kind="points"))
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
    rows = table[table["metric"].str.fullmatch(r"accuracy(/.*)?") & (table["split"] == "report")]
    rows = rows[np.isfinite(rows["value"].astype(float))].assign(attribute=rows["metric"].map(attribute_name))
    if rows.empty:
        return None
    attributes = tuple(sorted(rows["attribute"].unique(), key=lambda name: (name != "overall", name)))
    series = []
    for slot, cell in enumerate(best_cell_of_members(cells).to_dict("records")):
        same = np.logical_and.reduce(
            [
                (rows[name] == cell[name]) | (rows[name].isna() & pd.isna(cell[name]))
                for name in (
                    "member",
                    "images_seen",
                    "sampler",
                    "eta",
                    "variance",
                    "spacing",
                    "steps",
                    "guidance_scale",
                )
            ]
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


def _series(name, x, rows, slot, dash=0, text=(), kind="line") -> Series:
    valid = [bool(flag) if pd.notna(flag) else True for flag in rows["valid"]]
    half_width = [float(value) for value in Z95 * rows["stderr"].astype(float)]
    y = [float(value) for value in rows["value"]]
    return Series(name, list(x), y, half_width, valid, tuple(text), slot, dash, kind)


def _seed_means(rows: DataFrame, x: str) -> DataFrame:
    """One row a value of `x`: the mean over seeds, its SE holding both the images' and the seeds' spread."""
    groups = rows.groupby(x, sort=False)
    between = (groups["value"].var(ddof=1) / groups["value"].size()).fillna(0.0)
    within = groups["stderr"].agg(lambda stderr: np.mean(np.square(stderr.astype(float))))
    means = groups.first().assign(value=groups["value"].mean(), stderr=np.sqrt(between + within))
    return means.assign(valid=groups["valid"].all()).reset_index()


def _in_order(rows: DataFrame, cells: Cells) -> list[tuple[str, DataFrame]]:
    names = cells.rows["checkpoint"].drop_duplicates()
    return [(name, rows[rows["checkpoint"] == name]) for name in names]


def _steps(rows: DataFrame) -> tuple[float, ...]:
    return tuple(float(count) for count in sorted(rows["steps"].unique()))


def _is_wide(rows: DataFrame) -> bool:
    """Whether positive values span so much that a linear axis would hide the small ones."""
    values = rows["value"].astype(float)
    return bool(values.min() > 0 and values.max() > 8 * values.min())


# --- plotly ----------------------------------------------------------------------------------------------------------


def plotly_json(plot: Plot) -> dict[str, Any]:
    """`{"data": [...], "layout": {...}}` for Plotly.newPlot. "ink" colours are filled in by the page, by its theme."""
    if isinstance(plot, Chart):
        return _plotly_chart(plot)
    return _plotly_map(plot) if isinstance(plot, Map) else _plotly_bars(plot)


def _plotly_chart(chart: Chart) -> dict[str, Any]:
    xs = [value for series in chart.series for value in series.x]
    ys = [value for series in chart.series for value in series.y]
    layout = {
        "xaxis": _plotly_axis(chart.x_label, chart.log_x, chart.x_ticks or _ticks(xs, chart.log_x)),
        "yaxis": _plotly_axis(chart.y_label, chart.log_y, _ticks(ys, chart.log_y)),
    }
    return {"data": [_plotly_series(series) for series in chart.series], "layout": layout}


def _plotly_axis(label: str, log: bool, ticks: Sequence[float]) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": label}, "type": "log" if log else "linear", "zeroline": False}
    if ticks:
        axis |= {"tickmode": "array", "tickvals": list(ticks), "ticktext": [compact(value) for value in ticks]}
    return axis


def _plotly_series(series: Series) -> dict[str, Any]:
    colour, (marker, _), (dash, _) = _style(series)
    front = series.kind == "frontier"
    valid = series.valid or [True] * len(series.x)
    trace = {
        "type": "scatter",
        "name": series.name,
        "showlegend": series.in_legend,
        "x": list(series.x),
        "y": list(series.y),
        "mode": "markers" if series.kind == "points" else "lines+markers",
        "marker": {
            "symbol": "circle-open" if front else marker,
            "size": 11 if front else 7,
            "color": [colour if ok else GREY for ok in valid],
            "opacity": 0.75 if series.kind == "points" else 1,
            "line": {"width": 2 if front else 0, "color": colour},
        },
        "line": {"color": colour, "width": 1.6 if front else 2, "dash": dash, "shape": "hv" if front else "linear"},
        "hovertext": _hover(series),
        "hoverinfo": "text",
    }
    if series.half_width is not None and series.kind != "points":
        widths = [width if math.isfinite(width) else 0 for width in series.half_width]
        trace["error_y"] = {"type": "data", "array": widths, "color": colour, "thickness": 1, "width": 3}
    return trace


def _plotly_map(plot: Map) -> dict[str, Any]:
    values = [[None if math.isnan(value) else float(value) for value in row] for row in plot.z]
    text = [["" if value is None else number(value) for value in row] for row in values]
    trace = {
        "type": "heatmap", "x": list(plot.x), "y": list(plot.y), "z": values, "text": text, "texttemplate": "%{text}",
        "colorscale": [[0, "#e3eef6"], [1, "#0072B2"]], "showscale": False, "xgap": 3, "ygap": 3,
        "hovertemplate": f"%{{y}}, %{{x}} {plot.x_label}: %{{text}}<extra></extra>",
    }  # fmt: skip
    axes = {
        name: {"title": {"text": label}, "type": "category", "showgrid": False}
        for name, label in (("xaxis", plot.x_label), ("yaxis", plot.y_label))
    }
    return {"data": [trace], "layout": axes}


def _plotly_bars(plot: Bars) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for series in plot.series:
        colour, _, _ = _style(series)
        widths = [width if math.isfinite(width) else 0 for width in series.half_width or [0.0] * len(series.y)]
        data.append({
            "type": "bar", "name": series.name, "x": list(series.x), "y": _or_none(series.y),
            "hovertext": _hover(series), "hoverinfo": "text", "marker": {"color": colour},
            "error_y": {"type": "data", "array": widths, "color": INK, "thickness": 1, "width": 2},
        })  # fmt: skip
    symbols = {"chance": "line-ew-open", "ceiling": "diamond-wide-open"}
    for name, levels in (("chance", plot.chance), ("ceiling", plot.ceiling)):
        if any(math.isfinite(level) for level in levels):
            data.append({
                "type": "scatter", "mode": "markers", "name": name, "x": list(plot.categories), "y": _or_none(levels),
                "marker": {"symbol": symbols[name], "size": 16, "color": INK, "line": {"width": 2, "color": INK}},
                "hovertemplate": f"{name}: %{{y:.3f}}<extra></extra>",
            })  # fmt: skip
    top = {"title": {"text": plot.y_label}, "range": [0, 1.02], "zeroline": False}
    return {"data": data, "layout": {"barmode": "group", "bargap": 0.25, "yaxis": top, "xaxis": {"type": "category"}}}


def _hover(series: Series) -> list[str]:
    """Text of each point; plotly reads a little HTML, so labels are escaped."""
    from html import escape

    widths = series.half_width or [math.nan] * len(series.y)
    valid = series.valid or [True] * len(series.y)
    labels = series.text or [series.name] * len(series.y)
    return [
        f"<b>{escape(label)}</b><br>{with_error(y, width)}" + ("" if ok else "<br>too few images to be trusted")
        for label, y, width, ok in zip(labels, series.y, widths, valid, strict=True)
    ]


def _or_none(values: Sequence[float]) -> list[float | None]:
    """NaN is not JSON."""
    return [float(value) if math.isfinite(value) else None for value in values]


def _ticks(values: Sequence[float], log: bool) -> tuple[float, ...]:
    """1-2-5 ticks that cover positive `values` on a log axis, thinned to decades where they would crowd."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not log or not positive:
        return ()
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * 10.0**power for power in range(low, high + 1) for factor in factors]
        ticks = [tick for tick in ticks if min(positive) / 1.5 <= tick <= max(positive) * 1.5]
        if len(ticks) <= 9:
            break
    return tuple(ticks)


def _style(series: Series) -> tuple[str, tuple[str, str], tuple[str, str]]:
    colour = INK if series.kind == "frontier" else PALETTE[series.slot % len(PALETTE)]
    return colour, MARKERS[series.slot % len(MARKERS)], DASHES[series.dash % len(DASHES)]


# --- matplotlib ------------------------------------------------------------------------------------------------------


def matplotlib_figure(*plots: Plot, columns: int = 2) -> Figure:
    """The plots side by side as a matplotlib figure (Agg; pyplot's global state is not touched)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, plot in zip(axes, plots, strict=False):
        axis.set_title(plot.title, fontsize=10)
        _DRAW[type(plot)](axis, plot)
    for axis in axes[len(plots) :]:
        axis.set_axis_off()
    return figure


def _draw_chart(axis: Axes, chart: Chart) -> None:
    for series in chart.series:
        _draw_series(axis, series)
    _log_axis(axis, "x", chart.log_x, chart.x_ticks or _ticks([x for s in chart.series for x in s.x], chart.log_x))
    _log_axis(axis, "y", chart.log_y, _ticks([y for s in chart.series for y in s.y], chart.log_y))
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=7, frameon=False)


def _draw_series(axis: Axes, series: Series) -> None:
    colour, (_, marker), (_, dash) = _style(series)
    front = series.kind == "frontier"
    colour = "black" if front else colour
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    valid = np.asarray(series.valid if series.valid is not None else np.ones(len(x)), bool)
    axis.plot(
        x, y, color=colour, label=series.name if series.in_legend else None, marker="o" if front else marker,
        markersize=7 if front else 4, markerfacecolor="none" if front else colour,
        linewidth=1.2, alpha=0.6 if series.kind == "points" else 1,
        linestyle="none" if series.kind == "points" else dash, drawstyle="steps-post" if front else "default",
    )  # fmt: skip
    if series.half_width is not None and series.kind != "points":
        axis.errorbar(x, y, np.nan_to_num(series.half_width), fmt="none", ecolor=colour, elinewidth=0.8, capsize=2)
    if not valid.all():
        axis.plot(x[~valid], y[~valid], marker, color=GREY, markersize=4.5, linestyle="none", zorder=3)


def _log_axis(axis: Axes, side: str, log: bool, ticks: Sequence[float]) -> None:
    if not log:
        return
    from matplotlib.ticker import NullLocator

    (axis.set_xscale if side == "x" else axis.set_yscale)("log")
    which = axis.xaxis if side == "x" else axis.yaxis
    which.set_minor_locator(NullLocator())
    which.set_ticks(list(ticks), labels=[compact(tick) for tick in ticks])


def _draw_map(axis: Axes, plot: Map) -> None:
    axis.imshow(plot.z, cmap="Blues", aspect="auto", origin="lower", alpha=0.85)
    axis.set_xticks(range(len(plot.x)), labels=list(plot.x))
    axis.set_yticks(range(len(plot.y)), labels=list(plot.y))
    middle = (np.nanmin(plot.z) + np.nanmax(plot.z)) / 2
    for (row, column), value in np.ndenumerate(plot.z):
        if math.isfinite(value):
            colour = "black" if value <= middle else "white"
            axis.text(column, row, number(value), ha="center", va="center", color=colour, fontsize=8)
    axis.set(xlabel=plot.x_label, ylabel=plot.y_label)


def _draw_bars(axis: Axes, plot: Bars) -> None:
    places, width = np.arange(len(plot.categories)), 0.8 / max(1, len(plot.series))
    for k, series in enumerate(plot.series):
        offset = (k - (len(plot.series) - 1) / 2) * width
        errors = np.nan_to_num(series.half_width) if series.half_width is not None else None
        axis.bar(places + offset, series.y, width, yerr=errors, color=_style(series)[0], label=series.name,
                 error_kw={"elinewidth": 0.8})  # fmt: skip
    for name, levels, dash in (("chance", plot.chance, ":"), ("ceiling", plot.ceiling, "--")):
        if any(math.isfinite(level) for level in levels):
            axis.hlines(levels, places - 0.45, places + 0.45, color="black", linestyle=dash, label=name, linewidth=1)
    axis.set_xticks(places, labels=list(plot.categories))
    axis.set(ylabel=plot.y_label, ylim=(0, 1.02))
    axis.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.25), ncols=6)


_DRAW = {Chart: _draw_chart, Map: _draw_map, Bars: _draw_bars}


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.png (200 dpi) and `name`.svg; equal figures give equal bytes."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    with rc_context({"svg.hashsalt": "isocost"}):
        figure.savefig(paths[0], dpi=200, metadata={"Software": None})
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def paper_figures(
    table: DataFrame,
    cells: Cells,
    folder: Path,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    strips: Mapping[str, Strip] | None = None,
) -> list[Path]:
    """Write the paper's figures, as far as the table holds them, as PNG and SVG. Returns what was written."""
    metric, samplers = cells.metric, list(dict.fromkeys(cells.rows["sampler"]))
    written: list[Path] = []

    def write(name: str, plots: Sequence[Plot | None], columns: int = 2) -> None:
        drawn = [plot for plot in plots if plot is not None]
        if drawn:
            written.extend(save(matplotlib_figure(*drawn, columns=columns), folder, name))

    write("fig03-training-compute", [training_curve(table, metric)])
    for sampler in samplers:
        write(f"fig08-guidance-{sampler}", [steps_by_guidance(table, metric, m, sampler) for m in cells.members])
        write(f"fig08-best-guidance-{sampler}", [guidance_map(cells, sampler)])
    for unit in known_units(cells):
        write(f"frontier-{unit}", [frontier_chart(frontier(cells, unit))])
        write(f"fig09-cost-{unit}", [cost_by_steps(cells, unit), quality_by_cost(cells, unit)])
    write("accuracy", [accuracy_bars(table, cells, baselines)])
    for name, strip in (strips or {}).items():
        path = folder / f"strip-{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(contact_sheet(strip)))
        written.append(path)
    return written


def known_units(cells: Cells) -> list[str]:
    """Cost units that at least one cell has a value for."""
    return [unit for unit in COST_AXES if cells.rows[cost_column(unit)].notna().any()]


# --- images ----------------------------------------------------------------------------------------------------------


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: np.ndarray) -> str:
    """uint8 [H, W, 3] as a `data:image/png` URI."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def contact_sheet(strip: Strip, gap: int = 2) -> np.ndarray:
    """All images of a strip on one white uint8 sheet [H', W', 3], `gap` pixels apart, without labels."""
    rows, columns, height, width, _ = strip.grid.shape
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top : top + height, left : left + width] = strip.grid[row, column]
    return sheet
