from __future__ import annotations

from isocost.analysis.claims import Study, judge, judge_all
from isocost.reporting.page import report
from isocost.reporting.verdicts import claims_section, verdicts


def test_the_report_shows_claims_and_laws(world, synthetic, tmp_path):
    claims, laws = verdicts(world.table, world.influence, synthetic.FD)
    tested = [verdict for verdict in judge(world.table, world.influence, synthetic.FD).verdicts if not verdict.missing]
    assert [row[:3] for row in claims.rows] == [(found.id, found.claim, found.verdict) for found in tested]
    assert "Not testable here" in claims.note and laws.rows
    study = {"name": "small", "evaluation": {"select_by": "fd"}}
    text = report(world.table, study=study, folder=tmp_path, sections=[claims, laws]).read_text()
    assert 'id="claims"' in text and 'id="laws"' in text and tested[0].id in text


def test_without_a_distance_there_are_none(world, synthetic):
    assert verdicts(world.table[world.table["metric"] == synthetic.CLIP], None, synthetic.CLIP) == []


def test_claims_of_several_studies_say_where_each_was_judged(world):
    small = world.table[world.table["member"].isin(["c8", "c16"])]
    found = claims_section(judge_all({"few": Study(small), "all": Study(world.table)}, claims=["C3", "C21"]))
    assert found.columns == ("", "claim", "here", "study", "why") and found.texts == 5
    assert [row[0] for row in found.rows] == ["C3"] and found.rows[0][3] == "all" and "C21" in found.note
