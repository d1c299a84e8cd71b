"""Claims on what members are tuned for: super-resolution, DreamBooth, interpolation (arXiv 2404.01367, Fig. 4 to 6)."""

from __future__ import annotations

import numpy as np

from isocost.analysis.claims.hypotheses import Hypothesis, Part
from isocost.analysis.claims.pretraining import finals, gain_a_doubling, slope, training_curves
from isocost.analysis.claims.sampling import SUPERRES
from isocost.analysis.quantity import Quantity, mean
from isocost.analysis.sheet import Missing, Sheet

DREAMBOOTH = "dreambooth"
TASKS = (SUPERRES, DREAMBOOTH)


def pretraining_predicts(sheet: Sheet) -> Hypothesis:
    """C5: over members, the downstream loss rises with the pretraining loss, in every downstream task there is.

    The pretraining losses of the selection half are the regressor: their errors are not those of the downstream scores.
    """
    before = sheet.one_each(finals(sheet, "denoise"))
    tasks = [task for task in TASKS if (sheet.cells["objective"] == task).any()]
    if not tasks:
        raise Missing(f"cells of objective {' or '.join(TASKS)}")
    parts = []
    for task in tasks:
        after = sheet.one_each(finals(sheet, task))
        both = [member for member in after if member in before]
        if len(both) < 3:
            raise Missing(f"three members or more with {task}")
        x = np.array([sheet.seen(before[member], sheet.quality) for member in both])
        metric = sheet.metric("similarity") if task == DREAMBOOTH else sheet.quality
        parts.append(Part(task, slope(x, [sheet.loss(after[member], metric) for member in both])))
    return Hypothesis(tuple(parts), notes=("the effect: % of downstream loss for each 1 of log pretraining loss",))


def size_drives_fd(sheet: Sheet) -> Hypothesis:
    """C6: FD falls by more from the smallest to the largest than from the first to the last fine-tuning checkpoint."""
    by_size, by_compute = _drives(sheet, sheet.quality)
    return Hypothesis((Part("size over compute", by_size - by_compute),))


def compute_drives_lpips(sheet: Sheet) -> Hypothesis:
    """C7: LPIPS the other way."""
    by_size, by_compute = _drives(sheet, sheet.metric("lpips"))
    return Hypothesis((Part("compute over size", by_compute - by_size),))


def _drives(sheet: Sheet, metric: str) -> tuple[Quantity, Quantity]:
    """What size brings (mean over checkpoints) and what fine-tuning brings (mean over members)."""
    curves = training_curves(sheet, SUPERRES)
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
    return Hypothesis((Part("a doubling of the size", gain_a_doubling(sheet, cells, metric)),))


def interpolations_cohere(sheet: Sheet) -> Hypothesis:
    """C27: the coherence of images between two captions rises with size."""
    metric = sheet.metric("coherence")
    having = {cell for cell, name, _ in sheet.places if name == metric}
    cells = sheet.chosen[sheet.chosen.index.isin(having)].sort_values("params", kind="stable").drop_duplicates("member")
    by_member = dict(zip(cells["member"], map(int, cells.index), strict=True))
    return Hypothesis((Part("a doubling of the size", gain_a_doubling(sheet, by_member, metric)),))
