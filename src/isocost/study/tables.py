"""The results of a store as tables: read from what was written, without networks or their libraries."""

from __future__ import annotations

import functools
from typing import Any

import pandas as pd

from isocost.data.prompts import prompt_list
from isocost.errors import IsocostError, StoreError
from isocost.scoring.metrics import label
from isocost.scoring.protocols import is_protocol
from isocost.specs import StudySpec
from isocost.study.seconds import Wanted, cell_seconds
from isocost.study.store import Store


def table(store: Store, wanted: Wanted | None = None) -> pd.DataFrame:
    """One row a (cell, metric, split): what it is, what it costs, its value and error.

    `value` is corrected for the metric's estimated bias where there is one (`plug_in` is the number before that);
    `captions_cut` counts captions of which the metric's text tower reads the beginning only; `seconds_per_image` is
    from what `isocost measure` found (of several devices and engines, `wanted`'s), else the median over the cell's
    chunks as the sweep took them, and `seconds_as` says which.

    Raises:
        StoreError: no study in the store, or nothing scored yet.
        SpecError: nothing that is `wanted` was measured.
    """
    store.study()
    expansion = store.expansion()
    cells = pd.DataFrame(expansion["cells"])
    scores = _current(store.index(), expansion["scores"])
    if cells.empty or scores.empty:
        raise StoreError(f"{store.path}: no scores yet. `isocost sweep` goes on from what is there.")
    frame: Any = _named(cells.merge(scores, on="sample_key", how="inner"))
    seconds = cell_seconds(store, expansion["cells"], wanted)
    cut = {metric["label"]: metric["captions_cut"] for metric in expansion["metrics"]}
    return frame.assign(
        captions_cut=[cut.get(name, 0) for name in frame["metric"].tolist()],
        seconds_per_image=frame["sample_key"].map(pd.Series(seconds.by_key, dtype=float)),
        seconds_as=seconds.source,
    ).drop(columns=["calls", "noises", "chosen_by"], errors="ignore")


def frames(store: Store) -> pd.DataFrame:
    """Floor and ceiling of super-resolution: one row a (`frame`, metric, split), as in `table`; empty where none is."""
    expansion = store.expansion()
    rows = expansion["frames"]
    if not rows:
        return pd.DataFrame()
    scores = _current(store.index(), expansion["scores"])
    return _named(pd.DataFrame(rows).merge(scores, on="sample_key", how="inner"))


def _named(frame: Any) -> pd.DataFrame:
    """Rows of scores with values corrected for their bias, and metrics as they are printed."""
    extractors = frame["extractor"].str.partition("@")[0]
    of_metric = functools.cache(label)
    names = [of_metric(*key) for key in zip(frame["metric"].tolist(), extractors.tolist(), strict=True)]
    return frame.assign(
        plug_in=frame["value"], value=frame["value"] - frame["bias"].fillna(0.0).astype(float), metric=names
    )


def metric_label(store: Store, name: str) -> str:
    """What a metric of the study's own spec is called in its table: `fd` -> `fd[scenes-clip-score-32]`."""
    labels = {metric["asked"]: metric["label"] for metric in store.expansion()["metrics"]}
    return labels.get(name, name)


def report_prompts(study: StudySpec) -> int | None:
    """How many distinct prompts the report half has, where its images are twice as many or more; else None.

    None too where the list of prompts is not at hand. A protocol's prompts, crops and ways have an image each.
    """
    evaluation = study.evaluation
    if study.data.degradation is not None or evaluation.between is not None or is_protocol(evaluation.prompts):
        return None
    try:
        distinct = prompt_list(evaluation.prompts, study.data).of_half("report").period
    except IsocostError:  # a file, or a folder of captions, that lies elsewhere
        return None
    return distinct if distinct and evaluation.images >= 4 * distinct else None


def _current(scores: pd.DataFrame, specs: list[dict[str, Any]]) -> pd.DataFrame:
    """Scores of the study's own ScoreSpecs: a store may hold older ones, by other references or extractors."""
    if scores.empty or not specs:
        return scores.iloc[:0]
    wanted: Any = pd.DataFrame(specs)[["metric", "extractor", "reference", "split", "n"]]
    wanted = wanted.rename(columns={"metric": "family", "n": "images"}).fillna({"reference": ""})
    named = scores.assign(family=scores["metric"].str.partition("/")[0], known=scores["reference"].fillna(""))
    keys = ["family", "extractor", "known", "split", "images"]
    return named.merge(wanted.rename(columns={"reference": "known"}), on=keys).drop(columns=["family", "known"])
