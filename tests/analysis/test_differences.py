from __future__ import annotations

import numpy as np
import pytest

from isocost.analysis.cells import best_guidance
from isocost.analysis.differences import comparer
from isocost.analysis.frontier import frontier


def test_ties_are_cells_at_no_greater_cost_that_are_not_worse(world, synthetic):
    front = frontier(best_guidance(world.table, synthetic.FD), "paper", world.influence)
    rows = front.cells.rows
    assert front.points["paired"].iloc[-1]
    for index, point in front.points.iterrows():
        assert index not in point["ties"]
        winner = world.influence(point["score_key"])
        for other, row in rows.iterrows():
            if row["paper_cost"] > point["cost"] or other == index:
                assert other not in point["ties"]
                continue
            stderr = np.std(winner - world.influence(row["score_key"]), ddof=1) / np.sqrt(world.n)
            worse = row["value"] - point["value"] > 1.959964 * stderr
            assert (other in point["ties"]) == (not worse)


def test_paired_differences_tell_more_cells_apart(world, synthetic):
    cells = best_guidance(world.table, synthetic.FD)
    paired = frontier(cells, "paper", world.influence).points["ties"].map(len).sum()
    unpaired = frontier(cells, "paper").points
    assert not unpaired["paired"].any()
    assert paired < unpaired["ties"].map(len).sum()


def test_paired_interval_covers_the_true_difference(synthetic):
    """The 95% interval of a paired difference holds the truth in about 95% of worlds."""
    held, widths, unpaired_widths = [], [], []
    for seed in range(40):
        world = synthetic.World(seed, 64, members=("c8", "c16"), steps=(4,), samplers=("ddim",), guidance=(2.0,),
                                attributes=False, curve=False)  # fmt: skip
        rows = best_guidance(world.table, synthetic.FD).rows
        winner, other = rows.iloc[1], rows.iloc[[0]]
        (difference,), (stderr,), _ = comparer(world.influence)(winner, other)
        truth = synthetic.true_fd("c8", "ddim", 4, 2.0) - synthetic.true_fd("c16", "ddim", 4, 2.0)
        held.append(abs(difference - truth) < 1.96 * stderr)
        widths.append(stderr)
        unpaired_widths.append(comparer(None)(winner, other)[1][0])
    assert np.mean(held) >= 0.85
    assert np.mean(widths) < 0.4 * np.mean(unpaired_widths)


def test_no_error_estimate_gives_no_ties(world, synthetic):
    cells = best_guidance(world.table.assign(stderr=np.nan), synthetic.FD)
    points = frontier(cells, "paper").points
    values = cells.rows["value"]
    for _, point in points.iterrows():
        assert all(values[other] <= point["value"] for other in point["ties"])


def test_a_small_reference_adds_its_own_share(world, synthetic):
    rows = best_guidance(world.table, synthetic.FD).rows
    winner, other = rows.iloc[1], rows.iloc[[0]]
    references = {key: np.random.default_rng(place).standard_normal(50) for place, key in enumerate(rows["score_key"])}

    def with_references(score_key: str) -> np.ndarray:
        return np.concatenate([world.influence(score_key), references[score_key]])

    _, (alone,), _ = comparer(world.influence)(winner, other)
    _, (both,), (paired,) = comparer(with_references)(winner, other)
    share = np.var(references[winner["score_key"]] - references[other["score_key"].iloc[0]], ddof=1) / 50
    assert paired and both == pytest.approx(np.hypot(alone, np.sqrt(share)))
