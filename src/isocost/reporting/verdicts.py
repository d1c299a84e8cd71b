"""The paper's claims and the laws that a study's results follow, as parts of its report."""

from __future__ import annotations

from isocost.analysis.claims import Judgement, judge
from isocost.analysis.differences import Influence
from isocost.analysis.frames import DataFrame
from isocost.analysis.laws import Laws, laws
from isocost.analysis.sheet import DISTANCES
from isocost.analysis.words import metric_name
from isocost.errors import SpecError
from isocost.reporting.section import Section


def verdicts(table: DataFrame, influence: Influence | None, select_by: str) -> list[Section]:
    """Claims and laws, as `isocost claims` and `isocost laws` say them; none where no distance was scored."""
    metric = select_by if select_by.partition("[")[0] in DISTANCES else None
    try:
        return [claims_section(judge(table, influence, metric)), laws_section(laws(table, influence, metric))]
    except SpecError:  # nothing that claims or laws can be judged by
        return []


def claims_section(judgement: Judgement) -> Section:
    """Every claim that could be tested, with its verdict; the others are counted."""
    tested = [verdict for verdict in judgement.verdicts if not verdict.missing]
    untested = [verdict.id for verdict in judgement.verdicts if verdict.missing]
    several = len(judgement.studies) > 1  # then each row says which it rests on
    columns = ("", "claim", "here", *(["study"] if several else []), "why")
    rows = tuple(
        (found.id, found.claim, found.verdict, *([found.study] if several else []), found.sentence) for found in tested
    )
    said = f"Each claim of the paper as a test on these results; all together err in {judgement.level:.0%} at most."
    note = f"Not testable here: {', '.join(untested)}; `isocost claims` says what each lacks." if untested else ""
    notes = " ".join([note, *judgement.notes]).strip()
    return Section("claims", "What the paper claims", {}, columns, rows, (said,), notes, texts=len(columns))


def laws_section(found: Laws) -> Section:
    """What quality follows, in sentences."""
    title = f"What quality follows, by {metric_name(found.metric)}"
    return Section("laws", title, {}, ("",), tuple((sentence,) for sentence in found.sentences), (), "", texts=1)
