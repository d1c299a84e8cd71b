"""The metrics that a study asks for, with the networks behind them."""

from __future__ import annotations

import functools
import re

from isocost.errors import SpecError
from isocost.scoring.measures import Defaults, Measure, full_name, load_measures
from isocost.scoring.metrics import METRICS
from isocost.specs import Evaluation, split_metric
from isocost.study.artifacts import EncoderRefs

OWN = re.compile(r"own(-\d+)?")  # the extractor that a study trains, whole or on some dimensions


def metric_names(evaluation: Evaluation, refs: EncoderRefs) -> tuple[str, ...]:
    """Every metric of a study, in order, with the extractor that computes it: `fd[scenes-clip-score-32]`."""
    return tuple(with_own(name, refs.extractor) for name in _full_names(evaluation, refs.extractor))


def _full_names(evaluation: Evaluation, extractor: str) -> list[str]:
    defaults = Defaults(extractor, evaluation.fd_dims, evaluation.classifier)
    return [full_name(name, defaults) for name in evaluation.metrics]


def with_own(name: str, extractor: str) -> str:
    """The same metric with `own` replaced by the extractor that the study has trained: `kid[own]` -> `kid[PATH]`."""
    metric, ref = split_metric(name)
    return f"{metric}[{extractor}{ref.removeprefix('own')}]" if ref and OWN.fullmatch(ref) else name


@functools.lru_cache(maxsize=2)
def loaded(names: tuple[str, ...]) -> tuple[Measure, ...]:
    """The metrics of `metric_names` with their networks. What a process loads, it keeps."""
    return tuple(load_measures(names))


def check(evaluation: Evaluation, has_targets: bool = False) -> tuple[Measure, ...]:
    """Refuse metrics that a study cannot have, before anything is trained; those whose networks are here, loaded.

    Raises `SpecError` for unknown metrics and extractors, for what an extractor cannot do, and for metrics that compare
    each image with a target, unless a study `has_targets`; `DataError` for weights that are missing.
    """
    names = _full_names(evaluation, evaluation.extractor)
    targeted = [name for name in names if {"paired", "target_features"} & set(METRICS[split_metric(name)[0]].needs)]
    if targeted and not has_targets:
        raise SpecError(
            f"evaluation.metrics: '{targeted[0]}' compares every image with a target, and a study of prompts has none: "
            "leave it out."
        )
    if evaluation.select_by not in evaluation.metrics:
        raise SpecError(f"evaluation.select_by '{evaluation.select_by}' is not among evaluation.metrics.")
    return loaded(tuple(name for name in names if not OWN.fullmatch(split_metric(name)[1] or "")))
