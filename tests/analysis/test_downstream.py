from __future__ import annotations

import pandas as pd
import pytest
from scipy.stats import spearmanr

from isocost.analysis.cells import Cells
from isocost.analysis.downstream import before_and_after, rank_correlation


def cells(values: dict[str, list[float]], higher_is_better: bool = False, stderr: float = 0.1) -> Cells:
    """Of each member one value a step; the final checkpoint, and one before it that is better and does not count."""
    rows = [
        {"member": name, "params": place, "images_seen": seen, "steps": step, "value": value - early, "stderr": stderr,
         "selection_value": value - early, "select_score": 0.0, "stages": "", "guidance_mode": "cfg",
         "guidance_interval": "", "guide": "", "best_of": 1, "scorer": ""}
        for place, (name, of_steps) in enumerate(values.items())
        for step, value in enumerate(of_steps, 1)
        for seen, early in ((50, 9.0), (100, 0.0))
    ]  # fmt: skip
    return Cells(pd.DataFrame(rows), "fd", "fd", higher_is_better)


def test_members_of_both_at_the_best_cell_of_their_last_checkpoint():
    rows = before_and_after(cells({"a": [5, 3], "b": [4, 6], "c": [1, 1]}), cells({"b": [8, 7], "a": [9, 9.5]}))
    assert list(rows["member"]) == ["a", "b"]
    assert list(rows["before_value"]) == [3, 4] and list(rows["before_steps"]) == [2, 1]
    assert list(rows["after_value"]) == [9, 7] and list(rows["after_steps"]) == [1, 2]


@pytest.mark.parametrize("after", [[1, 2, 3, 4], [4, 2, 3, 1], [2, 1, 4, 3]])
def test_the_correlation_is_scipys(after):
    before = [1.0, 2.0, 3.0, 4.0]
    first, second = (cells(dict(zip("abcd", [[v] for v in values], strict=True))) for values in (before, after))
    found = rank_correlation(before_and_after(first, second))
    assert found is not None and found.rho == pytest.approx(spearmanr(before, after).statistic)
    assert found.low <= found.rho <= found.high and found.members == 4


def test_a_score_that_is_better_when_higher_is_turned():
    distances, likeness = cells({"a": [3], "b": [2], "c": [1]}), cells({"a": [0.1], "b": [0.2], "c": [0.3]}, True, 1e-3)
    found = rank_correlation(before_and_after(distances, likeness))
    assert found is not None and found.rho == 1 and found.decided


def test_scores_within_their_errors_decide_nothing():
    close = cells({"a": [1.00], "b": [1.01], "c": [1.02]})
    found = rank_correlation(before_and_after(close, close))
    assert found is not None and found.rho == 1 and not found.decided


def test_two_members_have_none():
    assert rank_correlation(before_and_after(*[cells({"a": [1], "b": [2]})] * 2)) is None
