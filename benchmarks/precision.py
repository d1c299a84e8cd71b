"""Whether faster engines draw images as good as diffusers' forward pass in fp32: paired differences on a trained store.

    python benchmarks/precision.py STORE [--images 512] [--steps 10] [--guidance 2] [--members c8,c16] [--compiled c8]
                                   [--device cpu|cuda]

Every member's final checkpoint draws the same prompts from the same noise under each engine: diffusers' forward pass in
fp32, the lean one in fp32 and in bf16, and for the members of `--compiled` (default: the smallest; none: "") the lean
one compiled, which takes minutes the first time. For the Frechet distance and the caption accuracy (where the prompts
say what images must show) it gives the difference to the first engine, that difference's own standard error (paired,
from influence values), and the standard error of the value itself. `ratio` is the largest difference over the standard
error of its value: an engine of which that is above 1 must not be the default. `largest_z` is the largest difference
over its own, much smaller, error: how surely anything at all has changed. The store is copied, and not changed."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from isocost.allocator import keep_freed_memory
from isocost.environment import environment
from isocost.sampling.engine import computes_in
from isocost.sampling.generate import generate
from isocost.scoring.measures import columns_of
from isocost.scoring.uncertainty import Estimate, paired_difference
from isocost.specs import EngineSpec, Guidance, SamplingPlan, Stage
from isocost.study import measures, run
from isocost.study.artifacts import against
from isocost.study.checkpoints import Found, find, pipeline_of
from isocost.study.images import chunk_prompts
from isocost.study.measured import Target, targets_of
from isocost.study.scores import Judge
from isocost.study.store import Store

METRICS = ("fd", "accuracy")
NOT_NEEDED = ("chunks", "cells", "influence", "figures", "measured")
REFERENCE = "diffusers fp32"
ENGINES = {
    REFERENCE: {"network": "diffusers"},
    "lean fp32": {"network": "lean"},
    "lean bf16": {"network": "lean", "dtype": "bf16"},
}
COMPILED = {"lean compiled": {"network": "lean", "compiled": True}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    for name, default in (("images", 512), ("steps", 10), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name in ("members", "compiled"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","))
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(args.store, Path(folder) / "store", ignore=shutil.ignore_patterns(*NOT_NEEDED))
        print(json.dumps(compare(Store(copy), args)))


def compare(store: Store, args: argparse.Namespace) -> dict[str, Any]:
    """Every member under every engine; prints each difference on the way."""
    trained = run.opened(store)
    targets = [one for one in targets_of(trained) if args.members is None or one.member in args.members]
    wanted = [name for name in METRICS if name in trained.study.evaluation.metrics]
    evaluation = trained.study.evaluation.model_copy(update={"metrics": tuple(wanted), "images": args.images})
    names = measures.metric_names(evaluation, trained.refs)
    judge = Judge.build(evaluation, measures.loaded(names), against(trained.study, store), trained.prompts)
    prompts = chunk_prompts(trained.prompts, 0, args.images)
    compiled = args.compiled if args.compiled is not None else [targets[0].member]
    members, seconds = {}, {}
    for target in targets:
        engines = ENGINES | (COMPILED if target.member in compiled else {})
        scored, images = {}, {}
        for name, fields in engines.items():
            engine = EngineSpec.parse({"batch": args.batch, "device": args.device, **fields})
            start = time.perf_counter()
            images[name] = draw(find(target.folder), plan_of(target, args), engine, prompts)
            seconds.setdefault(target.member, {})[name] = round((time.perf_counter() - start) / args.images, 5)
            scored[name] = scores(judge, images[name])
        members[target.member] = {
            name: {
                "mean_difference": float(np.abs(images[name] - images[REFERENCE].astype(float)).mean() / 255),
                **{metric: described(estimates[metric], scored[REFERENCE][metric]) for metric in wanted},
            }
            for name, estimates in scored.items()
            if name != REFERENCE
        }
        for name, found in members[target.member].items():
            print(f"{target.member} {name}: {found}", flush=True)
    differences = [found[metric] for engines in members.values() for found in engines.values() for metric in wanted]
    largest = max(found["in_errors_of_the_value"] for found in differences)
    return {
        "name": f"precision: {', '.join(members)}, DDIM-{args.steps}, guidance {args.guidance:g}, {args.images} images",
        "ratio": largest,
        "largest_z": max(abs(found["z"]) for found in differences),
        "within_one_standard_error": largest <= 1,
        "baseline": REFERENCE,
        "members": members,
        "seconds_per_image": seconds,
        "bf16_arithmetic": computes_in(EngineSpec(dtype="bf16", device=args.device)),
        "device": environment(),
    }


def plan_of(target: Target, args: argparse.Namespace) -> SamplingPlan:
    spec = find(target.folder).checkpoint.spec
    return SamplingPlan(
        stages=(Stage(checkpoint=target.checkpoint),),
        schedule=spec.schedule,
        prediction=spec.prediction,
        sampler="ddim",
        steps=args.steps,
        guidance=Guidance(scale=args.guidance),
    )


def draw(found: Found, plan: SamplingPlan, engine: EngineSpec, prompts: Any) -> np.ndarray:
    """uint8 [N, H, W, 3]."""
    pipeline = pipeline_of(found, engine)
    batches = [prompts[start : start + engine.batch] for start in range(0, len(prompts), engine.batch)]
    return np.concatenate([generate(pipeline, plan, engine, batch).images for batch in batches])


def scores(judge: Judge, images: np.ndarray) -> dict[str, Estimate]:
    """Every metric on all images, from features in half precision, as a store keeps them."""
    columns = columns_of(judge.measures)
    features = {column.name: column.function(images).astype(np.float16) for column in columns}
    return {measure.metric: judge.estimates(measure, features, "all")[measure.metric] for measure in judge.measures}


def described(estimate: Estimate, reference: Estimate) -> dict[str, float]:
    """The difference to the reference engine's value, in the metric's unit and in standard errors."""
    found = paired_difference(estimate, reference)
    changed = found.value != 0
    return {
        "value": estimate.corrected,
        "difference": found.value,
        "stderr": found.stderr,
        "value_stderr": reference.stderr,
        "z": found.value / found.stderr if changed and found.stderr else 0.0,
        "in_errors_of_the_value": abs(found.value) / reference.stderr if changed else 0.0,
    }


if __name__ == "__main__":
    main()
