"""Metrics of generated images by name: features in, an `Estimate` with its error out.

A new metric is one function, beside its kin in this package, and one line of `METRICS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from isocost.errors import SpecError, lookup
from isocost.scoring.agreement import caption_accuracy, clip_score
from isocost.scoring.frechet import frechet
from isocost.scoring.kernels import kid
from isocost.scoring.uncertainty import Estimate


@dataclass(frozen=True)
class Metric:
    """`function` takes the inputs that `needs` names, as keywords, and returns one Estimate or several by name.

    Inputs, row n for image n: `features` [N, D] of the images, `text_features` [N, D] of their captions by the same
    extractor, `reference`, a classifier's `logits` and `attributes`, and what each prompt `wanted`.
    `names_extractor`: its score is printed with the extractor, as in `fd[scenes-clip-score]`.
    """

    function: Callable[..., Estimate | dict[str, Estimate]]
    needs: tuple[str, ...]
    higher_is_better: bool
    names_extractor: bool = True


METRICS: dict[str, Metric] = {
    "fd": Metric(frechet, ("features", "reference"), higher_is_better=False),
    "kid": Metric(kid, ("features", "reference"), higher_is_better=False),
    "clip": Metric(clip_score, ("features", "text_features"), higher_is_better=True),
    "accuracy": Metric(
        caption_accuracy, ("logits", "wanted", "attributes"), higher_is_better=True, names_extractor=False
    ),
}


def label(metric: str, extractor: str) -> str:
    """The name under which a score is printed: `fd[scenes-clip-score]`, `accuracy`, or `accuracy/colour`."""
    family = lookup(METRICS, metric.partition("/")[0], "metric")
    return f"{metric}[{extractor}]" if family.names_extractor else metric


def compute(metric: str, **inputs: Any) -> dict[str, Estimate]:
    """Estimates of one of `METRICS` by name, from whatever inputs are at hand; those it does not need are ignored.

    Raises `SpecError` for an unknown metric or a missing input.
    """
    entry = lookup(METRICS, metric, "metric")
    missing = [name for name in entry.needs if inputs.get(name) is None]
    if missing:
        raise SpecError(f"metric '{metric}' needs {', '.join(missing)}.")
    result = entry.function(**{name: inputs[name] for name in entry.needs})
    return result if isinstance(result, dict) else {metric: result}


def needs(metrics: Iterable[str]) -> set[str]:
    """All inputs that these metrics need."""
    return {name for metric in metrics for name in lookup(METRICS, metric, "metric").needs}
