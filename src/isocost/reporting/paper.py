"""Figures for a paper: PNG and SVG by matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from isocost.analysis.cells import Cells
from isocost.analysis.frames import DataFrame
from isocost.analysis.frontier import frontier
from isocost.analysis.samplers import of_samplers
from isocost.analysis.words import compact, number
from isocost.reporting.figures import (
    accuracy_bars,
    cost_by_steps,
    frontier_chart,
    guidance_map,
    known_units,
    quality_by_cost,
    steps_by_guidance,
    training_curve,
)
from isocost.reporting.plots import FAINT, GREY, MANY_POINTS, Bars, Chart, Map, Plot, Series, style, ticks
from isocost.reporting.strips import Strip, contact_sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def paper_figures(
    table: DataFrame,
    cells: Cells,
    folder: Path,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    strips: Mapping[str, tuple[str, Strip]] | None = None,
) -> list[Path]:
    """Write the paper's figures, as far as the table holds them, as PNG and SVG. Returns what was written.

    `baselines`: as `accuracy_bars`. `strips`: file name -> (title, images), written as PNG only, with their labels.
    """
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
    for other in samplers[1:]:
        write(f"fig11-{samplers[0]}-{other}", [quality_by_cost(of_samplers(cells, samplers[0], other), "paper")])
    write("accuracy", [accuracy_bars(table, cells, baselines)])
    for name, (title, strip) in (strips or {}).items():
        written.extend(save(strip_figure(title, strip), folder, f"strip-{name}", ("png",)))
    return written


def matplotlib_figure(*plots: Plot, columns: int = 2) -> Figure:
    """The plots side by side as a matplotlib figure (Agg; pyplot's global state is not touched)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, plot in zip(axes, plots, strict=False):
        axis.set_title("\n".join(textwrap.fill(line, TITLE_CHARACTERS) for line in plot.title.split("\n")), fontsize=10)
        _DRAW[type(plot)](axis, plot)
    for axis in axes[len(plots) :]:
        axis.set_axis_off()
    return figure


def _draw_chart(axis: Axes, chart: Chart) -> None:
    for series in chart.series:
        _draw_series(axis, series)
    _log_axis(axis, "x", chart.log_x, chart.x_ticks or ticks([x for s in chart.series for x in s.x], chart.log_x))
    _log_axis(axis, "y", chart.log_y, ticks([y for s in chart.series for y in s.y], chart.log_y))
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axis.grid(alpha=0.25)
    crowded = sum(len(series.x) for series in chart.series) > 8 * MANY_POINTS
    axis.legend(fontsize=7, frameon=False, loc="upper right" if crowded else "best")  # "best" looks at every point


def _draw_series(axis: Axes, series: Series) -> None:
    colour, (_, marker), (_, dash) = style(series)
    front = series.kind == "frontier"
    colour = "black" if front else colour
    opacity = FAINT if series.faint else 1.0
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    valid = np.asarray(series.valid if series.valid is not None else np.ones(len(x)), bool)
    axis.plot(
        x, y, color=colour, marker="o" if front else marker,
        label=series.name if series.in_legend and not series.faint else None,
        markersize=7 if front else 4 if len(x) <= MANY_POINTS else 2, markerfacecolor="none" if front else colour,
        linewidth=1.2, alpha=0.6 * opacity if series.kind == "points" else opacity, zorder=1.5 if series.faint else 2,
        linestyle="none" if series.kind == "points" else dash, drawstyle="steps-post" if front else "default",
    )  # fmt: skip
    if series.half_width is not None and series.kind != "points":
        width = np.nan_to_num(series.half_width)
        if len(x) > MANY_POINTS and not front:
            axis.fill_between(x, y - width, y + width, color=colour, alpha=0.15 * opacity, linewidth=0)
        else:
            axis.errorbar(x, y, width, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2, alpha=opacity)
    if not valid.all():
        axis.plot(x[~valid], y[~valid], marker, color=GREY, markersize=4.5, linestyle="none", zorder=3)


def _log_axis(axis: Axes, side: str, log: bool, places: Sequence[float]) -> None:
    if not log:
        return
    from matplotlib.ticker import NullLocator

    (axis.set_xscale if side == "x" else axis.set_yscale)("log")
    which = axis.xaxis if side == "x" else axis.yaxis
    which.set_minor_locator(NullLocator())
    which.set_ticks(list(places), labels=[compact(place) for place in places])


def _draw_map(axis: Axes, plot: Map) -> None:
    axis.pcolormesh(np.ma.masked_invalid(plot.z), cmap="Blues", alpha=0.85)
    axis.set_xticks([column + 0.5 for column in range(len(plot.x))], labels=list(plot.x))
    axis.set_yticks([row + 0.5 for row in range(len(plot.y))], labels=list(plot.y))
    middle = (np.nanmin(plot.z) + np.nanmax(plot.z)) / 2
    for (row, column), value in np.ndenumerate(plot.z):
        if math.isfinite(value):
            colour = "black" if value <= middle else "white"
            axis.text(column + 0.5, row + 0.5, number(value), ha="center", va="center", color=colour, fontsize=8)
    axis.set(xlabel=plot.x_label, ylabel=plot.y_label)


def _draw_bars(axis: Axes, plot: Bars) -> None:
    places, width = np.arange(len(plot.categories)), 0.8 / max(1, len(plot.series))
    for k, series in enumerate(plot.series):
        offset = (k - (len(plot.series) - 1) / 2) * width
        errors = np.nan_to_num(series.half_width) if series.half_width is not None else None
        axis.bar(places + offset, series.y, width, yerr=errors, color=style(series)[0], label=series.name,
                 error_kw={"elinewidth": 0.8})  # fmt: skip
    for name, levels, dash in (("chance", plot.chance, ":"), ("ceiling", plot.ceiling, "--")):
        if any(math.isfinite(level) for level in levels):
            axis.hlines(levels, places - 0.45, places + 0.45, color="black", linestyle=dash, label=name, linewidth=1)
    axis.set_xticks(places, labels=list(plot.categories))
    axis.set(ylabel=plot.y_label, ylim=(0, 1.02))
    axis.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.25), ncols=6)


