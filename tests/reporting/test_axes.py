from __future__ import annotations

from isocost.analysis.cells import COSTS, PLAIN
from isocost.reporting.axes import axes


def test_a_row_a_source_and_a_table_beside_the_page(world, synthetic):
    (section,), files = axes(world.table, world.influence, synthetic.FD)
    assert [row[0] for row in section.rows][:4] == ["size", "steps", "guidance", "size × steps"]
    shares = [float(row[1].rstrip("%")) for row in section.rows if row[1] != "–"]
    assert abs(sum(shares) - 100) < 0.5 and "size: c8, c16, c32, c64" in section.sentences[0]
    untold = next(row for row in section.rows if row[0] == "training seed")
    assert untold[1:4] == ("–", "–", "–") and "Training seed: one training seed" in section.note
    assert list(files) == ["variance.csv"] and len(files["variance.csv"]) == len(section.rows)


def test_quality_against_n_at_each_cost(world, synthetic):
    table = world.table.assign(**PLAIN)
    chosen = table[(table["member"] == "c8") & (table["sampler"] == "ddim") & ~table["curve"].astype(bool)]
    chosen = chosen.assign(best_of=4, scorer="scenes-clip-score", value=0.5 * chosen["value"])
    chosen[list(COSTS.values())] *= 4
    chosen = chosen.assign(**{key: chosen[key] + "/4" for key in ("sample_key", "score_key")})
    both = table.loc[~table["curve"].astype(bool)]
    (_, section), files = axes(type(both)(both.to_dict("records") + chosen.to_dict("records")), None, synthetic.FD)
    assert section.key == "best-of" and {row[2] for row in section.rows} == {"1", "4"}
    assert {row[6] for row in section.rows} >= {"", "better"} and "says little of quality" in section.note
    chart = section.plots["best-of"]
    assert all(list(series.x) == [1, 4] for series in chart.series) and chart.x_ticks == (1.0, 4.0)
    assert set(files) == {"variance.csv", "best-of.csv"}


def test_a_table_with_one_cell_has_neither(world, synthetic):
    one = world.table[(world.table["sample_key"] == world.table["sample_key"].iloc[0])]
    assert axes(one, world.influence, synthetic.FD) == ([], {})
