from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isocost.analysis.cells import best_guidance
from isocost.analysis.frontier import frontier
from isocost.reporting.figures import (
    accuracy_bars,
    cost_by_steps,
    frontier_chart,
    guidance_map,
    loss_by_compute,
    quality_by_cost,
    steps_by_guidance,
    training_curve,
)
from isocost.reporting.interactive import plotly_json
from isocost.reporting.paper import matplotlib_figure
from isocost.reporting.plots import GREY, PALETTE, spread


def test_training_curve_is_one_curve_a_size_from_curve_rows(world, synthetic):
    chart = training_curve(world.table, synthetic.FD)
    assert [series.name for series in chart.series] == ["c8", "c16", "c32", "c64"]
    rows = world.table[world.table["curve"] & (world.table["metric"] == synthetic.FD)]
    rows = rows[(rows["split"] == "report") & (rows["member"] == "c16")].sort_values("train_gflops")
    assert list(chart.series[1].x) == rows["train_gflops"].tolist()
    assert list(chart.series[1].y) == rows["value"].tolist()
    assert np.allclose(chart.series[1].half_width, 1.959964 * rows["stderr"])


def test_training_curve_prefers_all_prompts(world, synthetic):
    table = world.table.copy()
    table.loc[table["split"] == "selection", "split"] = "all"
    chart = training_curve(table, synthetic.FD)
    rows = table[table["curve"] & (table["metric"] == synthetic.FD) & (table["split"] == "all")]
    assert set(chart.series[0].y) <= set(rows["value"])


def test_no_training_curve(world, synthetic):
    assert training_curve(world.table[~world.table["curve"]], synthetic.FD) is None


def test_loss_against_compute_averages_steps_between_points():
    gflops = np.arange(1, 1001, dtype=float)
    chart = loss_by_compute({"c8": (gflops, 2 / gflops), "c16": (2 * gflops, 1 / gflops), "c24": ([], [])})
    assert [series.name for series in chart.series] == ["c8", "c16"] and chart.log_x and chart.log_y
    first = chart.series[0]
    assert list(first.x[:3]) == [1, 2, 3] and np.allclose(first.y[:3], [2, 1, 2 / 3])
    assert len(first.x) <= 60 and first.x[-1] > 900 and list(first.y) == sorted(first.y, reverse=True)
    assert loss_by_compute({}) is None


def test_steps_by_guidance(world, synthetic):
    chart = steps_by_guidance(world.table, synthetic.FD, "c16", "ddim")
    assert [series.name for series in chart.series] == ["none", "1.5", "2", "4"]
    assert all(list(series.x) == list(synthetic.STEPS) for series in chart.series)
    assert steps_by_guidance(world.table, synthetic.FD, "c16", "heun") is None


def test_guidance_map_holds_the_chosen_scales(cells, synthetic):
    found = guidance_map(cells, "ddim")
    assert found.y == ("c8", "c16", "c32", "c64") and found.x == tuple(map(str, synthetic.STEPS))
    row = cells.rows[(cells.rows["member"] == "c32") & (cells.rows["sampler"] == "ddim") & (cells.rows["steps"] == 8)]
    assert found.z[2, 4] == row["guidance_scale"].item()


def test_missing_cells_are_blank_on_the_map(world, synthetic):
    gone = (world.table["member"] == "c8") & (world.table["steps"] == 3)
    found = guidance_map(best_guidance(world.table[~gone], synthetic.FD), "ddim")
    assert np.isnan(found.z[0, 2]) and np.isfinite(np.delete(found.z, 2, axis=1)).all()
    assert plotly_json(found)["data"][0]["z"][0][2] is None
    matplotlib_figure(found)


def test_cost_by_steps(cells, synthetic):
    chart = cost_by_steps(cells, "paper")
    assert chart.log_x and chart.log_y
    expected = [synthetic.NORM_COST["c32"] * steps for steps in synthetic.STEPS]
    assert np.allclose(chart.series[2].y, expected)


def test_quality_by_cost_tells_samplers_apart_by_dash(cells):
    chart = quality_by_cost(cells, "gflops")
    assert len(chart.series) == 8 and sum(series.in_legend for series in chart.series) == 4
    assert {series.dash for series in chart.series} == {0, 1}
    assert "DDIM solid" in chart.title


def test_frontier_chart_draws_a_staircase(cells, world):
    front = frontier(cells, "paper", world.influence)
    trace = plotly_json(frontier_chart(front))["data"][-1]
    assert trace["name"] == "frontier" and trace["line"]["shape"] == "hv"
    assert trace["y"] == front.points["value"].tolist()
    assert np.allclose(trace["error_y"]["array"], 1.959964 * front.points["stderr"])


