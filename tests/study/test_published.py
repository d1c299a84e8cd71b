from __future__ import annotations

import json
from pathlib import Path

import pytest

from isocost import api
from isocost.errors import DataError, StoreError
from isocost.study import published

RESULTS = Path(__file__).parents[2] / "results"


@pytest.mark.parametrize("name", ["quickstart-cpu", "emoji-cpu"])
def test_published_results_are_read_as_a_table(name):
    table = published.table(RESULTS / name)
    assert published.is_published(RESULTS / name)
    scores = json.loads((RESULTS / name / "scores.json").read_text())
    # A cell of the training curve may be one of the grid's too: then its scores stand in both rows.
    assert len(table) >= len(scores) and {"selection", "report"} <= set(table["split"])
    first = {
        (score["sample_key"], score["score_spec"]["metric"], score["score_spec"]["split"]): score for score in scores
    }
    for row in table.head(50).to_dict("records"):
        score = first[row["sample_key"], row["metric"].partition("[")[0], row["split"]]
        assert row["value"] == pytest.approx(score["value"] - (score["bias"] or 0.0))


def test_claims_of_published_results():
    found = api.claims(RESULTS / "quickstart-cpu", only=["C3", "C13"])
    assert found["C13"].verdict == "refuted"  # each larger model is ahead from its first step on
    assert found["C3"].verdict == "supported" and not found["C3"].paired


def test_a_folder_without_scores(tmp_path):
    (tmp_path / "cells.json").write_text("[]")
    with pytest.raises(StoreError, match=r"scores\.json: missing"):
        published.table(tmp_path)
    (tmp_path / "scores.json").write_text("{")
    with pytest.raises(DataError, match=r"scores\.json: cannot be read"):
        published.table(tmp_path)
    (tmp_path / "scores.json").write_text('[{"value": 1}]')
    with pytest.raises(DataError, match="not a list of scores"):
        published.table(tmp_path)
