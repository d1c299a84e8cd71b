"""Scoring cells from stored features: every metric, on the selection half, the report half, and all prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocost.data.prompts import PromptList
from isocost.environment import environment
from isocost.errors import DataError
from isocost.scoring.extractors import AttributeLogits, ClipFeatures, Projected, project
from isocost.scoring.metrics import METRICS, compute
from isocost.scoring.statistics import Reference
from isocost.scoring.uncertainty import Estimate
from isocost.specs import Evaluation, Score, ScoreSpec, Split
from isocost.study.artifacts import Progress, silent
from isocost.study.grid import Cell
from isocost.study.images import chunks_needed, feature_name
from isocost.study.store import Store

SPLITS: tuple[Split, ...] = ("selection", "report", "all")


@dataclass(frozen=True)
class Judge:
    """All that scoring a cell needs beside its features; built once a sweep."""

    evaluation: Evaluation
    clip: ClipFeatures
    classifier: AttributeLogits | None
    reference_digest: str
    reference: Reference
    fd_reference: Reference
    text_features: np.ndarray
    wanted: tuple[Mapping[str, str | int], ...]
    halves: np.ndarray

    @classmethod
    def build(
        cls,
        evaluation: Evaluation,
        clip: ClipFeatures,
        classifier: AttributeLogits | None,
        reference_digest: str,
        reference_features: np.ndarray,
        prompts: PromptList,
    ) -> Judge:
        """Features of the captions, what each image must show, and the reference's statistics."""
        places = [prompts.at(place)[0] for place in range(evaluation.images)]
        features = reference_features.astype(np.float32)
        dims = evaluation.fd_dims
        return cls(
            evaluation=evaluation,
            clip=clip,
            classifier=classifier,
            reference_digest=reference_digest,
            reference=Reference.of(features),
            fd_reference=Reference.of(project(features, dims) if dims else features),
            text_features=clip.text([prompt.text for prompt in places]),
            wanted=_informative([prompt.attributes for prompt in places]),
            halves=np.array([prompts.half(place) for place in range(evaluation.images)]),
        )

    def rows(self, split: Split) -> np.ndarray:
        """Places of a split, in order."""
        return np.flatnonzero((self.halves == split) | (split == "all"))

    def all_specs(self) -> list[ScoreSpec]:
        """Every ScoreSpec that a cell is to have."""
        return [spec for split in SPLITS for spec in self.specs(split).values()]

    def specs(self, split: Split) -> dict[str, ScoreSpec]:
        """The ScoreSpec of every metric that is asked for, on one split."""
        return {metric: self._spec(metric, split) for metric in self.evaluation.metrics}

    def _spec(self, metric: str, split: Split) -> ScoreSpec:
        extractor: Any = self.clip
        if metric == "fd" and self.evaluation.fd_dims:
            extractor = Projected(self.clip, self.evaluation.fd_dims)
        if metric == "accuracy":
            extractor = self.classifier
        against_images = "reference" in METRICS[metric].needs
        return ScoreSpec(
            metric=metric,
            extractor=f"{extractor.name}@{extractor.digest[:16]}",
            reference=self.reference_digest if against_images else None,
            n=len(self.rows(split)),
            split=split,
        )

    def estimates(self, metric: str, features: Mapping[str, np.ndarray], split: Split) -> dict[str, Estimate]:
        """One metric on one split: an Estimate, or several by name (caption accuracy, by attribute)."""
        rows = self.rows(split)
        if metric == "accuracy":
            assert self.classifier is not None
            logits = self.classifier.split(features[feature_name(self.classifier)][rows].astype(np.float32))
            wanted = [self.wanted[row] for row in rows]
            return compute(metric, logits=logits, wanted=wanted, attributes=self.classifier.attributes)
        clip = features[feature_name(self.clip)][rows].astype(np.float32)
        dims = self.evaluation.fd_dims
        if metric == "fd":
            return compute(metric, features=project(clip, dims) if dims else clip, reference=self.fd_reference)
        return compute(metric, features=clip, reference=self.reference, text_features=self.text_features[rows])


def _informative(wanted: Sequence[Mapping[str, str | int]]) -> tuple[dict[str, str | int], ...]:
    """What each image must show, without attributes that have one value in all prompts: those anyone gets right."""
    values: dict[str, set[str | int]] = {}
    for attributes in wanted:
        for name, value in attributes.items():
            values.setdefault(name, set()).add(value)
    return tuple({n: v for n, v in attributes.items() if len(values[n]) > 1} for attributes in wanted)


def score_cells(cells: Sequence[Cell], store: Store, judge: Judge, progress: Progress = silent) -> None:
    """Score every cell that lacks a score. Cells that are there are left alone."""
    scored = store.score_keys()
    keys = list(dict.fromkeys(cell.key.digest for cell in cells))
    chunks = chunks_needed(judge.evaluation.images, cells[0].key.engine) if cells else 0
    for done, key in enumerate(keys, 1):
        wanted: list[tuple[Split, str, ScoreSpec]] = [
            (split, metric, spec) for split in SPLITS for metric, spec in judge.specs(split).items()
        ]
        missing = [item for item in wanted if store.score_key(key, item[2]) not in scored]
        if missing:
            features = cell_features(store, key, chunks, judge.evaluation.images)
            for split, metric, spec in missing:
                _write(store, key, spec, judge.estimates(metric, features, split))
        progress("score", done, len(keys), "")


def cell_features(store: Store, sample_key: str, chunks: int, images: int) -> dict[str, np.ndarray]:
    """Features of the first `images` images, by extractor, fp16 as stored."""
    stored = [store.read_chunk(sample_key, index).features for index in range(chunks)]
    return {name: np.concatenate([part[name] for part in stored])[:images] for name in stored[0]}


def _write(store: Store, sample_key: str, spec: ScoreSpec, estimates: Mapping[str, Estimate]) -> None:
    """Store a metric's estimates; the one that carries the metric's own name last, as it says that all are there."""
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
        store.write_score(score, estimate.influence)
