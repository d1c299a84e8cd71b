"""What the planner's page knows: one JSON that holds the answer for every budget, unit, metric and filter.

The page only looks things up: which cells there are, what they cost, how good they are, and which of them tie. Every
choice that statistics make (guidance, intervals, ties) was made here, by the functions that `isocost plan` calls.
"""

from __future__ import annotations

import base64
import functools
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import COSTS, Cells, affordable, best_guidance, guiding, resolve_metric
from isocost.analysis.differences import COMPARED, Influence, comparer, tied
from isocost.analysis.frames import DataFrame
from isocost.analysis.frontier import frontier
from isocost.analysis.planner import plan_cells, quality_words
from isocost.analysis.words import (
    COST_AXES,
    GUIDING,
    SAMPLERS,
    UNITS,
    checkpoint_name,
    full_label,
    guiding_name,
    is_guided,
    metric_name,
    number,
    of_any_seed,
    sampler_name,
    short_label,
    with_error,
)
from isocost.errors import SpecError
from isocost.reporting import figures
from isocost.reporting.page import UNIT_NAMES, notes, unit_note
from isocost.reporting.plots import MARKERS, PALETTE
from isocost.reporting.snippets import snippets
from isocost.specs import Budget, StudySpec

# What the page, as `isocost plan`, can restrict: columns of cells, and what the page calls them.
FILTERS = {"member": "Models", "sampler": "Samplers", "guiding": "Guidance", "best_of": "Images drawn to keep one"}
PROMPT = "a large red circle in the centre on a blue background"


