from __future__ import annotations

import numpy as np
import pytest

from isocost.errors import SpecError
from isocost.scoring.results import Scored, Scores
from isocost.scoring.uncertainty import Estimate, independent_difference, mean_estimate, paired_difference

KEYS = tuple(f"{index}" for index in range(200))
NOISE = np.random.default_rng(0).standard_normal(200)


def scored(name: str, shift: float, own: float = 0.1, keys=KEYS, seed: int = 1, higher: bool = False) -> Scored:
    """Values that share `NOISE`, and differ by `shift` and noise of their own."""
    values = NOISE + shift + own * np.random.default_rng(seed).standard_normal(200)
    estimate = mean_estimate(values, unit="u", higher_is_better=higher)
    return Scored(name, "kid[x]", estimate, "x@ab", "cd" * 32, 1000, "p@12", keys)


BEST, NEAR, BAD = scored("best", 0.0), scored("near", 0.0, seed=4), scored("bad", 0.1, seed=3)
SCORES = Scores((BAD, BEST, NEAR), ("a notice",), {"torch": "2"})


def test_the_table_has_a_row_a_set_and_metric():
    table = SCORES.table
    assert list(table["generated"]) == ["bad", "best", "near"]
    row = table.iloc[1]
    assert row["low"] == pytest.approx(row["value"] - 1.959964 * row["stderr"])
    assert (row["n"], row["reference_n"], row["better"], row["valid"]) == (200, 1000, "lower", True)
    assert (row["protocol"], row["extractor"], row["unit"]) == ("p@12", "x@ab", "u")


def test_value_is_less_its_bias_where_that_is_known():
    row = Scored("a", "fd[x]", Estimate(10.0, 1.0, 2.0, 50, None, False, "u")).as_row()
    assert (row["value"], row["plug_in"], row["bias"]) == (8.0, 10.0, 2.0)
    assert (row["low"] + row["high"]) / 2 == pytest.approx(8)


def test_sets_of_one_list_of_keys_are_ranked_by_paired_differences():
    first, second, third = SCORES.ranking
    assert (first.generated, second.generated, third.generated) == ("best", "near", "bad")
    difference = paired_difference(BEST.estimate, BAD.estimate)
    assert third.behind == pytest.approx(-difference.value) and third.stderr == pytest.approx(difference.stderr)
    assert third.paired and not third.tie and third.probability > 0.999
    assert third.sentence == "kid[x]: best beats bad with probability 1.00 (paired)."
    assert second.tie and second.sentence.startswith("kid[x]: best and near tie; best is better with probability 0.")
    assert first.behind is first.probability is None


@pytest.mark.parametrize("keys", [(), KEYS[::-1], (*KEYS[:-1], "x")])
def test_other_keys_make_the_comparison_independent(keys):
    other = scored("bad", 0.1, seed=3, keys=keys)
    (_, place) = Scores((BEST, other)).ranking
    assert not place.paired and place.tie
    assert place.stderr == pytest.approx(independent_difference(BEST.estimate, other.estimate).stderr)
    assert Scores((BEST, other), paired=True).ranking[1].paired
    assert not Scores((BEST, BAD), paired=False).ranking[1].paired


def test_higher_may_be_better():
    low, high = scored("low", 0.0, higher=True), scored("high", 1.0, higher=True)
    assert [place.generated for place in Scores((low, high)).ranking] == ["high", "low"]


def test_bias_is_taken_off_all_or_none():
    def fd(name: str, value: float, bias: float | None) -> Scored:
        estimate = Estimate(value, 0.1, bias, 4, np.array([1.0, -1, 1, -1]), False, "u")
        return Scored(name, "fd[x]", estimate, keys=KEYS[:4])

    assert [place.generated for place in Scores((fd("a", 5, 3), fd("b", 4, 1))).ranking] == ["a", "b"]
    assert [place.generated for place in Scores((fd("a", 5, 3), fd("b", 4, None))).ranking] == ["b", "a"]


def test_one_set_has_no_ranking():
    assert Scores((BEST,)).ranking == ()


def test_estimates_are_found_by_name():
    assert SCORES.estimate("kid", "best") is BEST.estimate is SCORES.estimate("kid[x]", "best")
    assert SCORES.difference("kid", "best", "bad").probability > 0.999
    with pytest.raises(SpecError, match=r"'kid' could be kid\[x\] of bad, kid\[x\] of best"):
        SCORES.estimate("kid")
    with pytest.raises(SpecError, match=r"no score of 'fd'"):
        SCORES.estimate("fd", "best")
    with pytest.raises(SpecError, match=r"no score of 'kid' of worst"):
        SCORES.estimate("kid", "worst")


def test_a_notebook_shows_table_ranking_and_notices():
    shown = SCORES._repr_html_()
    assert "<table" in shown and "best beats bad" in shown and "a notice" in shown
    assert SCORES.as_dict()["ranking"][2]["generated"] == "bad"
    assert SCORES.as_dict()["scores"][0]["reference"] == "cd" * 32
