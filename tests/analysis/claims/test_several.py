"""Claims over several studies: each is judged where it is best tested, and all are corrected for together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tests.analysis.claims.draws import KINDS, Family, cell

from isocost.analysis.claims import Study, judge, judge_all
from isocost.analysis.claims.hypotheses import holm
from isocost.errors import SpecError

VALUES = {"s": 12.0, "m": 10.0, "l": 8.0, "x": 7.0}


def sweep(members: str = "sml", seeds: int = 1, scale: float = 1.0) -> pd.DataFrame:
    return Family([cell(member) for member in members], lambda row: scale * VALUES[row["member"]], seeds=seeds).table


def tuned(members: str = "sml", objective: str = "superres") -> pd.DataFrame:
    values = {"s": 6.0, "m": 5.0, "l": 4.5, "x": 4.0}
    cells = [cell(member, objective=objective, guidance=1.0) for member in members]
    return Family(cells, lambda row: values[row["member"]]).table


def test_one_study_is_judged_as_ever(world):
    alone = judge(world.table, world.influence)
    named = judge_all({"sweep": Study(world.table, world.influence)})
    assert named.studies == ("sweep",) and named.notes == alone.notes
    assert [replace(verdict, study="") for verdict in named.verdicts] == list(alone.verdicts)
    assert named["C3"].study == "sweep"


@pytest.mark.parametrize(
    ("one", "other", "chosen"),
    [
        (sweep("sml"), sweep("smlx"), "other"),
        (sweep("smlx"), sweep("sml", seeds=3), "one"),
        (sweep(), sweep(seeds=3), "other"),
        (sweep(), sweep(), "one"),
        (sweep("smlx").assign(stderr=np.nan), sweep(), "other"),
    ],
    ids=["members", "members before seeds", "seeds", "first of equals", "intervals before members"],
)
def test_the_study_that_tests_best(one, other, chosen):
    assert judge_all({"one": Study(one), "other": Study(other)}, claims=["C3"])["C3"].study == chosen


def test_which_study_is_asked_hangs_on_no_result():
    """The worse result is as good a place: order decides, both ways."""
    bad = sweep().assign(value=lambda rows: 10.0 + rows["params"] / 1e6)
    for first, verdict in (("good", "supported"), ("bad", "refuted")):
        studies = {"good": Study(sweep()), "bad": Study(bad)}
        ordered = {first: studies.pop(first)} | studies
        assert judge_all(ordered, claims=["C3"])["C3"].verdict == verdict


def test_errors_are_corrected_over_all_that_are_tested_anywhere():
    studies = {"sweep": Study(sweep().assign(stderr=0.4)), "sr": Study(KINDS["C6"](claim_holds=True).table)}
    both = judge_all(studies, claims=["C3", "C6"])
    alone = [judge(studies["sweep"].table, claims=["C3"])["C3"], judge(studies["sr"].table, claims=["C6"])["C6"]]
    assert (both["C3"].study, both["C6"].study) == ("sweep", "sr")
    assert [both["C3"].p_supports, both["C6"].p_supports] == pytest.approx(holm([one.p_supports for one in alone]))
    assert [both[one.id].effect for one in alone] == [one.effect for one in alone]


def test_influence_values_are_read_from_the_study_that_has_the_score():
    edge = KINDS["C6"](claim_holds=True)
    _, influence = edge.draw(np.random.default_rng(0), 64)
    table = edge.table.assign(score_key="sr/" + edge.table["score_key"])
    studies = {"sweep": Study(sweep()), "sr": Study(table, lambda key: influence(key.removeprefix("sr/")))}
    found, alone = judge_all(studies), judge(edge.table, influence)
    assert found["C6"].paired and not found["C3"].paired
    assert found["C6"].interval == alone["C6"].interval


def test_downstream_quality_over_what_another_study_trained():
    """C5: the slope over log pretraining losses of the same members, paired by name."""
    studies = {"sr": Study(tuned("slmx"), start="sweep"), "sweep": Study(sweep("xsml"))}
    found = judge_all(studies, claims=["C5"])["C5"]
    x, y = (np.log([values[name] for name in "smlx"]) for values in (VALUES, {"s": 6, "m": 5, "l": 4.5, "x": 4}))
    assert found.effect == pytest.approx(100 * np.polyfit(x, y, 1)[0]) and found.verdict == "supported"
    assert (found.study, found.cells) == ("sr", 4) and any("of the study sweep" in note for note in found.notes)


def test_both_downstream_tasks_count_and_one_that_cannot_tell_is_named():
    similar = tuned(objective="dreambooth").assign(metric="similarity[own]", higher_is_better=True)
    distance = tuned(objective="dreambooth")
    dreams = pd.concat([distance, similar.assign(value=1 / similar["value"])])
    studies = {
        "sweep": Study(sweep()), "sr": Study(tuned(), start="sweep"), "dreams": Study(dreams, start="sweep")
    }  # fmt: skip
    found = judge_all(studies, claims=["C5"])["C5"]
    assert [part.name for part in found.parts] == ["superres", "dreambooth"] and found.study == "sr, dreams"
    few = studies | {"dreams": Study(dreams[dreams["member"] != "m"], start="sweep")}
    found = judge_all(few, claims=["C5"])["C5"]
    assert found.study == "sr" and any("left out: it needs three members" in note for note in found.notes)


def test_distillation_is_held_against_as_much_plain_training():
    """C21b: every student 20% better than what it came from, of which training on explains 15% to 10%."""
    before = [cell(member, 4, images_seen=2000) for member in "sml"]
    students = [cell(member, 4, objective="consistency", sampler="lcm") for member in "sml"]
    distilled = Family([*before, *students], lambda row: 8.0 if row["objective"] == "consistency" else 10.0).table
    control = Family([cell(member, 4) for member in "ml"], lambda row: {"m": 8.5, "l": 9.0}[row["member"]]).table
    studies = {"distill": Study(distilled, start="sweep"), "more": Study(control, start="sweep")}
    found = judge_all(studies, claims=["C21b"])["C21b"]
    assert [part.name for part in found.parts] == ["m", "l"] and found.study == "distill, more"
    assert found.effect == pytest.approx(100 * np.log(8.5 / 8)) and found.verdict == "supported"

    longer = Study(control.assign(images_seen=3000), start="sweep")
    elsewhere = Study(control, start="another")
    for other in (longer, elsewhere):
        found = judge_all({"distill": studies["distill"], "more": other}, claims=["C21b"])["C21b"]
        assert "another study, which trained the same members on" in found.missing
    assert "distilled cells" in judge_all({"more": studies["more"]}, claims=["C21b"])["C21b"].missing


def test_members_of_another_study_are_not_taken_for_those_it_started_from():
    found = judge_all({"sr": Study(tuned(), start="sr-base"), "sweep": Study(sweep())}, claims=["C5"])["C5"]
    assert "by the study sr-base that they start from" in found.missing
    unknown = judge_all({"sr": Study(tuned()), "sweep": Study(sweep())}, claims=["C5"])["C5"]
    assert unknown.verdict == "supported"  # it is not known what they started from: the names decide


def test_what_is_missing_where_least_is():
    studies = {"sweep": Study(sweep()), "sr": Study(tuned())}
    found = judge_all(studies, claims=["C7", "C18", "C21"])
    assert (found["C7"].study, found["C18"].study, found["C21"].study) == ("sr", "sweep", "")
    assert "three scored checkpoints of superres" in found["C7"].missing


def test_notes_name_the_study_they_are_on():
    gaps = sweep()
    gaps.loc[gaps["member"] == "m", "value"] = np.nan
    found = judge_all({"sweep": Study(gaps), "sr": Study(tuned())}, claims=["C3", "C19", "C5"])
    assert any(note.startswith("sweep: ") and "scores of m by fd[own]" in note for note in found.notes)
    assert sum("One training seed" in note for note in found.notes) == 1


def test_a_study_that_cannot_be_read_is_named():
    empty = Study(sweep().iloc[:0])
    found = judge_all({"later": empty, "sweep": Study(sweep())}, claims=["C3"])
    assert found.studies == ("sweep",) and found["C3"].verdict == "supported"
    assert any(note.startswith("later: not read: the table is empty") for note in found.notes)
    with pytest.raises(SpecError, match="the table is empty"):
        judge_all({"later": empty})
    with pytest.raises(SpecError, match="no study"):
        judge_all({})
