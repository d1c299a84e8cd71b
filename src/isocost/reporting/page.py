"""One static HTML page that says what a study found, and how sure it is. No request leaves the page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from isocost.analysis.best_of import judges_that_chose
from isocost.analysis.cells import COSTS, Cells, best_guidance
from isocost.analysis.crossovers import Crossover, crossovers
from isocost.analysis.differences import Influence
from isocost.analysis.frames import DataFrame, Series
from isocost.analysis.frontier import Frontier, frontier
from isocost.analysis.planner import Recommendation, plan_cells
from isocost.analysis.words import (
    UNITS,
    checkpoint_name,
    full_label,
    is_guided,
    listed,
    metric_name,
    number,
    sampler_name,
    short_label,
    with_error,
)
from isocost.reporting import figures
from isocost.reporting.figures import known_units
from isocost.reporting.interactive import plotly_json
from isocost.reporting.plots import Bars, Plot
from isocost.reporting.section import Section
from isocost.reporting.strips import Strip, data_uri
from isocost.reporting.superres import Superres
from isocost.specs import Budget, Spec

UNIT_NAMES = {"paper": "Paper cost", "gflops": "GFLOPs", "seconds": "Seconds"}
UNIT_NOTES = {
    "paper": "Normalised forward FLOPs × steps, as in the paper: guidance's second evaluation, the text encoder and "
    "the decoder are left out.",
    "gflops": "Every network evaluation counted, guidance included, plus text encoder and decoder.",
}


@dataclass(frozen=True)
class UnitView:
    """All that the page says under one cost unit."""

    unit: str
    front: Frontier
    crossovers: list[Crossover]
    rows: list[dict[str, Any]]


def summary(
    table: DataFrame,
    metric: str,
    unit: str = "paper",
    influence: Influence | None = None,
    filters: Mapping[str, Any] | None = None,
    select_by: str | None = None,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """The frontier in words, for a terminal.

    Returns `sentence` (the answer within `budget`, or with no limit), `metric`, `unit`, `columns` (headings), `rows`
    (tuples of strings, one a frontier point), `crossovers` (sentences), `notes` and `left_out` (lists of strings).
    """
    offers = best_guidance(table, metric, select_by, filters, keep_unguided=True)
    view = _view(offers, unit, influence)
    answer = plan_cells(offers, budget, influence)
    columns = ("cost", "use", "sampler", "steps", "guidance", metric_name(offers.metric), "ties")
    fields = ("cost", "member", "sampler", "steps", "guidance", "value", "ties")
    return {
        "sentence": answer.sentence,
        "metric": offers.metric,
        "unit": unit,
        "columns": columns,
        "rows": [tuple(row[name] for name in fields) for row in view.rows],
        "crossovers": [found.sentence for found in view.crossovers],
        "notes": notes(table, offers, view.front),
        "left_out": list(offers.left_out),
    }


def report(
    table: DataFrame,
    *,
    study: Spec | Mapping[str, Any],
    folder: Path | str,
    metric: str | None = None,
    budget: Budget | None = None,
    strips: Mapping[str, Strip] | None = None,
    accuracy_baselines: Mapping[str, Mapping[str, float]] | None = None,
    environment: Mapping[str, Any] | None = None,
    influence: Influence | None = None,
    digests: Mapping[str, str] | None = None,
    filters: Mapping[str, Any] | None = None,
    select_by: str | None = None,
    losses: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    search: str | None = None,
    superres: Superres | None = None,
    sections: Sequence[Section] = (),
) -> Path:
    """Write `folder`/report.html and return its path.

    `study`: the StudySpec, or its fields as a dict (`name` and `evaluation.select_by` are read; all of it is shown).
    `select_by`: the table's own name of the metric that chooses guidance, where the study's could be several.
    `metric` (default: that one) judges cells; `budget` sets the answer on top (default: no limit).
    `strips`: title -> images. `accuracy_baselines`: attribute -> {"chance", "ceiling"}. `digests`: further identities
    to show by name. `losses`: as `figures.loss_by_compute` takes them. `sections`: what only some studies have. Raises
    `SpecError` on a table with nothing to report.
    """
    fields = study.model_dump(mode="json") if isinstance(study, Spec) else dict(study)
    select_by = select_by or str((fields.get("evaluation") or {}).get("select_by", "fd"))
    metric = metric or select_by
    best = best_guidance(table, metric, select_by, filters)
    offers = best_guidance(table, metric, select_by, filters, keep_unguided=True)
    views = [_view(offers, unit, influence) for unit in known_units(offers)]
    answer = plan_cells(offers, budget, influence)
    accuracy = figures.accuracy_bars(table, best, accuracy_baselines)
    plots = _plots(table, best, [view.front for view in views], accuracy)
    if loss := figures.loss_by_compute(losses or {}):
        plots["loss"] = loss
    if superres:
        plots |= superres.plots
    for section in sections:
        plots |= section.plots
    page = (
        templates()
        .get_template("report.html.j2")
        .render(
            name=fields.get("name", "study"),
            answer=answer.sentence,
            thrift=_thrift(answer),
            facts=_facts(table, best),
            metric=metric_name(best.metric),
            select_by=metric_name(best.select_by),
            direction="higher is better" if best.higher_is_better else "lower is better",
            views=[_shown(view) for view in views],
            accuracy=_accuracy_table(accuracy) if accuracy else None,
            superres=superres,
            sections=sections,
            plots={key: {"title": plot.title} for key, plot in plots.items()},
            guidance_curves=[key for key in plots if key.startswith("steps-")],
            guidance_maps=[key for key in plots if key.startswith("map-")],
            strips=[_shown_strip(title, strip) for title, strip in (strips or {}).items()],
            spec=yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=100),
            digests=({"study": study.digest} if isinstance(study, Spec) else {}) | dict(digests or {}),
            environment={str(key): _inline(value) for key, value in (environment or {}).items()},
            notes=[*([search] if search else []), *notes(table, best, views[0].front)],
            left_out=list(dict.fromkeys(best.left_out)),
            plotly=plotly_source(),
            figures=script_json({key: plotly_json(plot) for key, plot in plots.items()}),
        )
    )
    path = Path(folder) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def notes(table: DataFrame, cells: Cells, front: Frontier) -> list[str]:
    """What the table cannot settle, in sentences."""
    seeds = sorted({seed for found in cells.rows["seeds"] for seed in found})
    rows, found = cells.rows, []
    several_sizes = len(cells.members) > 1
    if len(seeds) == 1 and several_sizes:
        found.append(
            "One training seed: differences between sizes may be seeds. The intervals hold for these checkpoints and "
            "prompts like these, not for another training of the same size."
        )
    elif len(seeds) > 1:
        found.append(f"{len(seeds)} training seeds: intervals add the spread between seeds to that of the images.")
    if len(cells.members) == 1:
        found.append(f"One size, {cells.members[0]}: nothing is said about how quality scales with size.")
    if rows["guidances"].max() == 1:
        found.append("One guidance scale a cell: whether another would do better was not tested.")
    found += judges_that_chose(cells.metric, rows["scorer"])
    if not rows["valid"].astype(bool).all():
        found.append(
            f"{int((~rows['valid'].astype(bool)).sum())} of {len(rows)} cells have too few images for "
            f"{metric_name(cells.metric)} to be trusted; they are drawn grey."
        )
    if rows["stderr"].isna().any():
        found.append(f"{metric_name(cells.metric)} has no error estimate in some cells: there, ties cannot be told.")
    if not front.points["paired"].any() and len(rows) > 1:
        found.append(
            "Per-image values were not given, so differences are judged as if cells were scored on different images: "
            "more cells tie than need be."
        )
    scored = table[table["metric"] == cells.metric]
    if "captions_cut" in scored and scored["captions_cut"].max() > 0:
        cut = f"{int(scored['captions_cut'].max()):,}"
        found.append(f"{metric_name(cells.metric)} reads only the beginning of {cut} captions, too long for it.")
    if "protocol" in scored and scored["protocol"].iloc[0]:
        found.append(f"{metric_name(cells.metric)} is by the protocol {scored['protocol'].iloc[0]}.")
    found.append("Each tie and crossover is judged at 95% by itself, with no correction for how many are judged.")
    if cells.metric.startswith("fd[") and not cells.metric.startswith("fd[fid-"):
        found.append(
            f"{metric_name(cells.metric)} is a Fréchet distance in this extractor's features, not the usual FID: "
            "compare it within this study only."
        )
    if "seconds_per_image" in table and table["seconds_per_image"].notna().any():
        found.append(f"Seconds are {table['seconds_as'].iloc[0]}. Another device, engine or batch may order otherwise.")
    return found


def _view(cells: Cells, unit: str, influence: Influence | None) -> UnitView:
    front = frontier(cells, unit, influence)
    rows = [_frontier_row(point, cells) for _, point in front.points.iterrows()]
    return UnitView(unit, front, crossovers(cells, unit, influence), rows)


def _frontier_row(point: Series, cells: Cells) -> dict[str, Any]:
    ties = cells.rows.loc[list(point["ties"])].to_dict("records")
    return {
        "cost": number(point["cost"]),
        "member": checkpoint_name(point.to_dict()),
        "sampler": sampler_name(point.to_dict()),
        "steps": str(int(point["steps"])),
        "guidance": number(point["guidance_scale"]) if is_guided(point.to_dict()) else "none",
        "value": with_error(point["value"], (point["high"] - point["low"]) / 2),
        "ties": listed((short_label(tie) for tie in ties), 2) or "none",
        "valid": bool(point["valid"]),
    }


def _thrift(answer: Recommendation) -> str:
    """How much less the cheapest tie costs, in the honest cost where it is known; empty where nothing cheaper ties."""
    unit = "gflops" if "gflops" in answer.cost else next(iter(answer.cost))
    column = COSTS[unit]
    cheaper = [tie for tie in answer.ties if tie[column] < answer.cost[unit]]
    if not cheaper:
        return "Nothing cheaper ties with it."
    cheapest = min(cheaper, key=lambda tie: tie[column])
    share = cheapest[column] / answer.cost[unit]
    return f"The cheapest that ties with it is {full_label(cheapest)}, at {share:.0%} of its {UNITS[unit]}."


def _facts(table: DataFrame, cells: Cells) -> list[tuple[str, str]]:
    """Label and value of the numbers that say how much was measured."""
    rows = cells.rows
    counts = [
        ("size", len(cells.members)),
        ("sampler", rows["sampler"].nunique()),
        ("cell scored", table["sample_key"].nunique()),
        ("prompt a half", int(rows["n"].min())),
        ("training seed", len({seed for found in rows["seeds"] for seed in found})),
    ]
    plural = {"cell scored": "cells scored", "prompt a half": "prompts a half"}
    return [(label if count == 1 else plural.get(label, f"{label}s"), f"{count:,}") for label, count in counts]


def _plots(table: DataFrame, best: Cells, fronts: list[Frontier], accuracy: Bars | None) -> dict[str, Plot]:
    """Every figure of the page by its key, in the page's order; those the table has no rows for are left out."""
    samplers = list(dict.fromkeys(best.rows["sampler"]))
    found: dict[str, Plot | None] = {}
    for front in fronts:
        found[f"frontier-{front.unit}"] = figures.frontier_chart(front)
        found[f"cost-{front.unit}"] = figures.cost_by_steps(best, front.unit)
        found[f"quality-{front.unit}"] = figures.quality_by_cost(best, front.unit)
    found["accuracy"] = accuracy
    found["training"] = figures.training_curve(table, best.metric)
    for sampler in samplers:
        found[f"map-{sampler}"] = figures.guidance_map(best, sampler)
    for member in best.members:
        found[f"steps-{member}"] = figures.steps_by_guidance(table, best.metric, member, samplers[0])
    return {key: plot for key, plot in found.items() if plot is not None}


