"""Best-of-n: several candidates of every image, of which a CLIP keeps the one closest to its caption."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from isocost.sampling.generate import Chunk, Pipeline, generate
from isocost.scoring.extractors import ClipFeatures
from isocost.specs import EngineSpec, SamplingPlan

Prompts = Sequence[tuple[str, str, int]]
"""(prompt id, text, replicate) of each image."""


def generate_best(
    pipeline: Pipeline, plan: SamplingPlan, engine: EngineSpec, prompts: Prompts, scorer: ClipFeatures
) -> Chunk:
    """The best of `plan.best_of.n` candidates of each prompt; evaluations and seconds are those of all candidates.

    Replicate r of a prompt is chosen among its replicates r n to r n + n - 1 as the plan without `best_of` makes them,
    so that no candidate is met twice. The first of equals is kept.
    """
    assert plan.best_of is not None
    start = time.perf_counter()
    count, evaluations = plan.best_of.n, 0
    captions = scorer.clip.text_features([text for _, text, _ in prompts], normalised=True)
    kept, highest = None, np.full(len(prompts), -np.inf)
    for candidate in range(count):
        numbered = [(name, text, replicate * count + candidate) for name, text, replicate in prompts]
        made = generate(pipeline, plan, engine, numbered)
        evaluations += made.evaluations
        closeness = (scorer.clip.image_features(made.images, normalised=True) * captions).sum(axis=1)
        better = closeness > highest
        kept = made.images if kept is None else np.where(better[:, None, None, None], made.images, kept)
        highest = np.maximum(highest, closeness)
    assert kept is not None
    return Chunk(kept, evaluations, (time.perf_counter() - start) / len(prompts))
