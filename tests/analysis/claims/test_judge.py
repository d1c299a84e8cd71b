from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.analysis.claims.draws import FD, KINDS, Family, cell

from isocost.analysis.claims import CLAIMS, contradictions, judge, printed, printed_table
from isocost.analysis.claims.hypotheses import holm
from isocost.errors import SpecError
from isocost.models.ladder import TABLE1

FD_OF_WORLD = "fd[scenes-clip-score-32]"


@pytest.fixture(scope="module")
def judged(world):
    return judge(world.table, world.influence)


def test_verdicts_match_the_known_truth(judged):
    verdicts = {verdict.id: verdict.verdict for verdict in judged.verdicts}
    expected = {
        **dict.fromkeys(("C1", "C3", "C11", "C13", "C14", "C17"), "supported"),
        "C2": "refuted",
        **dict.fromkeys(("C16", "C21"), "not testable here"),
    }
    assert {name: verdicts[name] for name in expected} == expected
    assert list(verdicts) == list(CLAIMS)


def test_a_verdict_says_what_it_rests_on(judged):
    found = judged["C3"]
    assert (found.cells, found.images, found.seeds, found.paired) == (4, 256, 1, True)
    assert found.interval[0] < found.effect < found.interval[1] and len(found.parts) == 3
    assert "4 cells of 256 images, one training seed" in found.sentence
    assert any("One training seed" in note for note in judged.notes)


def test_cells_of_all_training_seeds_are_preferred_to_more_cells_of_one():
    """50 steps by one seed, 20 by three: C3 goes by those, and C18, which needs 100 steps, by the one."""
    cells = [cell(member, steps) for member in "sml" for steps in (20, 50, 100)]
    values = {"s": 12.0, "m": 10.0, "l": 8.0}
    family = Family(cells, lambda row: values[row["member"]], seeds=3, seed_sd=0.02)
    table = family.table[(family.table["seed"] == 0) | (family.table["steps"] == 20)].assign(stderr=0.05)
    found = judge(table, claims=["C3", "C18"])
    assert (found["C3"].seeds, found["C18"].seeds) == (3, 1)
    assert any("cells that all 3 training seeds have" in note for note in found["C3"].notes)
    assert not any("training seeds have" in note for note in found["C18"].notes)
    without = judge(table[table["member"] != "l"].pipe(lambda rows: pd.concat([rows, table[
        (table["member"] == "l") & (table["seed"] == 0)
    ]])), claims=["C3"])["C3"]  # fmt: skip
    assert without.seeds == 1 and len(without.parts) == 2  # three members by one seed, rather than two by three


def test_a_narrower_comparison_by_more_training_seeds_is_not_taken():
    """Samplers at 2, 8 and 20 steps by one seed, of which three have 2 alone."""
    cells = [
        cell(member, steps, sampler=sampler)
        for member in "sl"
        for steps in (2, 8, 20)
        for sampler in ("ddim", "dpmpp_2m")
    ]
    family = Family(cells, lambda row: 10.0 if row["sampler"] == "ddim" else 9.0, seeds=3, seed_sd=0.02)
    table = family.table[(family.table["seed"] == 0) | (family.table["steps"] == 2)].assign(stderr=0.05)
    found = judge(table, claims=["C17"])["C17"]
    assert (found.cells, found.seeds) == (12, 1)
    assert judge(table[table["steps"] == 2], claims=["C17"])["C17"].seeds == 3


def test_effects_are_of_the_report_half_at_the_rate_of_the_selection_half(judged, world):
    """c64 over c32 at 16 steps: the log ratio of the values at the rate with the lowest selection value."""
    rows = world.table[
        (world.table["metric"] == FD_OF_WORLD) & (world.table["sampler"] == "ddim") & ~world.table["curve"]
    ]
    rows = rows[rows["steps"] == 16]
    values = []
    for member in ("c32", "c64"):
        own = rows[rows["member"] == member].set_index(["split", "guidance_scale"])["value"]
        values.append(own["report"][own["selection"].idxmin()])
    (part,) = (part for part in judged["C3"].parts if part.name == "c64 over c32")
    assert part.effect == pytest.approx(100 * np.log(values[0] / values[1]))


def test_training_seeds_are_counted_and_widen(synthetic):
    worlds = {seeds: synthetic.World(0, seeds=seeds, attributes=False) for seeds in ((0,), (0, 1, 2))}
    one, three = (judge(world.table, world.influence, claims=["C3"])["C3"] for world in worlds.values())
    assert (one.seeds, three.seeds) == (1, 3)
    assert "3 training seeds" in three.sentence


@pytest.mark.parametrize("claim", [*KINDS, "C8", "C22", "C24", "C25"])
def test_every_kind_of_claim_is_testable_on_its_table(claim):
    extra = {"C8": "C6", "C22": "C23", "C24": "C23", "C25": "C23"}
    family = KINDS[extra.get(claim, str(claim))](claim_holds=True)
    table = family.table
    if claim == "C25":
        more = table[(table["objective"] == "consistency")].assign(steps=8, sample_key="more", score_key="more")
        table = pd.concat([table, more.assign(value=more["value"] * 1.1)])
    found = judge(table, claims=[claim])[claim]
    assert found.verdict == "supported" or claim in ("C22", "C24"), found.sentence
    assert found.verdict != "not testable here", found.missing


