from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from isocost.analysis.frontier import best_guidance, frontier
from isocost.errors import SpecError
from isocost.reporting.figures import (
    GREY,
    PALETTE,
    Strip,
    accuracy_bars,
    contact_sheet,
    cost_by_steps,
    data_uri,
    frontier_chart,
    guidance_map,
    matplotlib_figure,
    paper_figures,
    plotly_json,
    quality_by_cost,
    save,
    steps_by_guidance,
    training_curve,
)


@pytest.fixture(scope="module")
def cells(world, synthetic):
    return best_guidance(world.table, synthetic.FD)


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


def test_every_plot_is_valid_for_plotly_and_json(world, cells, synthetic):
    from plotly.graph_objects import Figure

    plots = [
        training_curve(world.table, synthetic.FD), steps_by_guidance(world.table, synthetic.FD, "c8", "ddim"),
        guidance_map(cells, "ddim"), cost_by_steps(cells, "seconds"), quality_by_cost(cells, "paper"),
        frontier_chart(frontier(cells)), accuracy_bars(world.table, cells, {"shape": {"chance": 0.25}}),
    ]  # fmt: skip
    for plot in plots:
        text = json.dumps(plotly_json(plot), allow_nan=False)
        figure = json.loads(text.replace('"ink"', '"#000000"'))
        assert len(Figure(figure).data) == len(figure["data"]) > 0


def test_paper_figures_are_written(world, synthetic, tmp_path):
    table = world.table[world.table["member"].isin(["c8", "c16"]) & (world.table["sampler"] == "ddim")]
    cells = best_guidance(table.assign(seconds_per_image=np.nan, gflops_per_image=np.nan), synthetic.FD)
    strip = {"size": Strip(np.zeros((2, 3, 8, 8, 3), np.uint8))}
    written = paper_figures(table, cells, tmp_path, strips=strip)
    names = {path.name for path in written}
    assert {"fig03-training-compute.png", "fig08-guidance-ddim.svg", "fig09-cost-paper.png", "accuracy.svg"} <= names
    assert {"frontier-paper.svg", "strip-size.png"} <= names
    assert not any("seconds" in name or "gflops" in name for name in names)
    assert all(path.stat().st_size > 0 for path in written)


def test_equal_figures_give_equal_bytes(cells, tmp_path):
    paths = [save(matplotlib_figure(guidance_map(cells, "ddim")), tmp_path / folder, "map") for folder in "ab"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*paths, strict=True))


def test_strips_are_checked():
    with pytest.raises(SpecError, match="uint8"):
        Strip(np.zeros((2, 3, 8, 8, 3), np.float32))
    with pytest.raises(SpecError, match="3 columns has 2 labels"):
        Strip(np.zeros((3, 8, 8, 3), np.uint8), columns=("a", "b"))


def test_data_uri_is_the_image():
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    head, _, body = data_uri(image).partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(body)))), image)


def test_contact_sheet_places_images():
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    sheet = contact_sheet(Strip(images.reshape(2, 3, 4, 4, 3)), gap=1)
    assert sheet.shape == (9, 14, 3)
    assert sheet[0, 5, 0] == 1 and sheet[5, 10, 0] == 5 and sheet[4, 0, 0] == 255
