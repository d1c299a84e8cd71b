"""Scoring cells from stored features: every metric, on the selection half, the report half, and all prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocost.data.prompts import OnTheWay, PromptList
from isocost.environment import environment
from isocost.errors import DataError
from isocost.scoring.evaluate import Against
from isocost.scoring.measures import Measure, Sample, columns_of, informative
from isocost.scoring.uncertainty import Estimate
from isocost.specs import Evaluation, Score, ScoreSpec, Split
from isocost.study.artifacts import Progress, silent
from isocost.study.grid import Cell
from isocost.study.images import chunks_needed
from isocost.study.store import Store

SPLITS: tuple[Split, ...] = ("selection", "report", "all")


@dataclass(frozen=True, eq=False)
class Judge:
    """All that scoring a cell needs beside its features; built once a sweep.

    `texts`: identity of a CLIP -> features of the captions, row by place. `halves`: of the prompt at each place.
    `ways`, `ends`: of images between two captions, where each is and what either end must show; texts are [N, 2, D].
    """

    evaluation: Evaluation
    measures: tuple[Measure, ...]
    against: Against
    captions: tuple[str, ...]
    texts: Mapping[str, np.ndarray]
    wanted: tuple[Mapping[str, str | int], ...]
    halves: np.ndarray
    ways: tuple[OnTheWay, ...] = ()
    ends: tuple[Sequence[Mapping[str, str | int]], Sequence[Mapping[str, str | int]]] = ((), ())

    @classmethod
    def build(cls, evaluation: Evaluation, measures: Sequence[Measure], against: Against, prompts: PromptList) -> Judge:
        """Features of the captions, what each image must show, and the references, built where they are not there."""
        against.prepare(measures)
        places = [prompts.at(place)[0] for place in range(evaluation.images)]
        ways = tuple(prompt.way for prompt in places if prompt.way)
        ends = [way.first for way in ways] + [way.second for way in ways]
        captions = tuple(prompt.text for prompt in ends or places)
        shown = informative([prompt.attributes for prompt in ends])
        readers = {measure.identity: measure.network for measure in measures if measure.reads_captions}
        return cls(
            evaluation=evaluation,
            measures=tuple(measures),
            against=against,
            captions=captions,
            texts={identity: _by_place(clip.text(captions), len(places)) for identity, clip in readers.items()},
            wanted=informative([prompt.attributes for prompt in places]),
            halves=np.array([prompts.half(place) for place in range(evaluation.images)]),
            ways=ways,
            ends=(shown[: len(ways)], shown[len(ways) :]),
        )

    def rows(self, split: Split) -> np.ndarray:
        """Places of a split, in order."""
        return np.flatnonzero((self.halves == split) | (split == "all"))

    def all_specs(self) -> list[ScoreSpec]:
        """Every ScoreSpec that a cell is to have."""
        return [self.spec(measure, split) for split in SPLITS for measure in self.measures]

    def spec(self, measure: Measure, split: Split) -> ScoreSpec:
        """What one metric on one split is a score of."""
        reference = self.against.set_of(measure.network) if measure.is_against_images else None
        return ScoreSpec(
            metric=measure.metric,
            extractor=measure.identity,
            reference=reference.digest if reference else None,
            n=len(self.rows(split)),
            split=split,
            protocol=reference.protocol if reference else "",
        )

    def estimates(self, measure: Measure, features: Mapping[str, np.ndarray], split: Split) -> dict[str, Estimate]:
        """One metric on one split: an Estimate, or several by name (caption accuracy, by attribute)."""
        rows = self.rows(split)
        return self.estimates_at(measure, {name: values[rows] for name, values in features.items()}, rows)

    def estimates_at(
        self, measure: Measure, features: Mapping[str, np.ndarray], rows: np.ndarray
    ) -> dict[str, Estimate]:
        """The same of images whose `features` [n, D] are at the places `rows` [n]."""
        sample = Sample(
            columns={column.name: features[column.name] for column in measure.columns()},
            texts=lambda clip: self.texts[measure.identity][rows],
            wanted=lambda: [self.wanted[row] for row in rows],
            places=[self.ways[row] for row in rows] if self.ways else (),
            ends=tuple([end[row] for row in rows] for end in self.ends) if self.ways else ((), ()),  # pyright: ignore[reportArgumentType]
        )
        return measure.estimates(sample, self.against.of)

    def described(self) -> list[dict[str, Any]]:
        """Each metric as it was asked for and as it is printed, and how many captions its text tower cuts."""
        return [
            {
                "asked": asked,
                "label": measure.label(measure.metric),
                "captions_cut": measure.network.count_truncated(self.captions) if measure.reads_captions else 0,
            }
            for asked, measure in zip(self.evaluation.metrics, self.measures, strict=True)
        ]


def _by_place(features: np.ndarray, places: int) -> np.ndarray:
    """Features of captions by place, [N, D]; where each place has two, one after the other, [N, 2, D]."""
    return features if len(features) == places else np.stack(np.split(features, 2), axis=1)


def missing_scores(
    cells: Sequence[Cell], store: Store, judge: Judge
) -> dict[str, list[tuple[Split, Measure, ScoreSpec]]]:
    """The scores that each sample key lacks: an empty list where it has all."""
    scored = store.score_keys()
    wanted: list[tuple[Split, Measure, ScoreSpec]] = [
        (split, measure, judge.spec(measure, split)) for split in SPLITS for measure in judge.measures
    ]
    keys = dict.fromkeys(cell.sample_key for cell in cells)
    return {key: [item for item in wanted if store.score_key(key, item[2]) not in scored] for key in keys}


def score_cells(cells: Sequence[Cell], store: Store, judge: Judge, progress: Progress = silent) -> None:
    """Score every cell that lacks a score. Cells that are there are left alone."""
    if not cells:
        return
    engines = {cell.sample_key: cell.key.engine for cell in cells}
    names = [column.name for column in columns_of(judge.measures)]
    for done, (key, missing) in enumerate(missing_scores(cells, store, judge).items(), 1):
        if missing:
            chunks = chunks_needed(judge.evaluation.images, engines[key])
            features = cell_features(store, key, names, chunks, judge.evaluation.images)
            for split, measure, spec in missing:
                write(store, key, spec, judge.estimates(measure, features, split))
        progress("score", done, len(engines), "")


def cell_features(
    store: Store, sample_key: str, names: Sequence[str], chunks: int, images: int
) -> dict[str, np.ndarray]:
    """Features of the first `images` images by each of `names`, fp16 as stored."""
    stored = [store.read_chunk(sample_key, index).features for index in range(chunks)]
    return {name: np.concatenate([part[name] for part in stored])[:images] for name in names}


def write(store: Store, sample_key: str, spec: ScoreSpec, estimates: Mapping[str, Estimate]) -> None:
    """Store a metric's estimates under a sample key.

    The one that carries the metric's own name comes last, as it says that all are there.
    """
    for name in sorted(estimates, key=lambda name: name == spec.metric):
        estimate = estimates[name]
        if not np.isfinite(estimate.value):
            raise DataError(f"cell {sample_key[:12]}: {name} is {estimate.value}: its features are not finite.")
        score = Score(
            sample_key=sample_key,
            score_spec=spec.model_copy(update={"metric": name}),
            value=estimate.value,
            stderr=estimate.stderr,
            bias=estimate.bias,
            n=estimate.n,
            higher_is_better=estimate.higher_is_better,
            unit=estimate.unit,
            valid=estimate.valid,
            environment=environment(),
        )
        store.write_score(score, estimate.influence, estimate.reference_influence)
