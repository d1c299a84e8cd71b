from __future__ import annotations

from isocost.analysis.claims import judge
from isocost.reporting.page import report
from isocost.reporting.verdicts import verdicts


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
