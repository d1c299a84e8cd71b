from __future__ import annotations

import json

from isocost.analysis.frontier import frontier
from isocost.reporting.figures import (
    accuracy_bars,
    cost_by_steps,
    frontier_chart,
    guidance_map,
    quality_by_cost,
    steps_by_guidance,
    training_curve,
)
from isocost.reporting.interactive import plotly_json


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