def test_invalid_cells_are_grey(world, synthetic):
    cells = best_guidance(world.table.assign(valid=world.table["steps"] > 1), synthetic.FD)
    colours = plotly_json(quality_by_cost(cells, "paper"))["data"][0]["marker"]["color"]
    assert colours[0] == GREY and set(colours[1:]) == {PALETTE[0]}


def test_accuracy_bars(world, cells):
    bars = accuracy_bars(world.table, cells, {"colour": {"chance": 0.125, "ceiling": 0.99}})
    assert bars.categories == ("overall", "colour", "count", "position", "shape")
    assert bars.chance[1] == 0.125 and np.isnan(bars.chance[0])
    best = cells.of_member("c64").sort_values("selection_value").iloc[0]
    rows = world.table[(world.table["sample_key"] == best["sample_key"]) & (world.table["split"] == "report")]
    expected = rows[rows["metric"] == "accuracy/colour"]["value"].item()
    assert bars.series[3].y[1] == expected
    assert accuracy_bars(world.table[world.table["metric"] == cells.metric], cells) is None


def test_a_score_without_an_error_has_a_curve_without_one(world, synthetic):
    """A store's table holds None for it, which makes whole columns ones of objects."""
    table = world.table.astype({"stderr": object, "value": object})
    table.loc[table["member"] == "c8", "stderr"] = None
    chart = training_curve(table, synthetic.FD)
    assert np.isnan(chart.series[0].half_width).all() and np.isfinite(chart.series[1].half_width).all()


def test_what_a_chart_has_no_room_for_is_thinned(world, synthetic):
    table = world.table[(world.table["member"] == "c16") & (world.table["steps"] == 4)]
    many = pd.concat([
        table.assign(steps=steps, guidance_scale=1 + scale / 4) for steps in range(1, 41) for scale in range(20)
    ]).drop_duplicates(["sampler", "steps", "guidance_scale", "split", "metric", "curve"])  # fmt: skip
    chart = steps_by_guidance(many, synthetic.FD, "c16", "ddim")
    assert len(chart.series) == len(PALETTE) and chart.title.endswith(f"({len(PALETTE)} of 20)")
    assert chart.series[0].name == "none" and chart.series[-1].name == "5.75"
    assert len(chart.x_ticks) <= 10 and {chart.x_ticks[0], chart.x_ticks[-1]} == {1, 40}
    assert list(chart.series[0].x) == list(range(1, 41))  # points are all there; their errors are a band
    traces = plotly_json(chart)["data"]
    assert [trace.get("fill") for trace in traces] == ["toself", None] * len(PALETTE)
    band, line = traces[:2]
    assert len(band["x"]) == 2 * len(line["x"]) and "error_y" not in line
    assert band["y"][0] - line["y"][0] == pytest.approx(chart.series[0].half_width[0])
    (axis,) = matplotlib_figure(chart).axes
    assert len(axis.collections) == len(PALETTE)

    best = guidance_map(best_guidance(many, synthetic.FD), "ddim")
    assert len(best.x) <= 12 and best.x[-1] == "40" and "of 40 step counts" in best.title


def test_spread_keeps_the_ends_and_what_fits():
    assert spread([1, 2, 4], 3) == (1, 2, 4)
    assert spread(list(range(1, 101)), 5) == (1, 3, 10, 32, 100)


def test_what_one_training_seed_alone_has_is_faint_in_its_members_colour(synthetic):
    table = synthetic.World(0, seeds=(0, 1, 2), attributes=False).table
    table = table[(table["seed"] == 0) | (table["steps"] == 4)]
    cells = best_guidance(table, synthetic.FD)
    chart = quality_by_cost(cells, "paper")
    of_ddim = [series for series in chart.series if series.dash == 0]
    solid = {series.name: series.slot for series in of_ddim if not series.faint}
    faint = {series.name: series.slot for series in of_ddim if series.faint}
    assert solid == {"c8": 0, "c16": 1, "c32": 2, "c64": 3}
    assert faint == {f"{name} seed 0": slot for name, slot in solid.items()}
    assert chart.title.endswith("faint: of one training seed")
    assert [text.get_text() for text in matplotlib_figure(chart).axes[0].get_legend().texts] == list(solid)
    shown = [trace["name"] for trace in plotly_json(chart)["data"] if trace["showlegend"]]
    assert shown == list(solid)
    assert [series.name for series in cost_by_steps(cells, "paper").series] == list(solid)
    assert guidance_map(cells, "ddim").y == tuple(solid)