_DRAW = {Chart: _draw_chart, Map: _draw_map, Bars: _draw_bars}


DPI = 200  # of PNG files
CELL_INCHES, LABEL_INCHES = 0.8, 1.3
CAPTION_CHARACTERS, LABEL_CHARACTERS, TITLE_CHARACTERS = 16, 22, 62  # a line


def strip_figure(title: str, strip: Strip) -> Figure:
    """A strip with the labels of its columns and rows, its title above and its caption below."""
    from matplotlib.figure import Figure

    rows, columns, height, width, _ = strip.grid.shape
    size = columns * CELL_INCHES + LABEL_INCHES, rows * CELL_INCHES * height / width + LABEL_INCHES
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    gap = max(1, width // 16)
    axis.imshow(contact_sheet(strip, gap), interpolation="nearest")
    axis.set_xticks(
        [column * (width + gap) + width / 2 for column in range(columns)],
        labels=[textwrap.fill(label, CAPTION_CHARACTERS) for label in strip.columns or [""] * columns],
    )
    axis.set_yticks(
        [row * (height + gap) + height / 2 for row in range(rows)],
        labels=[textwrap.fill(label, LABEL_CHARACTERS) for label in strip.rows or [""] * rows],
    )
    axis.tick_params(length=0, labelsize=6, top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(strip.caption, fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def save(figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write `name`.png (`DPI`) and `name`.svg; equal figures give equal bytes."""
    from matplotlib import rc_context

    folder.mkdir(parents=True, exist_ok=True)
    unnamed = {"png": {"Software": None}, "svg": {"Date": None}}
    paths = [folder / f"{name}.{kind}" for kind in kinds]
    with rc_context({"svg.hashsalt": "isocost"}):
        _lay_out(figure)
        for path, kind in zip(paths, kinds, strict=True):
            figure.savefig(path, dpi=DPI, metadata=unnamed[kind])
    return paths


def _lay_out(figure: Figure) -> None:
    """Once, rather than twice for each file that is written."""
    figure.set_dpi(DPI)  # of which texts' extents are a function
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")