def test_the_paper_s_own_numbers_have_no_errors():
    found = judge(printed_table())
    assert found["C3"].verdict == found["C3b"].verdict == "inconclusive"
    assert "no error given" in found["C3"].sentence and found["C3"].interval is None and found["C3"].p_supports is None
    assert found["C3"].effect == pytest.approx(100 * np.log(24.30 / 24.18))  # the least of ten neighbours
    tested = [verdict.id for verdict in found.verdicts if verdict.verdict != "not testable here"]
    assert tested == ["C3", "C3b"]
    assert not any(verdict.verdict in ("supported", "refuted") for verdict in found.verdicts)


def test_contradictions_follow_from_the_numbers():
    rows = {row.params: row for row in TABLE1}
    said = {name: found for found in contradictions() for name in found.claims if name in ("C13b", "C24")}
    assert rows["866M"].norm_cost * 4 == 4.0 and rows["83M"].norm_cost * 50 == pytest.approx(6.5)
    assert "4.0" in said["C24"].found and "6.5" in said["C24"].found
    assert [round(rows[name].norm_cost * 4, 1) for name in ("558M", "704M", "5B")] == [2.7, 3.3, 20.7]
    assert rows["39M"].gflops / rows["866M"].gflops == pytest.approx(0.03, abs=0.003) and len(TABLE1) == 11
    assert printed()["numbers"]["models_in_text"] == 12
    assert all(set(found.claims) <= set(CLAIMS) for found in contradictions())


def test_notes_of_the_paper_stand_beside_the_claims(judged):
    assert any("at a cost of 3" in note for note in judged["C13b"].notes)
    assert any("the caption" in note or "(caption)" in note for note in judged["C24"].notes)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([np.nan, 0.03])[1] == pytest.approx(0.06)  # a claim without errors counts as one


def test_an_equivalence_needs_evidence():
    """No difference is seen, and few images: inconclusive, with what would decide it."""
    family = KINDS["C2"](claim_holds=True)
    sheet_table = family.table.assign(stderr=0.4)
    found = judge(sheet_table, claims=["C2"])["C2"]
    assert found.verdict == "inconclusive" and found.needed and (found.needed.images or 0) > found.images
    assert "images a cell instead of 64 would decide it" in found.sentence


def test_one_rate_for_all_needs_evidence_too():
    """The same rate leads in every group, within errors that leave room for any other: not refuted."""
    family = KINDS["C12"](claim_holds=False)
    found = judge(family.table.assign(stderr=3.0), claims=["C12"])["C12"]
    assert found.verdict == "inconclusive"
    assert judge(family.table, claims=["C12"])["C12"].verdict == "refuted"


# --- bad input ---


def test_two_protocols_are_refused(world):
    table = world.table.assign(protocol=["a", "b"] * (len(world.table) // 2))
    with pytest.raises(SpecError, match="two protocols"):
        judge(table)


def test_one_member_only(world):
    found = judge(world.table[world.table["member"] == "c8"])
    assert {verdict.verdict for verdict in found.verdicts} == {"not testable here"}
    assert "two members" in found["C3"].missing


def test_scores_that_are_not_finite_are_named(world):
    table = world.table.copy()
    table.loc[table.index[table["member"] == "c16"], "value"] = np.nan
    found = judge(table, world.influence, claims=["C3"])
    assert any("scores of c16" in note and "not finite" in note for note in found.notes)
    assert len(found["C3"].parts) == 2


def test_an_empty_table_and_unknown_names(world):
    with pytest.raises(SpecError, match="empty"):
        judge(world.table.iloc[:0])
    with pytest.raises(SpecError, match="unknown claim 'C99'"):
        judge(world.table, claims=["C99"])
    with pytest.raises(SpecError, match="no cell has the metric"):
        judge(world.table, metric="fid")


def test_cells_that_lack_a_half_are_not_used():
    family = Family([cell(name) for name in "sml"], lambda row: 10.0)
    table = family.table[~((family.table["member"] == "m") & (family.table["split"] == "selection"))]
    found = judge(table, claims=["C3"])
    assert [part.name for part in found["C3"].parts] == ["l over s"] and FD in found["C3"].metric


@pytest.mark.parametrize(("metric", "noted"), [("lpips-alex", False), ("lite0-distance", True)])
def test_a_distance_of_another_network_stands_for_lpips_and_is_named(metric, noted):
    """C7: compute brings 0.3 of log distance, size 0.1."""
    gain = {"s": 0.0, "m": 0.05, "l": 0.1, 10: 0.0, 400: 0.2, 1000: 0.3}
    cells = [
        {**cell(member, objective="superres", images_seen=seen, guidance=1.0), "metric": name}
        for member in "sml" for seen in (10, 400, 1000) for name in (FD, metric)
    ]  # fmt: skip
    family = Family(cells, lambda row: 10 * np.exp(-gain[row["member"]] - gain[row["images_seen"]]))
    found = judge(family.table.assign(stderr=0.01), claims=["C7"])["C7"]
    assert found.verdict == "supported" and found.effect == pytest.approx(20, abs=1)
    assert any(metric in note for note in found.notes) == noted


def test_what_a_score_is_of_is_said(synthetic):
    similarity = "similarity[own]"
    cells = [
        {**cell(member, objective=objective), "metric": metric}
        for member in "sml" for objective, metric in (("denoise", FD), ("dreambooth", FD), ("dreambooth", similarity))
    ]  # fmt: skip
    table = Family(cells, lambda row: 0.5).table.assign(stderr=0.01)
    found = judge(table, claims=["C10"])["C10"]
    assert found.verdict == "inconclusive" and found.of == "subjects"
    assert (
        "3 cells of 64 subjects, one training seed" in found.sentence
        and "subjects a cell instead of 64" in found.sentence
    )
