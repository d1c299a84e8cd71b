"""Results tables in, a verdict on every claim out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isocost.analysis.claims.catalogue import CLAIMS, Claim
from isocost.analysis.claims.hypotheses import LEVEL, Hypothesis, holm, needed
from isocost.analysis.claims.printed import notes_on
from isocost.analysis.claims.verdict import (
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    UNTESTABLE,
    Verdict,
    advice,
    deciding,
    parts_of,
    rests_on,
    written,
)
from isocost.analysis.differences import Influence
from isocost.analysis.frames import DataFrame
from isocost.analysis.quantity import Errors, Estimates
from isocost.analysis.sheet import Missing, Sheet
from isocost.analysis.words import metric_name
from isocost.errors import SpecError, lookup


@dataclass(frozen=True, eq=False)
class Study:
    """What claims are judged by: a results table.

    `influence`: score_key -> influence values, for paired differences. `metric`: what claims on FID are judged by
    (default: the Frechet distance, else KID). `start`: name of the study that trained what its members start from.
    """

    table: DataFrame
    influence: Influence | None = None
    metric: str | None = None
    start: str = ""


@dataclass(frozen=True)
class Judgement:
    """A verdict a claim, in the paper's order; `level` of all together; `notes`: what to know of the whole tables.

    `studies`: names of the studies that could be read.
    """

    verdicts: tuple[Verdict, ...]
    level: float
    notes: tuple[str, ...]
    studies: tuple[str, ...] = ()

    def __getitem__(self, claim: str) -> Verdict:
        return lookup({verdict.id: verdict for verdict in self.verdicts}, claim, "claim")


@dataclass(frozen=True, eq=False)
class _Tested:
    """A claim on what it rests on: `cells`, by sheet, and `members`, how many."""

    hypothesis: Hypothesis
    estimates: Estimates
    supports: float
    refutes: float
    cells: dict[Sheet, int]
    members: int

    @property
    def rank(self) -> tuple[bool, int, int]:
        """What makes one study a better place to test a claim than another: nothing of how the test came out."""
        return bool(np.isfinite(self.supports)), self.members, self.estimates.seeds


@dataclass(frozen=True, eq=False)
class _Lacking:
    """What a claim needs, and the sheets that lack it."""

    what: Missing
    sheets: tuple[Sheet, ...]


def judge(
    table: DataFrame,
    influence: Influence | None = None,
    metric: str | None = None,
    unit: str = "paper",
    claims: Sequence[str] | None = None,
) -> Judgement:
    """Every claim of the paper, judged by one results table; see `judge_all` and `Study`."""
    return judge_all({"": Study(table, influence, metric)}, unit, claims)


def judge_all(studies: Mapping[str, Study], unit: str = "paper", claims: Sequence[str] | None = None) -> Judgement:
    """Every claim of the paper, judged by the results of one study or several.

    A claim is judged by one study (one that is of two, as C5, by both): of those that it can be tested on the one that
    gives errors, then that with most members, then with most training seeds, then the first. Where training seeds share
    a part of a study's cells, and the claim rests on as many of these, that part is a study, too. `unit`: of sampling
    cost.
    `claims`: ids, default all; errors are corrected over those that can be tested. A study that cannot be read is named
    in the notes; raises `SpecError` where none can (an empty table, an unknown metric, mixed protocols), and for an
    unknown claim.
    """
    sheets, unread = _sheets(studies, unit)
    errors = _errors(sheets, studies)
    ids = list(claims) if claims is not None else list(CLAIMS)
    found = {name: _judged(lookup(CLAIMS, name, "claim"), sheets, errors) for name in ids}
    tested = {name: test for name, test in found.items() if isinstance(test, _Tested)}
    supports = dict(zip(tested, holm([test.supports for test in tested.values()]), strict=True))
    refutes = dict(zip(tested, holm([test.refutes for test in tested.values()]), strict=True))
    level = LEVEL / max(len(tested), 1)
    verdicts = [
        _verdict(name, test, supports[name], refutes[name], level)
        if isinstance(test, _Tested)
        else _untestable(name, test)
        for name, test in found.items()
    ]
    notes = _notes(sheets, list(tested.values()), unread)
    return Judgement(tuple(verdicts), LEVEL, tuple(notes), tuple(sheet.study for sheet in sheets))


def _sheets(studies: Mapping[str, Study], unit: str) -> tuple[tuple[Sheet, ...], dict[str, str]]:
    """The sheets of studies, scores numbered on from one to the next, and why the others cannot be read."""
    sheets, unread, first = [], {}, 0
    for name, study in studies.items():
        try:
            sheet = Sheet.of(study.table, study.metric, unit)
        except SpecError as error:
            unread[name] = error
            continue
        sheets.append(replace(sheet, study=name, start=study.start, first=first))
        first += len(sheet.scores)
    if not sheets:
        raise next(iter(unread.values()), SpecError("no study: claims have nothing to go by."))
    return tuple(sheets), {name: str(error) for name, error in unread.items()}


def _errors(sheets: Sequence[Sheet], studies: Mapping[str, Study]) -> Errors:
    if len(sheets) == 1:
        return Errors(sheets[0].scores, studies[sheets[0].study].influence)
    stored = {
        key: studies[sheet.study].influence
        for sheet in reversed(sheets)
        for score in sheet.scores
        for key in score.keys
    }

    def influence(key: str) -> np.ndarray | None:
        found = stored[key]
        return found(key) if found else None

    return Errors([score for sheet in sheets for score in sheet.scores], influence)


def _judged(claim: Claim, sheets: tuple[Sheet, ...], errors: Errors) -> _Tested | _Lacking:
    """A claim where it is best tested, or what it lacks where it lacks least."""
    tested, lacking = [], []
    for some in [sheets] if claim.together else [(sheet,) for sheet in sheets]:
        try:
            tested.append(_tested(claim.test(*some), some, errors))
        except Missing as error:
            lacking.append(_Lacking(error, some))
            continue
        if not claim.together and (shared := some[0].on_all_seeds) is not None:
            tested += _as_wide(claim, shared, tested[-1], errors)
    if tested:
        return max(tested, key=lambda test: test.rank)  # the first of equals
    return min(lacking, key=lambda lack: lack.what.nothing)


def _as_wide(claim: Claim, shared: Sheet, whole: _Tested, errors: Errors) -> list[_Tested]:
    """The claim on the cells that all training seeds of a study have, where it rests on as many of them as on all:
    fewer would be another comparison (of samplers, at the one step count that they share)."""
    try:
        test = _tested(claim.test(shared), (shared,), errors)
    except Missing:
        return []
    return [test] if sum(test.cells.values()) >= sum(whole.cells.values()) else []


def _tested(hypothesis: Hypothesis, sheets: tuple[Sheet, ...], errors: Errors) -> _Tested:
    estimates = errors.estimates(hypothesis.quantities)
    supports, refutes = hypothesis.p_values(estimates)
    used = {number for quantity in hypothesis.quantities for number in quantity.weights}
    cells = {sheet: len(behind) for sheet in sheets if (behind := sheet.cells_behind(used))}
    members = {errors.scores[number].member for number in used}
    return _Tested(hypothesis, estimates, float(supports), float(refutes), cells, len(members))


def _verdict(name: str, test: _Tested, supports: float, refutes: float, level: float) -> Verdict:
    known = np.isfinite(supports)
    verdict = SUPPORTED if supports < LEVEL else REFUTED if refutes < LEVEL else INCONCLUSIVE
    parts = parts_of(test.hypothesis, test.estimates)
    shown = deciding(parts, verdict, test.hypothesis)
    open_ = verdict == INCONCLUSIVE and known
    found = Verdict(
        id=name,
        claim=CLAIMS[name].statement,
        verdict=verdict,
        sentence="",
        metric=_each(sheet.quality for sheet in test.cells),
        effect=shown.effect,
        interval=shown.interval,
        unit=test.hypothesis.scale,
        margin=test.hypothesis.margin,
        weakest=shown.name,
        p_supports=supports if known else None,
        p_refutes=refutes if known else None,
        cells=sum(test.cells.values()),
        images=test.estimates.n,
        of=test.hypothesis.of,
        seeds=test.estimates.seeds,
        paired=test.estimates.paired,
        needed=needed(test.hypothesis, test.estimates, level) if open_ else None,
        notes=(*test.hypothesis.notes, *_shared_by_seeds(test), *notes_on(name)),
        parts=parts,
        study=_each(sheet.study for sheet in test.cells),
    )
    return replace(found, sentence=_sentence(found, bool(known)))


def _shared_by_seeds(test: _Tested) -> list[str]:
    return [f"by the cells that all {sheet.all_seeds} training seeds have" for sheet in test.cells if sheet.all_seeds]


def _untestable(name: str, lack: _Lacking) -> Verdict:
    nearest = lack.sheets[0].study if len(lack.sheets) == 1 and not lack.what.nothing else ""
    return Verdict(
        id=name, claim=CLAIMS[name].statement, verdict=UNTESTABLE, sentence=f"needs {lack.what}.",
        missing=str(lack.what), notes=notes_on(name), study=nearest,
    )  # fmt: skip


def _each(names: Iterable[str]) -> str:
    """Names, each once."""
    return ", ".join(dict.fromkeys(names))


def _sentence(found: Verdict, known: bool) -> str:
    of = f" of {len(found.parts)} parts" if len(found.parts) > 1 else ""
    margin = f", margin {found.margin}" if found.margin else ""
    effect = f"{found.weakest} {written(found.effect or 0.0, found.interval, found.unit)}"
    if not known:
        return f"no error given: {effect}, the least{of}{margin}; {rests_on(found)}."
    which = {SUPPORTED: "the least", REFUTED: "against it", INCONCLUSIVE: "the least"}[found.verdict]
    effect += f", {which}{of}" if of else ""
    what = advice(found)
    return f"{effect}{margin}; {rests_on(found)}" + (f"; {what}." if what else ".")


def _notes(sheets: Sequence[Sheet], tests: Sequence[_Tested], unread: Mapping[str, str]) -> list[str]:
    """What to know of the tables; of several, with the studies that it holds of, where not of all."""
    if len(sheets) + len(unread) == 1:
        return _of_sheet(sheets[0], tests)
    each = {}
    for sheet in sheets:
        own = [test for test in tests if sheet.study in {used.study for used in test.cells}]
        each[sheet.study] = _of_sheet(sheet, own) if own else _left_out(sheet)
    each |= {name: [f"not read: {why}"] for name, why in unread.items()}
    names: dict[str, list[str]] = {}
    for study, notes in each.items():
        for note in notes:
            names.setdefault(note, []).append(study)
    return [note if len(of) == len(each) else f"{', '.join(of)}: {note}" for note, of in names.items()]


def _of_sheet(sheet: Sheet, tests: Sequence[_Tested]) -> list[str]:
    notes = [
        f"FID is {metric_name(sheet.quality)} here; effects are differences of its logarithm, in %, positive in the "
        "claim's favour, with 95% intervals of each by itself; verdicts hold at 5% over all claims (Holm)."
    ]
    if sheet.quality in sheet.linear:
        notes[0] = notes[0].replace("of its logarithm, in %", "in % of its median, as it comes near 0")
    if sheet.one_half:
        notes.append("There is one set of images: guidance is chosen on the images that it is judged by.")
    if tests and all(test.estimates.seeds == 1 for test in tests):
        notes.append(
            "One training seed: verdicts are of these checkpoints; another training of these sizes may say otherwise."
        )
    if tests and not all(test.estimates.paired for test in tests):
        notes.append("Influence values are not stored for all: intervals without pairing are wider than need be.")
    return notes + _left_out(sheet)


def _left_out(sheet: Sheet) -> list[str]:
    return [f"{line}." for line in sheet.left_out]