def _shown(view: UnitView) -> dict[str, Any]:
    return {
        "unit": view.unit,
        "name": UNIT_NAMES[view.unit],
        "heading": UNITS[view.unit],
        "note": unit_note(view.front.cells, view.unit),
        "rows": view.rows,
        "crossovers": [found.sentence for found in view.crossovers],
    }


def unit_note(cells: Cells, unit: str) -> str:
    """What a cost unit counts, in a sentence."""
    return f"Wall time, {cells.rows['seconds_as'].iloc[0]}." if unit == "seconds" else UNIT_NOTES[unit]


def _accuracy_table(bars: Bars) -> dict[str, Any]:
    """Rows of the accuracy table: chance, each member, ceiling."""

    def row(name: str, values: Any, widths: Any = None, kind: str = "") -> dict[str, Any]:
        widths = widths or [math.nan] * len(values)
        cells = [_share(value, width) for value, width in zip(values, widths, strict=True)]
        return {"name": name, "cells": cells, "kind": kind}

    rows = [row(series.name, series.y, series.half_width) for series in bars.series]
    if any(math.isfinite(level) for level in bars.chance):
        rows.insert(0, row("chance", bars.chance, kind="frame"))
    if any(math.isfinite(level) for level in bars.ceiling):
        rows.append(row("ceiling", bars.ceiling, kind="frame"))
    return {"columns": bars.categories, "rows": rows, "cells": [series.text[0] for series in bars.series]}


def _share(value: float, half_width: float) -> str:
    """A share as a percentage, with its interval where it has one."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.1%}" + (f" ± {100 * half_width:.1f}" if math.isfinite(half_width) else "")


def _shown_strip(title: str, strip: Strip) -> dict[str, Any]:
    rows, columns, height, width, _ = strip.grid.shape
    labels, sides = strip.columns or ("",) * columns, strip.rows or ("",) * rows
    return {
        "title": title,
        "caption": strip.caption,
        "columns": labels,
        "labelled": any(labels),
        "rows": [
            {
                "label": sides[row],
                "cells": [
                    {
                        "src": data_uri(strip.grid[row, column]),
                        "alt": ", ".join(filter(None, [sides[row], labels[column]])) or title,
                    }
                    for column in range(columns)
                ],
            }
            for row in range(rows)
        ],
        "pixelated": max(height, width) <= 128,
        "has_rows": bool(strip.rows),
    }


def _inline(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def script_json(value: Any) -> str:
    """JSON that can stand inside a <script> element: no `<` that could close it, no NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def plotly_source() -> str:
    """plotly.js, inlined so that the page works offline."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def templates() -> Any:
    """jinja2's environment of the package's templates, which escapes all that is put into them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
