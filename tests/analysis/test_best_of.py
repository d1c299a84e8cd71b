"""Best-of-n beside more steps of one image, in worlds where it is known which is better."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from isocost.analysis.best_of import ANY, best_of, judges_that_chose
from isocost.analysis.cells import COSTS, PLAIN
from isocost.analysis.laws import laws
from isocost.analysis.sheet import Missing

MEMBERS, STEPS, MANY = ("c8", "c16"), (1, 2, 4, 8), (2, 4)


def made_world(synthetic, gain):
    """Two members by DDIM; FD of best-of-n is `gain(n)` below that of one image at the same steps, for n times the
    cost."""
    made = synthetic.World(
        5, attributes=False, curve=False, members=MEMBERS, samplers=("ddim",), steps=STEPS, guidance=(1.5,)
    )
    tables, single = [made.table.assign(**PLAIN)], dict(made.arrays)
    for n in MANY:
        rows = [
            row | {column: n * row[column] for column in COSTS.values()}
            for member in MEMBERS
            for steps in STEPS
            for row in made.cell(member, 0, "ddim", steps, 1.5, shift=-gain(n))
        ]
        for row in rows:
            single[f"{row['score_key']}/{n}"] = made.arrays[row["score_key"]]
            row |= {"score_key": f"{row['score_key']}/{n}", "sample_key": f"{row['sample_key']}/{n}"}
        tables.append(pd.DataFrame(rows).assign(**PLAIN | {"best_of": n, "scorer": "scenes-clip-score"}))
    made.arrays = single
    return made, pd.concat(tables, ignore_index=True)


def test_more_steps_win_where_choosing_gains_little(synthetic):
    made, table = made_world(synthetic, lambda n: 0.1 * np.log2(n))
    found = best_of(table, synthetic.FD, made.influence)
    points = [point for point in found.at if point.member == "c8" and point.cost < 3.5]  # then one has all its steps
    assert points and all(choice.verdict == "worse" for point in points for choice in point.choices[1:])
    assert found.sentences[0].startswith("best of n pays surely at ")


def test_choosing_wins_where_it_gains_much(synthetic):
    made, table = made_world(synthetic, lambda n: 20.0 * np.log2(n))
    found = best_of(table, synthetic.FD, made.influence)
    assert [point.member for point in found.at if point.member == ANY]
    last = found.at[-1]
    assert [choice.n for choice in last.choices] == [1, 2, 4]
    assert [choice.verdict for choice in last.choices] == ["", "better", "better"]
    for point in found.at:
        rows = {row["sample_key"]: row for row in table.to_dict("records")}
        assert all(rows[choice.key]["gflops_per_image"] <= point.cost * (1 + 1e-9) for choice in point.choices)


def test_gains_are_paired_differences(synthetic):
    made, table = made_world(synthetic, lambda n: 20.0 * np.log2(n))
    choice = best_of(table, synthetic.FD, made.influence).at[-1].choices[-1]
    single = best_of(table, synthetic.FD, made.influence).at[-1].choices[0]
    assert choice.gain == pytest.approx(single.value - choice.value)
    unpaired = best_of(table, synthetic.FD).at[-1].choices[-1]
    assert np.ptp(choice.gain_interval) < 0.6 * np.ptp(unpaired.gain_interval)
    higher = best_of(table, synthetic.CLIP, made.influence, select_by=synthetic.FD).at[-1].choices[-1]
    assert higher.gain > 0  # a higher CLIP score is a gain


def test_in_laws_and_their_json(synthetic):
    made, table = made_world(synthetic, lambda n: 20.0)
    found = laws(table, made.influence, axes=True)
    assert found.best_of.chosen_by == ("scenes-clip-score",)
    assert any("best of n pays surely" in line for line in found.sentences)
    assert found.as_dict()["best_of"]["at"][0]["choices"][0]["n"] == 1
    assert len(found.best_of.rows()) == sum(len(point.choices) for point in found.best_of.at)


def test_without_such_cells_it_says_what_it_needs(world, synthetic):
    with pytest.raises(Missing, match=r"grid\.best_of"):
        best_of(world.table, synthetic.FD)


def test_a_judge_that_chose_is_named():
    assert judges_that_chose("clip[own]", ["own"]) and judges_that_chose("fd[own-32]", ["own", ""])
    assert not judges_that_chose("fd[own-2-32]", ["own"]) and not judges_that_chose("fd[other]", ["own"])
