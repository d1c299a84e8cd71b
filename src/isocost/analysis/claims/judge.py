"""A results table in, a verdict on every claim out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isocost.analysis.claims.catalogue import CLAIMS
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
from isocost.errors import lookup


@dataclass(frozen=True)
class Judgement:
    """A verdict a claim, in the paper's order; `level` of all together; `notes`: what to know of the whole table."""

    verdicts: tuple[Verdict, ...]
    level: float
    notes: tuple[str, ...]

    def __getitem__(self, claim: str) -> Verdict:
        return lookup({verdict.id: verdict for verdict in self.verdicts}, claim, "claim")


@dataclass(frozen=True, eq=False)
class _Tested:
    hypothesis: Hypothesis
    estimates: Estimates
    supports: float
    refutes: float


def judge(
    table: DataFrame,
    influence: Influence | None = None,
    metric: str | None = None,
    unit: str = "paper",
    claims: Sequence[str] | None = None,
) -> Judgement:
    """Every claim of the paper, judged by a results table.

    `influence`: score_key -> influence values, for paired differences. `metric`: what claims on FID are judged by
    (default: the Frechet distance, else KID). `unit`: of sampling cost. `claims`: ids, default all; errors are
    corrected over those that can be tested. Raises `SpecError` for an empty table, unknown names and mixed protocols.
    """
    sheet = Sheet.of(table, metric, unit)
    errors = Errors(sheet.scores, influence)
    ids = list(claims) if claims is not None else list(CLAIMS)
    tested: dict[str, _Tested] = {}
    missing: dict[str, str] = {}
    for name in ids:
        try:
            tested[name] = _tested(lookup(CLAIMS, name, "claim").test(sheet), errors)
        except Missing as error:
            missing[name] = str(error)
    supports = dict(zip(tested, holm([test.supports for test in tested.values()]), strict=True))
    refutes = dict(zip(tested, holm([test.refutes for test in tested.values()]), strict=True))
    level = LEVEL / max(len(tested), 1)
    verdicts = [
        _verdict(name, sheet, tested[name], supports[name], refutes[name], level)
        if name in tested
        else _untestable(name, missing[name])
        for name in ids
    ]
    return Judgement(tuple(verdicts), LEVEL, tuple(_notes(sheet, list(tested.values()))))


def _tested(hypothesis: Hypothesis, errors: Errors) -> _Tested:
    estimates = errors.estimates(hypothesis.quantities)
    supports, refutes = hypothesis.p_values(estimates)
    return _Tested(hypothesis, estimates, float(supports), float(refutes))


def _verdict(name: str, sheet: Sheet, test: _Tested, supports: float, refutes: float, level: float) -> Verdict:
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
        metric=sheet.quality,
        effect=shown.effect,
        interval=shown.interval,
        unit=test.hypothesis.scale,
        margin=test.hypothesis.margin,
        weakest=shown.name,
        p_supports=supports if known else None,
        p_refutes=refutes if known else None,
        cells=_cells(sheet, test.hypothesis),
        images=test.estimates.n,
        seeds=test.estimates.seeds,
        paired=test.estimates.paired,
        needed=needed(test.hypothesis, test.estimates, level) if open_ else None,
        notes=(*test.hypothesis.notes, *notes_on(name)),
        parts=parts,
    )
    return replace(found, sentence=_sentence(found, bool(known)))


def _untestable(name: str, missing: str) -> Verdict:
    return Verdict(
        id=name, claim=CLAIMS[name].statement, verdict=UNTESTABLE, sentence=f"needs {missing}.", missing=missing,
        notes=notes_on(name),
    )  # fmt: skip


def _cells(sheet: Sheet, hypothesis: Hypothesis) -> int:
    used = {number for quantity in hypothesis.quantities for number in quantity.weights}
    return len({cell for (cell, _, _), number in sheet.places.items() if number in used})


def _sentence(found: Verdict, known: bool) -> str:
    of = f" of {len(found.parts)} parts" if len(found.parts) > 1 else ""
    margin = f", margin {found.margin}" if found.margin else ""
    effect = f"{found.weakest} {written(found.effect or 0.0, found.interval, found.unit)}"
    if not known:
        return f"no error given: {effect}, the least{of}{margin}; {rests_on(found)}."
    which = {SUPPORTED: "the least", REFUTED: "against it", INCONCLUSIVE: "the least"}[found.verdict]
    effect += f", {which}{of}" if of else ""
    what = advice(found.needed, found.images, found.seeds)
    return f"{effect}{margin}; {rests_on(found)}" + (f"; {what}." if what else ".")


def _notes(sheet: Sheet, tests: Sequence[_Tested]) -> list[str]:
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
    return notes + [f"{line}." for line in sheet.left_out]
