"""Claims on what members are tuned for: super-resolution, DreamBooth, interpolation (arXiv 2404.01367, Fig. 4 to 6)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isocost.analysis.claims.hypotheses import Hypothesis, Part
from isocost.analysis.claims.pretraining import finals, gain_a_doubling, slope, training_curves
from isocost.analysis.claims.sampling import SUPERRES
from isocost.analysis.quantity import Quantity, mean
from isocost.analysis.sheet import PRETRAINED, Missing, Sheet

DREAMBOOTH = "dreambooth"
TASKS = (SUPERRES, DREAMBOOTH)
SUBJECTS = "subjects"
FEWEST = 3  # members that make a slope
LPIPS, INSTEAD_OF_LPIPS = "lpips", ("lite0-distance", "similarity")


def pretraining_predicts(*sheets: Sheet) -> Hypothesis:
    """C5: over members, the downstream loss rises with the pretraining loss, in every downstream task that can tell.

    The pretraining losses of the selection half are the regressor: their errors are not those of the downstream scores.
    """
    tasks = [task for task in TASKS if any(_has(sheet, task) for sheet in sheets)]
    if not tasks:
        raise Missing(f"cells of objective {' or '.join(TASKS)}", nothing=True)
    parts, notes, lacks = [], ["the effect: % of downstream loss for each 1 of log pretraining loss"], []
    for task in tasks:
        try:
            found = [_before_and_after(task, sheet, sheets) for sheet in sheets if _has(sheet, task)]
            pretrained, sheet, both = max(found, key=lambda pairing: len(pairing[2]))
            if len(both) < FEWEST:
                start = f", by the study {sheet.start} that they start from" if sheet.start else ""
                raise Missing(f"three members or more with {task} and with scores before it{start}")
            metric = sheet.metric("similarity") if task == DREAMBOOTH else sheet.quality
        except Missing as error:
            lacks.append(str(error))
            continue
        x = np.array([pretrained.seen(before, pretrained.quality) for before, _ in both])
        parts.append(Part(task, slope(x, [sheet.loss(after, metric) for _, after in both])))
        if pretrained is not sheet:
            notes.append(f"pretraining losses before {task} are those of the study {pretrained.study}")
    if not parts:
        raise Missing(lacks[0])
    notes += [f"one task is left out: it needs {lack}" for lack in lacks]
    of = SUBJECTS if any(part.name == DREAMBOOTH for part in parts) else "images"
    return Hypothesis(tuple(parts), notes=tuple(notes), of=of)


def _has(sheet: Sheet, task: str) -> bool:
    return bool((sheet.cells["objective"] == task).any())


def _before_and_after(task: str, sheet: Sheet, sheets: Sequence[Sheet]) -> tuple[Sheet, Sheet, list[tuple[int, int]]]:
    """Where members were scored before and after a task, and each one's cells there; none where too few were before.

    Before it: in the same sheet, else in the one that its members start from; where that is not known, in the first
    whose members are called alike.
    """
    after = sheet.one_each(finals(sheet, task))
    start = [other for other in sheets if other.study == sheet.start] if sheet.start else sheets
    for pretrained in (sheet, *start):
        before = _pretrained(pretrained)
        both = [(before[member], after[member]) for member in after if member in before]
        if len(both) >= FEWEST:
            return pretrained, sheet, both
    return sheet, sheet, []


def _pretrained(sheet: Sheet) -> dict[str, int]:
    """member -> its cell after pretraining; empty where fewer than two have one."""
    try:
        return sheet.one_each(finals(sheet, PRETRAINED))
    except Missing:
        return {}


def size_drives_fd(sheet: Sheet) -> Hypothesis:
    """C6: FD falls by more from the smallest to the largest than from the first to the last fine-tuning checkpoint."""
    by_size, by_compute = _drives(sheet)
    return Hypothesis((Part("size over compute", by_size - by_compute),))


def compute_drives_lpips(sheet: Sheet) -> Hypothesis:
    """C7: LPIPS, or another distance of each image to its target by a network's features, the other way."""
    by_size, by_compute = _drives(sheet, LPIPS, *INSTEAD_OF_LPIPS)
    metric = sheet.metric(LPIPS, *INSTEAD_OF_LPIPS)
    notes = () if metric.startswith(LPIPS) else (f"by {metric}, as there is no LPIPS",)
    return Hypothesis((Part("compute over size", by_compute - by_size),), notes=notes)


def _drives(sheet: Sheet, *families: str) -> tuple[Quantity, Quantity]:
    """What size brings (mean over checkpoints) and what fine-tuning brings (mean over members)."""
    curves = training_curves(sheet, SUPERRES)
    metric = sheet.metric(*families) if families else sheet.quality
    smallest, *_, largest = curves.values()
    by_size = [
        sheet.loss(small, metric) - sheet.loss(large, metric) for small, large in zip(smallest, largest, strict=True)
    ]
    by_compute = [sheet.loss(first, metric) - sheet.loss(last, metric) for first, _, last in curves.values()]
    return mean(by_size), mean(by_compute)


def brief_large_beats_long_small(sheet: Sheet) -> Hypothesis:
    """C8: the largest member's first fine-tuning checkpoint has a lower FD than the smallest's last."""
    smallest, *_, largest = training_curves(sheet, SUPERRES).items()
    part = Part(
        f"{largest[0]} briefly over {smallest[0]} long", sheet.loss(smallest[1][-1]) - sheet.loss(largest[1][0])
    )
    return Hypothesis((part,))


def inception_score_follows(sheet: Sheet) -> Hypothesis:
    """C9: both the inception score and FD of super-resolution improve with size."""
    cells, score = sheet.one_each(finals(sheet, SUPERRES)), sheet.metric("is")
    return Hypothesis(tuple(Part(metric, gain_a_doubling(sheet, cells, metric)) for metric in (score, sheet.quality)))


def dreambooth_improves(sheet: Sheet) -> Hypothesis:
    """C10: likeness to the subject (DINO or CLIP-I) rises with size."""
    cells, metric = sheet.one_each(finals(sheet, DREAMBOOTH)), sheet.metric("similarity")
    return Hypothesis((Part("a doubling of the size", gain_a_doubling(sheet, cells, metric)),), of=SUBJECTS)


def interpolations_cohere(sheet: Sheet) -> Hypothesis:
    """C27: the coherence of images between two captions rises with size."""
    metric = sheet.metric("coherence")
    having = {cell for cell, name, _ in sheet.places if name == metric}
    cells = sheet.chosen[sheet.chosen.index.isin(having)].sort_values("params", kind="stable").drop_duplicates("member")
    by_member = dict(zip(cells["member"], map(int, cells.index), strict=True))
    part = Part("a doubling of the size", gain_a_doubling(sheet, by_member, metric))
    return Hypothesis((part,), of="pairs of captions")