@dataclass(frozen=True)
class Pictures:
    """Images of a cell under the strip prompts: their `captions`, and where the page finds each (`sources`)."""

    captions: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """What the page shows first.

    `unit`: of the budget; the first that is known, where this one is not. `budget` None: the middle of what there is.
    `metric` None: what guidance was chosen by. `filters`: column -> the values that are left.
    """

    unit: str = "paper"
    budget: float | None = None
    metric: str | None = None
    filters: Mapping[str, Sequence[str | int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Planner:
    """`data`: the page's JSON. `files`: name -> content of what stands behind its links."""

    data: dict[str, Any]
    files: dict[str, str]


def planner(
    table: DataFrame,
    study: StudySpec,
    *,
    store: str,
    select_by: str,
    influence: Influence | None = None,
    pictures: Mapping[str, Pictures] | None = None,
    start: Start | None = None,
) -> Planner:
    """Everything that a planner's page of a study needs, from its results `table`.

    `store`: as a user types it. `select_by`: the table's name of the metric that chose guidance. `pictures`: by sample
    key, of the cells that have some. Raises `SpecError` where the table has nothing to choose from.
    """
    start, pictures = start or Start(), pictures or {}
    influence = functools.cache(influence) if influence else None  # every metric and unit asks for the same files
    views = _views(table, select_by, start.metric)
    offers = next(iter(views.values()))
    places = {key: place for place, key in enumerate(_keys(views.values()))}
    records: dict[str, Any] = {}
    for cells in reversed(views.values()):
        records |= {row["sample_key"]: row for row in cells.rows.to_dict("records")}
    rows = [records[key] for key in places]
    fronts = {metric: [frontier(cells, unit, influence) for unit in _units(cells)] for metric, cells in views.items()}
    shown = [_shown(cells, places, influence) for cells in views.values()]
    prompt = next((found.captions[0] for found in pictures.values() if found.captions), PROMPT)
    winners = sorted({place for view in shown for place in view["winners"]})
    drawn = {places[key]: found for key, found in pictures.items() if key in places}
    strips = {place: list(found.sources) for place, found in drawn.items()}
    captions = max((found.captions for found in drawn.values()), key=len, default=())
    data = {
        "study": study.name,
        "digest": study.digest,
        "store": store,
        "select_by": metric_name(offers.select_by),
        "units": [_unit(offers, unit) for unit in _units(offers)],
        "filters": [_filter(rows, column) for column in FILTERS],
        "rows": _columns(rows),
        "views": shown,
        "maps": _maps(best_guidance(table, select_by)),
        "captions": list(captions),
        "pictures": strips,
        "snippets": {place: vars(snippets(rows[place], study, store, prompt)) for place in winners},
        "start": (started := _started(start, offers)),
        "answer": _answer(offers, started, influence),
        "default_metric": resolve_metric(table, select_by),
        "styles": _styles(rows),
        "of_member": {row["member"]: checkpoint_name(row) for row in reversed(rows)},
        "notes": [*_limits(offers), *notes(table, offers, fronts[offers.metric][0])],
        "left_out": list(dict.fromkeys(name for cells in views.values() for name in cells.left_out)),
        "files": [],
    }
    files = {
        "cells.csv": _cells_csv(views),
        **{f"frontier-{unit}.csv": _frontier_csv(fronts, unit) for unit in _units(offers)},
        "guidance.csv": _guidance_csv(data["maps"]),
        "study.yaml": study.to_yaml(),
    }
    data["files"] = list(files)
    return Planner(data, files)


def _views(table: DataFrame, select_by: str, first: str | None) -> dict[str, Cells]:
    """Metric -> its cells at the guidance that `select_by` chose: `first`, that one, then the others; parts of a metric
    (`accuracy/colour`) and metrics that no cell has on both halves have none."""
    names = [name for name in table["metric"].unique() if "/" not in name]
    found = {}
    for name in dict.fromkeys([first or select_by, select_by, *sorted(names)]):
        try:
            cells = best_guidance(table, name, select_by, keep_unguided=True)
            found[name] = replace(cells, rows=cells.rows.assign(guiding=guiding(cells.rows)))
        except SpecError:
            if not found:
                raise
    return {cells.metric: cells for cells in found.values()}


def _keys(views: Iterable[Cells]) -> list[str]:
    return list(dict.fromkeys(key for cells in views for key in cells.rows["sample_key"]))


def _units(cells: Cells) -> list[str]:
    return figures.known_units(cells)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """What a cell is and costs, a list a column: in JSON half the size of a list of rows."""
    return {
        "key": [row["sample_key"][:16] for row in rows],
        "label": [full_label(row) for row in rows],
        "short": [short_label(row) for row in rows],
        "checkpoint": [checkpoint_name(row) for row in rows],
        "member": [row["member"] for row in rows],
        "sampler": [row["sampler"] for row in rows],
        "way": [sampler_name(row) for row in rows],
        "steps": [int(row["steps"]) for row in rows],
        "guidance": [number(row["guidance_scale"]) if is_guided(row) else "none" for row in rows],
        "guiding": [row["guiding"] for row in rows],
        "best_of": [str(row["best_of"]) for row in rows],
        "seconds_as": [str(row.get("seconds_as", "")) for row in rows[:1]],
        **{unit: [_or_none(row[column]) for row in rows] for unit, column in COSTS.items()},
    }


def _shown(cells: Cells, places: Mapping[str, int], influence: Influence | None) -> dict[str, Any]:
    """A metric's values, in the order of its own rows, and the ties of every cell that some choice can make win.

    `ties`: place of a winner among these rows -> base64 of bits, one a row: those not significantly worse.
    """
    rows = cells.rows
    compare = comparer(influence)
    ties, paired, others = {}, True, rows[COMPARED]
    for place in _possible_winners(cells):
        winner = rows.loc[place]
        found, all_paired = tied(winner, others, cells.sign, compare)
        paired = paired and (all_paired or len(rows) == 1)
        bits = np.zeros(len(rows), bool)
        bits[list(found)] = True
        ties[place] = base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode()
    records = rows.to_dict("records")
    errors = [math.isfinite(row["stderr"]) for row in records]
    row_places = [places[row["sample_key"]] for row in records]
    return {
        "metric": cells.metric,
        "name": metric_name(cells.metric),
        "sign": cells.sign,
        "rows": row_places,
        "value": [float(row["value"]) for row in records],
        "half_width": [_or_none((row["high"] - row["low"]) / 2) for row in records],
        "seen": [float(row["selection_value"]) for row in records],
        "valid": [bool(row["valid"]) for row in records],
        "words": [
            with_error(row["value"], (row["high"] - row["low"]) / 2 if has else None)
            for row, has in zip(records, errors, strict=True)
        ],
        "quality": [quality_words(row, cells.metric, has) for row, has in zip(records, errors, strict=True)],
        "paired": paired,
        "ties": ties,
        "winners": [row_places[place] for place in ties],
    }


def _possible_winners(cells: Cells) -> list[int]:
    """Rows that win at some budget, in some unit, under some filter: those that beat every cheaper one that no filter
    tells from them."""
    found: set[int] = set()
    for unit in _units(cells):
        rows = affordable(cells, unit)
        rows = rows[["cost", *FILTERS]].assign(loss=cells.sign * rows["selection_value"])
        ordered = rows.sort_values(["cost", "loss"], kind="stable")
        groups = ordered.groupby(list(FILTERS), sort=False, dropna=False)["loss"]
        # The first of a group is below nothing, hence a winner.
        cheaper_best = groups.cummin().groupby([ordered[column] for column in FILTERS], sort=False).shift()
        found |= set(ordered.index[ordered["loss"] < cheaper_best.fillna(np.inf)])
    return sorted(found)


def _unit(cells: Cells, unit: str) -> dict[str, Any]:
    return {"unit": unit, "name": UNIT_NAMES[unit], "words": UNITS[unit], "axis": COST_AXES[unit],
            "note": unit_note(cells, unit)}  # fmt: skip


def _filter(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    """The values of a column, members smallest first."""
    order: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "member": lambda row: (row["params"], str(row[column])),
        "guiding": lambda row: ([*GUIDING].index(row[column].removesuffix(" interval")), row[column]),
        "best_of": lambda row: row[column],
    }
    ordered = sorted(rows, key=order[column]) if column in order else rows
    values = list(dict.fromkeys(str(row[column]) for row in ordered))
    names = {
        "sampler": lambda value: SAMPLERS.get(value, value),
        "guiding": guiding_name,
        "best_of": lambda value: "one" if value == "1" else f"best of {value}",
    }.get(column, str)
    return {"column": column, "title": FILTERS[column], "values": values, "names": [names(value) for value in values]}


def _maps(best: Cells) -> list[dict[str, Any]]:
    """The best guidance scale over (checkpoint, steps), a map a sampler."""
    found = []
    for sampler in dict.fromkeys(best.rows["sampler"]):
        plot = figures.guidance_map(best, sampler)
        if plot is not None:
            z = [[_or_none(value) for value in row] for row in plot.z]
            words = [["" if value is None else number(value) for value in row] for row in z]
            found.append({"sampler": sampler, "name": SAMPLERS.get(sampler, sampler), "steps": list(plot.x),
                          "checkpoints": list(plot.y), "guidance": z, "words": words})  # fmt: skip
    return found


def _started(start: Start, offers: Cells) -> dict[str, Any]:
    units = _units(offers)
    unit = start.unit if start.unit in units or start.budget is not None else units[0]
    costs = affordable(offers, unit, start.budget or np.inf)["cost"]  # says what the cheapest costs, if that is more
    return {
        "unit": unit,
        "budget": start.budget or rounded_up(math.sqrt(costs.min() * costs.max())),
        "filters": {column: [str(value) for value in values] for column, values in start.filters.items()},
    }


def rounded_up(cost: float) -> float:
    """The least budget of three digits that pays for `cost`: what the page shows is then what was asked."""
    place = 10 ** (math.floor(math.log10(cost)) - 2)
    return float(f"{math.ceil(cost / place / (1 + 1e-9)) * place:.3g}")


def _answer(offers: Cells, started: Mapping[str, Any], influence: Influence | None) -> str:
    """What the page says before anything is chosen, and where no JavaScript runs."""
    kept = np.logical_and.reduce(
        [np.ones(len(offers.rows), bool)]
        + [offers.rows[column].astype(str).isin(values) for column, values in started["filters"].items()]
    )
    cells = replace(offers, rows=offers.rows[kept])
    return plan_cells(cells, Budget(unit=started["unit"], limit=started["budget"]), influence).sentence


def _styles(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Colour and marker of each checkpoint, by size: a ninth has the first's colour and another's shape; what is of one
    training seed, while others are of several, is hollow."""
    ordered = sorted(rows, key=lambda row: (row["params"], checkpoint_name(row)))
    names = list(dict.fromkeys(checkpoint_name(row) for row in ordered))
    slots = list(dict.fromkeys(map(of_any_seed, names)))

    def style(name: str) -> dict[str, str]:
        slot = slots.index(of_any_seed(name))
        hollow = "-open" if name != of_any_seed(name) and of_any_seed(name) in names else ""
        symbol = MARKERS[(slot + slot // len(PALETTE)) % len(MARKERS)][0]
        return {"colour": PALETTE[slot % len(PALETTE)], "symbol": f"{symbol}{hollow}"}

    return {name: style(name) for name in names}


def _limits(cells: Cells) -> list[str]:
    """What no answer can be given on, whatever is chosen."""
    missing = [UNITS[unit] for unit in COSTS if unit not in _units(cells)]
    found = [
        "Only what was sampled is offered: nothing is said of other sizes, samplers, step counts or guidance scales, "
        "between these or beyond.",
        "Quality is that of images for the study's own prompts: other captions may order sizes otherwise.",
    ]
    return found + [f"No cost in {' or '.join(missing)} is known of these cells." for _ in missing[:1]]


def _cells_csv(views: Mapping[str, Cells]) -> str:
    """Every point of every metric's plot."""
    columns = ["metric", "checkpoint", "member", "sampler", "steps", "guidance_scale", *COSTS.values(), "value", "low",
               "high", "selection_value", "n", "valid", "sample_key"]  # fmt: skip
    told_apart = ["eta", "variance", "spacing", "stages", "guidance_mode", "guidance_interval", "guide", "best_of"]
    frames = [cells.rows.assign(metric=cells.metric)[[*columns, *told_apart]] for cells in views.values()]
    return _csv(pd.concat(frames))


def _frontier_csv(fronts: Mapping[str, Sequence[Any]], unit: str) -> str:
    columns = ["metric", "cost", "use", "checkpoint", "sampler", "steps", "guidance_scale", "value", "low", "high", "n",
               "ties_at_no_greater_cost", "sample_key"]  # fmt: skip
    frames = [
        front.points.assign(
            metric=metric,
            use=[full_label(point) for point in front.points.to_dict("records")],
            ties_at_no_greater_cost=front.points["ties"].map(len),
        )[columns]
        for metric, found in fronts.items()
        for front in found
        if front.unit == unit
    ]
    return _csv(pd.concat(frames))


def _guidance_csv(maps: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {"sampler": found["sampler"], "checkpoint": checkpoint, "steps": steps, "best_guidance": value}
        for found in maps
        for checkpoint, values in zip(found["checkpoints"], found["guidance"], strict=True)
        for steps, value in zip(found["steps"], values, strict=True)
        if value is not None
    ]
    return _csv(pd.DataFrame(rows, columns=["sampler", "checkpoint", "steps", "best_guidance"]))


def _csv(frame: DataFrame) -> str:
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False)
    return buffer.getvalue()


def _or_none(value: Any) -> float | None:
    """NaN is not JSON."""
    return float(value) if value is not None and math.isfinite(value) else None
