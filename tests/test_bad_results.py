"""Results that lack something, or hold what cannot be: what `plan`, `serve` and `claims` then say.

Each case is a copy of some of the cells of results/quickstart-cpu, with one thing done to it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isocost.cli import main

QUICKSTART = Path(__file__).parents[1] / "results" / "quickstart-cpu"
MEMBERS, STEPS = ("c8", "c16"), (2, 5)


def _scores(cells: list[dict[str, Any]], scores: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Scores by fd of the cells that have these columns."""
    keys = {cell["sample_key"] for cell in cells if all(cell[name] == value for name, value in wanted.items())}
    return [score for score in scores if score["sample_key"] in keys and score["score_spec"]["metric"] == "fd"]


def mixed_protocols(cells, scores):
    for score in _scores(cells, scores, member="c16"):
        score["score_spec"]["protocol"] = "coco2014-30k@12"


def one_member(cells, scores):
    cells[:] = [cell for cell in cells if cell["member"] == "c8"]


def one_seed(cells, scores):
    assert {cell["seed"] for cell in cells} == {0}


def missing_half(cells, scores):
    (gone,) = [
        score
        for score in _scores(cells, scores, member="c16", steps=5, guidance_scale=2.0)
        if score["score_spec"]["split"] == "selection"
    ]
    scores.remove(gone)


def missing_steps(cells, scores):
    cells[:] = [cell for cell in cells if (cell["member"] == "c8") == (cell["steps"] == 2)]


def not_a_number(cells, scores):
    for score in _scores(cells, scores, member="c8", steps=2, guidance_scale=1.0):
        score["value"] = float("nan")


def nothing_finite(cells, scores):
    for score in scores:
        score["value"] = float("nan")


@pytest.fixture(scope="module")
def results():
    """(cells, scores) by DDIM at few steps, of two members and two metrics."""
    cells = [
        cell
        for cell in json.loads((QUICKSTART / "cells.json").read_text())
        if not cell["curve"] and cell["sampler"] == "ddim" and cell["member"] in MEMBERS and cell["steps"] in STEPS
    ]
    keys = {cell["sample_key"] for cell in cells}
    scores = [
        score
        for score in json.loads((QUICKSTART / "scores.json").read_text())
        if score["sample_key"] in keys and score["score_spec"]["metric"] in ("fd", "clip")
    ]
    return json.dumps(cells), json.dumps(scores)


@pytest.fixture
def store(results, tmp_path):
    """store(what is done to them) -> folder of published results."""

    def written(spoil: Callable[[list, list], None]) -> str:
        cells, scores = map(json.loads, results)
        spoil(cells, scores)
        (tmp_path / "cells.json").write_text(json.dumps(cells))
        (tmp_path / "scores.json").write_text(json.dumps(scores))
        shutil.copy(QUICKSTART / "spec.yaml", tmp_path / "spec.yaml")
        return str(tmp_path)

    return written


def said_by(command: list[str], capsys) -> str:
    """All that a command prints, in one line; what it exits with, in front, where that is not 0."""
    try:
        main(command)
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return f"{code or ''} " + " ".join((output.out + output.err).split())


def shown_by_the_server(folder: str) -> str:
    """The text of the page, its data included."""
    testclient = pytest.importorskip("fastapi.testclient")
    from isocost.reporting.server import create_app

    page = testclient.TestClient(create_app(folder), base_url="http://localhost").get("/")
    assert page.status_code == 200
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>", "", page.text, flags=re.DOTALL)).split())


CASES = [
    (mixed_protocols, "2 .*scores by two protocols", "scores by two protocols", "2 .*scores by two protocols"),
    (
        one_member,
        "One size, c8: nothing is said about how quality scales",
        "One size, c8: nothing is said about how quality scales",
        "Not testable here.*needs cells of two members or more",
    ),
    (
        one_seed,
        "One training seed: differences between sizes may be seeds",
        "One training seed: differences between sizes may be seeds",
        "(?i)one training seed",
    ),
    (
        missing_half,
        "c16 with DDIM, 5 steps, guidance 2: lacks fd.* on the selection half",
        "1 score was left out",
        "1 cell of c16 without fd.* on one half of the prompts",
    ),
    (missing_steps, "use c", "What a budget buys", "needs .*steps.* that all members share"),
    (
        not_a_number,
        "c8 with DDIM, 2 steps, no guidance, seed 0: fd.* is nan",
        "left out",
        r"scores? of c8 by fd.* not finite",
    ),
    (
        nothing_finite,
        "2 .*no cell has fd.* on both halves.*is nan",
        "no cell has fd.* on both halves",
        "2 .*no plain cell has a finite score",
    ),
]


@pytest.mark.parametrize(("spoil", "planned", "served", "judged"), CASES, ids=[case[0].__name__ for case in CASES])
def test_each_is_said_in_words(spoil, planned, served, judged, store, capsys):
    folder = store(spoil)
    assert re.search(planned, said_by(["plan", folder], capsys))
    assert re.search(served, shown_by_the_server(folder))
    assert re.search(judged, said_by(["claims", folder, *(["--only", "C3"] if spoil is not one_seed else [])], capsys))


def test_a_budget_below_the_cheapest_cell(store, capsys):
    folder = store(one_seed)
    said = said_by(["plan", folder, "--budget", "0.001"], capsys)
    assert re.search(r"2 .*below the cheapest cell: c8 with DDIM, 2 steps.*costs 0\.154", said)
    said = said_by(["plan", folder, "--budget", "0.001", "--page", f"{folder}/p.html"], capsys)
    assert "below the cheapest cell" in said and not Path(folder, "p.html").exists()
    assert "2 " in said_by(["plan", folder, "--budget", "-1"], capsys)


def test_filters_that_nothing_passes(store, capsys):
    folder = store(one_seed)
    for flags, known in (
        (["--member", "c64"], "Known: c16, c8"),
        (["--guiding", "autoguidance"], "Known: cfg, none"),
        (["--best-of", "4"], "Known: 1"),
    ):
        said = said_by(["plan", folder, *flags], capsys)
        assert re.search(f"2 .*no cell has .*{known}", said)
