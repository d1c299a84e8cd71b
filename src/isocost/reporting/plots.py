"""A figure as a value (`Chart`, `Map`, `Bars`): made once from the table, drawn by matplotlib or by plotly.

So the paper's PNG and the page's interactive version hold the same numbers, in the same colours and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    `faint`: drawn behind the others, and not in the legend.
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
    faint: bool = False


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


Plot = Chart | Map | Bars

FAINT = 0.35  # opacity
MANY_POINTS = 24  # of a curve: from here on its error is a band, as bars would run into each other


def style(series: Series) -> tuple[str, tuple[str, str], tuple[str, str]]:
    """Colour ("ink": the text's), marker and dash of a series; of the last two, plotly's name and matplotlib's."""
    colour = INK if series.kind == "frontier" else PALETTE[series.slot % len(PALETTE)]
    return colour, MARKERS[series.slot % len(MARKERS)], DASHES[series.dash % len(DASHES)]


def spread(values: Sequence[float], most: int) -> tuple[float, ...]:
    """All of the sorted positive `values`, or at most `most` of them, about evenly spaced in the logarithm; the ends
    are kept."""
    if len(values) <= most:
        return tuple(values)
    logs = np.log(np.asarray(values, float))
    wanted = np.linspace(logs[0], logs[-1], most)
    return tuple(values[place] for place in np.unique(np.abs(logs[:, None] - wanted).argmin(0)))


def ticks(values: Sequence[float], log: bool) -> tuple[float, ...]:
    """1-2-5 ticks that cover positive `values` on a log axis, thinned to decades where they would crowd."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    if not log or not positive:
        return ()
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [factor * 10.0**power for power in range(low, high + 1) for factor in factors]
        found = [tick for tick in found if min(positive) / 1.5 <= tick <= max(positive) * 1.5]
        if len(found) <= 9:
            break
    return tuple(found)
