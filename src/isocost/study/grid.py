"""Which cells a study has: every kept checkpoint's plans, with what each costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from isocost.diffusion.noise import NOISE_VERSION
from isocost.specs import (
    CheckpointRef,
    DataSpec,
    Grid,
    Guidance,
    ModelSpec,
    PromptSet,
    SampleKey,
    SamplingPlan,
    Stage,
    StudySpec,
    TrainSpec,
)


@dataclass(frozen=True)
class Run:
    """One training run of a study: a member at a seed."""

    model: ModelSpec
    seed: int
    spec: TrainSpec


@dataclass(frozen=True)
class Cell:
    """One sample set of a study: a checkpoint and a plan. `curve`: a point of quality against training compute."""

    model: ModelSpec
    seed: int
    train: str
    checkpoint: CheckpointRef
    curve: bool
    key: SampleKey

    @property
    def plan(self) -> SamplingPlan:
        return self.key.plan

    @property
    def guided(self) -> bool:
        return self.plan.guidance.scale != 1

    @property
    def label(self) -> str:
        """What a person calls this cell: `c16 ddim 8 steps x2`."""
        plan = self.plan
        return f"{self.model.name} {plan.sampler} {plan.steps} steps x{plan.guidance.scale:g}"


def runs(study: StudySpec, data: DataSpec) -> list[Run]:
    """Every member at every training seed."""
    settings = {name: getattr(study.train, name) for name in type(study.train).model_fields}
    return [
        Run(model, seed, TrainSpec(model=model, data=data, seed=seed, **settings))
        for model in study.members
        for seed in study.seeds
    ]


def plans(grid: Grid, checkpoint: CheckpointRef, study: StudySpec) -> Iterable[SamplingPlan]:
    """The plans of a grid for one checkpoint."""
    for sampler in grid.samplers:
        for steps in grid.steps:
            for scale in grid.guidance:
                yield SamplingPlan(
                    stages=(Stage(checkpoint=checkpoint),),
                    schedule=study.train.schedule,
                    prediction=study.train.prediction,
                    sampler=sampler,
                    steps=steps,
                    spacing=grid.spacing,
                    guidance=Guidance(scale=scale),
                    eta=grid.eta if sampler == "ddim" else 0.0,
                    variance=grid.variance if sampler == "ddpm" else "small",
                )


def expand(
    study: StudySpec, trained: Sequence[tuple[Run, Sequence[CheckpointRef]]], promptset: PromptSet
) -> list[Cell]:
    """All cells, each once: grids on the final checkpoints, the curve's plans on every kept one.

    Args:
        trained: each run with its kept checkpoints, by images seen; the last is the final one.
    """
    cells: dict[tuple[str, bool], Cell] = {}
    for run, checkpoints in trained:
        wanted = [(checkpoints[-1], grid, False) for grid in (study.grid, *study.extra_grids)]
        if study.curve is not None:
            wanted += [(checkpoint, study.curve, True) for checkpoint in checkpoints]
        for checkpoint, grid, curve in wanted:
            for plan in plans(grid, checkpoint, study):
                key = SampleKey(
                    plan=plan,
                    promptset=promptset,
                    latent_shape=run.spec.data.latent_shape,
                    noise_version=NOISE_VERSION,
                    engine=study.engine,
                )
                cell = Cell(run.model, run.seed, run.spec.digest, checkpoint, curve, key)
                cells.setdefault((key.digest, curve), cell)
    return list(cells.values())


def run_columns(run: Run) -> dict[str, Any]:
    """What `status` says of a training run."""
    return {"member": run.model.name, "seed": run.seed, "digest": run.spec.digest, "images": run.spec.images}


def columns(cell: Cell) -> dict[str, Any]:
    """What the results table says of a cell, but its costs and scores."""
    plan = cell.plan
    return {
        "sample_key": cell.key.digest,
        "member": cell.model.name,
        "width": cell.model.width,
        "seed": cell.seed,
        "images_seen": cell.checkpoint.images_seen,
        "sampler": plan.sampler,
        "eta": plan.eta,
        "variance": plan.variance,
        "spacing": plan.spacing,
        "steps": plan.steps,
        "guidance_scale": plan.guidance.scale,
        "curve": cell.curve,
        "checkpoint": cell.checkpoint.content_digest,
    }
