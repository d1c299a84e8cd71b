from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isocost.analysis.cells import PLAIN, best_guidance, resolve_metric
from isocost.analysis.crossovers import crossovers
from isocost.analysis.frontier import frontier
from isocost.errors import SpecError


def test_best_guidance_is_the_true_one(world, synthetic):
    cells = best_guidance(world.table, synthetic.FD)
    assert len(cells.rows) == 4 * 2 * 6
    assert (cells.rows["guidances"] == 4).all()
    for row in cells.rows.to_dict("records"):
        truths = {g: synthetic.true_fd(row["member"], row["sampler"], row["steps"], g) for g in synthetic.GUIDANCE}
        assert truths[row["guidance_scale"]] - min(truths.values()) < 1.0


def test_higher_is_better_is_chosen_upwards(world, synthetic):
    cells = best_guidance(world.table, synthetic.CLIP)
    selection = world.table[(world.table["metric"] == synthetic.CLIP) & (world.table["split"] == "selection")]
    for row in cells.rows.head(10).to_dict("records"):
        same = (selection["member"] == row["member"]) & (selection["sampler"] == row["sampler"])
        same &= (selection["steps"] == row["steps"]) & ~selection["curve"]
        assert row["select_score"] == selection[same]["value"].max()


def test_choice_is_made_on_selection_and_value_is_from_report(world, synthetic):
    """A report half that contradicts the selection half changes what is shown, never what is chosen."""
    table = world.table.copy()
    report = table["split"] == "report"
    before = best_guidance(table, synthetic.FD).rows
    table.loc[report, "value"] = np.arange(report.sum(), dtype=float)
    after = best_guidance(table, synthetic.FD).rows
    assert before["guidance_scale"].tolist() == after["guidance_scale"].tolist()
    shown = set(table[report & (table["metric"] == synthetic.FD)]["value"])
    assert set(after["value"]) <= shown
    chosen = [frontier(best_guidance(t, synthetic.FD)).points["sample_key"].tolist() for t in (table, world.table)]
    assert chosen[0] == chosen[1]


def test_select_by_another_metric(world, synthetic):
    by_fd = best_guidance(world.table, synthetic.CLIP, select_by=synthetic.FD).rows
    fd = best_guidance(world.table, synthetic.FD).rows
    assert by_fd["guidance_scale"].tolist() == fd["guidance_scale"].tolist()
    assert (by_fd["metric"] == synthetic.CLIP).all()


def test_unguided_cells_are_kept_as_cheaper_offers(world, synthetic):
    cells = best_guidance(world.table, synthetic.FD, keep_unguided=True)
    unguided = cells.rows[cells.rows["guidance_scale"] == 1]
    assert len(cells.rows) == 2 * 48 and len(unguided) == 48
    assert unguided["gflops_per_image"].min() < cells.rows[cells.rows["guidance_scale"] != 1]["gflops_per_image"].min()


def test_nan_scores_are_left_out_and_named(world, synthetic):
    table = world.table.copy()
    bad = table.index[(table["metric"] == synthetic.FD) & (table["split"] == "report") & (table["steps"] == 2)][:3]
    table.loc[bad, "value"] = np.nan
    cells = best_guidance(table, synthetic.FD)
    named = [name for name in cells.left_out if "is nan" in name]
    assert len(named) == len(cells.left_out) == 3 and all("2 steps" in name and "report half" in name for name in named)
    assert cells.rows["value"].notna().all()


def test_cells_without_a_half_are_left_out_and_named(world, synthetic):
    gone = (world.table["member"] == "c8") & (world.table["steps"] == 4) & (world.table["split"] == "report")
    cells = best_guidance(world.table[~gone], synthetic.FD)
    assert len(cells.rows) == 46
    assert any("c8" in name and "lacks" in name and "report half" in name for name in cells.left_out)


def test_only_one_half_at_all(world, synthetic):
    with pytest.raises(SpecError, match="both halves"):
        best_guidance(world.table[world.table["split"] == "selection"], synthetic.FD)


def test_empty_table_says_what_to_do(world):
    with pytest.raises(SpecError, match="no cell has a score yet"):
        best_guidance(world.table.iloc[:0], "fd")


def test_invalid_cells_are_kept_and_flagged(world, synthetic):
    table = world.table.assign(valid=world.table["steps"] > 2)
    cells = best_guidance(table, synthetic.FD)
    assert len(cells.rows) == 48
    assert cells.rows.loc[cells.rows["steps"] <= 2, "valid"].eq(False).all()


def test_seeds_are_averaged_and_their_spread_widens_the_interval(synthetic):
    world = synthetic.World(seeds=(0, 1, 2), curve=False)
    cells = best_guidance(world.table, synthetic.FD)
    assert len(cells.rows) == 48 and (cells.rows["seeds"] == (0, 1, 2)).all()
    row = cells.rows.iloc[0]
    same = world.table[(world.table["metric"] == synthetic.FD) & (world.table["split"] == "report")]
    for column in ("member", "sampler", "steps", "guidance_scale"):
        same = same[same[column] == row[column]]
    assert row["value"] == pytest.approx(same["value"].mean())
    expected = np.mean(same["stderr"] ** 2) + same["value"].var(ddof=1) / 3
    assert row["stderr"] == pytest.approx(np.sqrt(expected))
    assert row["score_keys"] == tuple(same.sort_values("seed")["score_key"])


