"""Figures for the page: plotly's JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from isocost.analysis.words import compact, number, with_error
from isocost.reporting.plots import FAINT, GREY, INK, MANY_POINTS, Bars, Chart, Map, Plot, Series, style, ticks


def plotly_json(plot: Plot) -> dict[str, Any]:
    """`{"data": [...], "layout": {...}}` for Plotly.newPlot. "ink" colours are filled in by the page, by its theme."""
    if isinstance(plot, Chart):
        return _plotly_chart(plot)
    return _plotly_map(plot) if isinstance(plot, Map) else _plotly_bars(plot)


def _plotly_chart(chart: Chart) -> dict[str, Any]:
    xs = [value for series in chart.series for value in series.x]
    ys = [value for series in chart.series for value in series.y]
    layout = {
        "xaxis": _plotly_axis(chart.x_label, chart.log_x, chart.x_ticks or ticks(xs, chart.log_x)),
        "yaxis": _plotly_axis(chart.y_label, chart.log_y, ticks(ys, chart.log_y)),
    }
    drawn = [trace for series in chart.series for trace in (*_plotly_band(series), _plotly_series(series))]
    return {"data": drawn, "layout": layout}


def _plotly_axis(label: str, log: bool, places: Sequence[float]) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": label}, "type": "log" if log else "linear", "zeroline": False}
    if places:
        axis |= {"tickmode": "array", "tickvals": list(places), "ticktext": [compact(value) for value in places]}
    return axis


def _plotly_series(series: Series) -> dict[str, Any]:
    colour, (marker, _), (dash, _) = style(series)
    front = series.kind == "frontier"
    valid = series.valid or [True] * len(series.x)
    trace = {
        "type": "scatter",
        "name": series.name,
        "showlegend": series.in_legend and not series.faint,
        "opacity": FAINT if series.faint else 1,
        "legendgroup": series.name,
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
    if series.half_width is not None and series.kind != "points" and not _has_band(series):
        widths = [width if math.isfinite(width) else 0 for width in series.half_width]
        trace["error_y"] = {"type": "data", "array": widths, "color": colour, "thickness": 1, "width": 3}
    return trace


def _has_band(series: Series) -> bool:
    return series.half_width is not None and series.kind == "line" and len(series.x) > MANY_POINTS


def _plotly_band(series: Series) -> list[dict[str, Any]]:
    """The error of a curve of many points, as an area: once along its upper edge and back along the lower one."""
    if not _has_band(series):
        return []
    widths = [width if math.isfinite(width) else 0 for width in series.half_width or ()]
    points = list(zip(series.x, series.y, widths, strict=True))
    edge = [(x, y + width) for x, y, width in points] + [(x, y - width) for x, y, width in reversed(points)]
    x, y = zip(*edge, strict=True)
    return [
        {
            "type": "scatter", "x": list(x), "y": list(y), "mode": "lines", "line": {"width": 0}, "fill": "toself",
            "fillcolor": style(series)[0], "opacity": 0.15, "hoverinfo": "skip", "showlegend": False,
            "legendgroup": series.name,
        }
    ]  # fmt: skip


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
        colour, _, _ = style(series)
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
