"""What a `SamplingPlan` asks of its checkpoints: which one at which timestep, and how many evaluations of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby, pairwise

from torch import Tensor

from isocost.diffusion.denoiser import Denoiser
from isocost.diffusion.guidance import Denoise, evaluations_per_call, guide
from isocost.diffusion.samplers import SAMPLERS, calls, planned_evaluations, stochastic
from isocost.diffusion.schedule import timestep_pairs
from isocost.errors import SpecError
from isocost.specs import CheckpointRef, SamplingPlan, Stage


def stitched(first: CheckpointRef, then: CheckpointRef, share: float) -> tuple[Stage, ...]:
    """Stages of which `first` serves that share (0 to 1) of the steps and `then` the rest; at 0 and 1 a single one.

    T-Stitch (arXiv 2402.14167) begins with the small checkpoint; a small one at the end is as easily said.
    """
    if not 0 <= share <= 1:
        raise SpecError(f"share {share:g} of the steps is outside 0..1.")
    if share in (0, 1):
        return (Stage(checkpoint=first if share else then),)
    return Stage(checkpoint=first, until=share), Stage(checkpoint=then)


def pairs_of(plan: SamplingPlan) -> list[tuple[int, int]]:
    """The plan's timestep pairs. Raises `SpecError` where there are none (`timestep_pairs`)."""
    return timestep_pairs(plan.schedule, plan.steps, plan.spacing, plan.steps_offset)


def serving(plan: SamplingPlan) -> dict[int, CheckpointRef]:
    """Timestep -> the checkpoint whose stage it lies in, for every step; a stage's steps are rounded to whole ones.

    Which checkpoint is called follows from the timestep alone: the second call of a Heun step across a boundary is the
    later stage's.
    """
    timesteps = [t for t, _ in pairs_of(plan)]
    ends = [0, *(int(stage.until * plan.steps + 0.5) for stage in plan.stages)]
    return {
        t: stage.checkpoint
        for stage, (start, end) in zip(plan.stages, pairwise(ends), strict=True)
        for t in timesteps[start:end]
    }


def calls_of(plan: SamplingPlan) -> dict[tuple[CheckpointRef, int], int]:
    """Network calls of each checkpoint, by the rows that an image has in them, in the order of first use.

    Two rows are the empty prompt and the prompt in one call; autoguidance is a call of one row of either checkpoint.
    Raises `SpecError` for a plan that cannot be run: see `check`.
    """
    check(plan)
    checkpoint_at, made = serving(plan), Counter[tuple[CheckpointRef, int]]()
    timesteps = calls(plan.sampler, pairs_of(plan))
    for (checkpoint, rows), alike in groupby(
        (checkpoint_at[t], evaluations_per_call(plan.guidance, t)) for t in timesteps
    ):
        count = sum(1 for _ in alike)
        if rows > 1 and plan.guidance.guide:
            for called in (checkpoint, plan.guidance.guide):  # which may be one and the same
                made[called, 1] += count
        else:
            made[checkpoint, rows] += count
    return dict(made)


def evaluations_of(plan: SamplingPlan) -> dict[CheckpointRef, int]:
    """Evaluations an image of each checkpoint that the plan calls, guidance included, in the order of first use.

    These are all the networks it needs: a stage too short for a step, or a guide that never acts, is not there.
    Raises `SpecError` for a plan that cannot be run: see `check`.
    """
    spent = Counter[CheckpointRef]()
    for (checkpoint, rows), count in calls_of(plan).items():
        spent[checkpoint] += rows * count
    return dict(spent)


def noises_of(plan: SamplingPlan) -> int:
    """Draws of noise an image: where it starts, and a stochastic sampler's one for every further step (the last has
    none, where it lands on a clean image)."""
    return plan.steps if stochastic(plan.sampler, plan.eta) else 1


def check(plan: SamplingPlan) -> None:
    """Raise `SpecError` for an unknown sampler, steps or a start that it or the schedule does not allow, or CFG++ with
    a sampler whose steps are not DDIM's."""
    planned_evaluations(plan.sampler, pairs_of(plan), plan.guidance, plan.schedule)
    if plan.guidance.mode == "cfg++" and not SAMPLERS[plan.sampler].ddim_steps(plan.eta):
        raise SpecError(
            f"guidance mode 'cfg++' is defined for the step of DDIM: not for '{plan.sampler}' at eta {plan.eta:g}. "
            "Use sampler 'ddim' at eta 0 or 'euler', or mode 'cfg'."
        )


def guided(
    plan: SamplingPlan, denoisers: Mapping[CheckpointRef, Denoiser], context: Tensor, null_context: Tensor
) -> Denoise:
    """The D(x, t) that the plan's sampler calls: each stage's checkpoint on its timesteps, guided.

    `denoisers`: one for each checkpoint of `evaluations_of`. Contexts as in `guide`.
    """
    checkpoint_at, pairs = serving(plan), pairs_of(plan)
    weak = denoisers.get(plan.guidance.guide) if plan.guidance.guide else None
    stages = {
        checkpoint: guide(denoisers[checkpoint], context, null_context, plan.guidance, weak, pairs)
        for checkpoint in dict.fromkeys(checkpoint_at.values())
    }
    return lambda x, t: stages[checkpoint_at[t]](x, t)