def test_seeds_can_be_kept_apart(synthetic):
    world = synthetic.World(seeds=(0, 1), curve=False)
    cells = best_guidance(world.table, synthetic.FD, average_seeds=False)
    assert len(cells.rows) == 2 * 48
    assert set(cells.rows["checkpoint"]) == {f"c{w} seed {s}" for w in (8, 16, 32, 64) for s in (0, 1)}


def test_training_curve_cells_of_earlier_checkpoints_stay_out(world, synthetic):
    cells = best_guidance(world.table, synthetic.FD)
    assert (cells.rows["images_seen"] == 131072).all()


def test_several_checkpoints_of_a_member_are_named_apart(world, synthetic):
    cells = best_guidance(world.table.assign(curve=False), synthetic.FD)
    assert {"c8@4.1k", "c8@65.5k", "c8@131k"} <= set(cells.rows["checkpoint"])


def test_a_cell_scored_twice_counts_with_most_images(world, synthetic):
    fewer = world.table.assign(n=64, value=world.table["value"] + 100)
    table = pd.concat([fewer, world.table], ignore_index=True)
    again, once = best_guidance(table, synthetic.FD).rows, best_guidance(world.table, synthetic.FD).rows
    assert again["value"].tolist() == once["value"].tolist() and (again["n"] == 256).all()


def test_columns_of_none_are_no_numbers(world, synthetic):
    table = world.table.assign(stderr=None, seconds_per_image=None)
    assert best_guidance(table, synthetic.FD).rows["stderr"].isna().all()


def test_names_of_metrics(world):
    assert resolve_metric(world.table, "fd") == "fd[scenes-clip-score-32]"
    assert resolve_metric(world.table, "accuracy") == "accuracy"
    with pytest.raises(SpecError, match="kid"):
        resolve_metric(world.table, "kid")
    twice = pd.concat([world.table, world.table.assign(metric="fd[other]")])
    with pytest.raises(SpecError, match="give the full name"):
        resolve_metric(twice, "fd")


def test_bad_filters_and_units_are_explained(world, synthetic):
    with pytest.raises(SpecError, match="Did you mean 'sampler'"):
        best_guidance(world.table, synthetic.FD, filters={"sampelr": "ddim"})
    with pytest.raises(SpecError, match="Known: ddim, dpmpp_2m"):
        best_guidance(world.table, synthetic.FD, filters={"sampler": "heun"})
    with pytest.raises(SpecError, match="cost unit"):
        frontier(best_guidance(world.table, synthetic.FD), "second")
    without_seconds = world.table.assign(seconds_per_image=np.nan)
    with pytest.raises(SpecError, match="no cell has a known cost in seconds"):
        frontier(best_guidance(without_seconds, synthetic.FD), "seconds")


def stitched(world, synthetic, better_by: float):
    """Cells of c8 for half of the steps and then c16, `better_by` below c16's distance at two thirds of its cost."""
    table = world.table[(world.table["member"] == "c16") & ~world.table["curve"]]
    cost = {name: table[name] * 2 / 3 for name in ("paper_cost", "gflops_per_image", "seconds_per_image")}
    names = {"member": "c8+c16", "stages": "c8 for 50% of the steps, then c16", "params": table["params"] * 1.3}
    value = table["value"].where(table["metric"] != synthetic.FD, table["value"] - better_by)
    keys = {name: table[name] + "+" for name in ("sample_key", "score_key")}
    return pd.concat([world.table, table.assign(value=value, **names, **cost, **keys)])


def test_stitched_cells_stand_beside_members_and_reach_the_frontier(world, synthetic):
    table = stitched(world, synthetic, better_by=1.0)
    cells = best_guidance(table, synthetic.FD)
    assert cells.members == ["c8", "c16", "c32", "c64"]
    assert len(cells.rows) == 4 * 2 * 6 + 2 * 6 and len(cells.plain) == 4 * 2 * 6
    points = frontier(cells).points
    assert (points["stages"] != "").any()
    pairs = [(found.smaller, found.larger) for found in crossovers(cells)]
    assert pairs == [("c8", "c16"), ("c16", "c32"), ("c32", "c64")]


@pytest.mark.parametrize(
    ("column", "value"), [("guidance_mode", "cfg++"), ("guidance_interval", "200-800"), ("guide", "c8"), ("best_of", 4)]
)
def test_guidance_is_never_chosen_across_ways(world, synthetic, column, value):
    """Another way that is better at every scale takes no plain cell's place, and has its own scales compared."""
    grid = world.table[~world.table["curve"]]
    keys = {name: grid[name] + "*" for name in ("sample_key", "score_key")}
    both = pd.concat([grid, grid.assign(**{column: value}, value=grid["value"] - 2, **keys)])
    cells = best_guidance(both, synthetic.FD).rows
    assert len(cells) == 2 * 48 and (cells["guidances"] == 4).all()
    alone = best_guidance(grid, synthetic.FD).rows
    plain = cells[cells[column] == PLAIN[column]]
    assert sorted(plain["sample_key"]) == sorted(alone["sample_key"])


def test_all_of_cfg_plus_plus_is_guided(world, synthetic):
    table = world.table.assign(guidance_mode="cfg++")
    cells = best_guidance(table, synthetic.FD, keep_unguided=True)
    assert len(cells.rows) == 48
