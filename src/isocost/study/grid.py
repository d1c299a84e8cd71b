"""Which cells a study has: the plans of its grids on each of its checkpoints."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from isocost.diffusion.guidance import evaluations_per_call
from isocost.diffusion.noise import NOISE_VERSION
from isocost.diffusion.plans import stitched
from isocost.diffusion.samplers import calls
from isocost.diffusion.schedule import timestep_pairs
from isocost.errors import SpecError, lookup
from isocost.sampling.checkpoints import Traits
from isocost.sampling.folders import DiffusersFolder
from isocost.specs import (
    DISTILLED,
    BestOf,
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
from isocost.training.state import Checkpoint


@dataclass(frozen=True)
class Run:
    """One training run of a study: a member at a seed."""

    model: ModelSpec
    seed: int
    spec: TrainSpec


@dataclass(frozen=True)
class StudyCheckpoint:
    """A checkpoint that a study samples from: one that a training run kept, or one that was given.

    name: the member's (`c16`), or the given folder's. model: what it is a checkpoint of. seed: None where given.
    folder: where it lies. autoencoder, text_encoder: references to load those by that it was trained with.
    trained: as its training kept it; None where given.
    undistilled: whether it is what a member was before the study distilled it.
    """

    name: str
    model: ModelSpec | DiffusersFolder
    seed: int | None
    ref: CheckpointRef
    traits: Traits
    folder: Path
    autoencoder: str
    text_encoder: str
    trained: Checkpoint | None = field(default=None, compare=False)
    undistilled: bool = False

    @property
    def width(self) -> int:
        """Channels of the UNet's first level."""
        return self.model.width


class Scorer(NamedTuple):
    """The CLIP that chooses in best-of-n: a reference to load it by, and its content digest."""

    reference: str
    digest: str


@dataclass(frozen=True)
class Cell:
    """One sample set of a study: a plan and what it calls.

    checkpoints: of the plan's stages, in order: one, usually. guide: of autoguidance. scorer: of best-of-n. seed: of
    training. curve: a point of quality against training compute.
    """

    checkpoints: tuple[StudyCheckpoint, ...]
    guide: StudyCheckpoint | None
    scorer: Scorer | None
    seed: int
    curve: bool
    key: SampleKey

    @functools.cached_property
    def sample_key(self) -> str:
        """The key's digest, which takes a while to come by."""
        return self.key.digest

    @property
    def plan(self) -> SamplingPlan:
        return self.key.plan

    @property
    def member(self) -> str:
        """`c16`; of a stitched plan `c8+c24`."""
        return "+".join(checkpoint.name for checkpoint in self.checkpoints)

    @property
    def checkpoint(self) -> CheckpointRef:
        """The checkpoint that finishes the image."""
        return self.checkpoints[-1].ref

    @property
    def guided(self) -> bool:
        return self.plan.guidance.active

    @property
    def work(self) -> int:
        """About what an image costs, in a unit of its own: which cells to begin with, so that the end is even."""
        candidates = self.plan.best_of.n if self.plan.best_of else 1
        width = max(checkpoint.width for checkpoint in self.checkpoints)
        return candidates * width**2 * self.plan.steps * (self.guided + 1)

    @property
    def label(self) -> str:
        """What a person calls this cell: `c16 ddim 8 steps x2`."""
        return cell_name(columns(self))


def runs(study: StudySpec, data: DataSpec, starts: Mapping[tuple[str, int], CheckpointRef] | None = None) -> list[Run]:
    """Every member at every training seed; `starts`: what those start from that do not start from nothing."""
    starts = starts or {}
    if study.train is None:
        return []
    settings = {name: getattr(study.train, name) for name in type(study.train).model_fields}
    return [
        Run(
            model,
            seed,
            _train_spec(model, data, seed, starts.get((model.name, seed)), settings),
        )
        for model in study.members
        for seed in study.seeds
    ]


def _train_spec(
    model: ModelSpec, data: DataSpec, seed: int, start: CheckpointRef | None, settings: dict[str, Any]
) -> TrainSpec:
    """A student learns from the checkpoint that it starts from."""
    teacher = start if settings["objective"] in DISTILLED else None
    return TrainSpec(model=model, data=data, seed=seed, start_from=start, teacher=teacher, **settings)


# --- what a grid asks for, of the checkpoints that there are ---


def expand(
    study: StudySpec, checkpoints: Sequence[StudyCheckpoint], scorers: Mapping[str, Scorer], promptset: PromptSet
) -> list[Cell]:
    """All cells, each once: grids on the final checkpoints, the curve's plans on every one that training kept.

    Args:
        checkpoints: of one member and seed by images seen; the last is the final one.
        scorers: by what a grid calls it, for every grid with best-of-n.

    Raises:
        SpecError: a grid names a member that there is not.
    """
    cells: dict[tuple[str, bool], Cell] = {}
    for seed in study.seeds:
        of_seed = [checkpoint for checkpoint in checkpoints if checkpoint.seed in (seed, None)]
        final = {checkpoint.name: checkpoint for checkpoint in of_seed if not checkpoint.undistilled}
        before = {checkpoint.name: checkpoint for checkpoint in of_seed if checkpoint.undistilled}
        grids = [grid for grid in study.grids if _is_of(grid, seed)]
        of_grid = [(grid, before if grid.undistilled else final) for grid in grids]
        wanted = [(grid, available, list(available), False) for grid, available in of_grid]
        if study.curve is not None and _is_of(study.curve, seed):
            kept = [one for one in of_seed if one.seed is not None and not one.undistilled]
            wanted += [(study.curve, final | {one.name: one}, [one.name], True) for one in kept]
        for grid, available, names, curve in wanted:
            for plan, serving, guide in plans(grid, available, names, scorers):
                key = SampleKey(
                    plan=plan,
                    promptset=promptset,
                    latent_shape=serving[0].traits.latent_shape,
                    noise_version=NOISE_VERSION,
                    engine=study.engine,
                )
                scorer = scorers[grid.scorer] if plan.best_of else None
                cell = Cell(serving, guide, scorer, seed, curve, key)
                cells.setdefault((cell.sample_key, curve), cell)
    return list(cells.values())


def _is_of(grid: Grid, seed: int) -> bool:
    return grid.seeds is None or seed in grid.seeds


class Planned(NamedTuple):
    """A plan, the checkpoints of its stages, and that of its guide."""

    plan: SamplingPlan
    serving: tuple[StudyCheckpoint, ...]
    guide: StudyCheckpoint | None


def plans(
    grid: Grid, available: Mapping[str, StudyCheckpoint], names: Sequence[str], scorers: Mapping[str, Scorer]
) -> Iterator[Planned]:
    """The plans of a grid; of `available` (member -> checkpoint) those of `names`, where the grid names none itself."""
    guide = lookup(available, grid.guide, "member") if grid.guide else None
    members = [lookup(available, name, "member") for name in _named(grid, names)]
    for steps in grid.steps:
        for stages, serving in _line_ups(grid, members, steps):
            for sampler, scale, n in itertools.product(grid.samplers, grid.guidance, grid.best_of):
                best_of = BestOf(n=n, scorer=scorers[grid.scorer].digest) if n > 1 else None
                plan = _plan(grid, stages, serving[-1], guide, sampler, steps, scale, best_of)
                yield Planned(plan, serving, guide if plan.guidance.guide else None)


def _named(grid: Grid, names: Sequence[str]) -> Sequence[str]:
    """The members that a grid is of."""
    return grid.named or [name for name in names if name != grid.guide]


LineUp = tuple[tuple[Stage, ...], tuple[StudyCheckpoint, ...]]
"""Stages, and the checkpoint of each."""


def _line_ups(grid: Grid, members: Sequence[StudyCheckpoint], steps: int) -> Iterator[LineUp]:
    """What serves the steps: each member alone, or both of a stitch, whose shares are rounded to whole steps."""
    if grid.stitch is None:
        yield from (((Stage(checkpoint=member.ref),), (member,)) for member in members)
        return
    first, then = members
    for served in dict.fromkeys(int(share * steps + 0.5) for share in grid.stitch.shares):
        serving = (first,) * (served > 0) + (then,) * (served < steps)
        yield stitched(first.ref, then.ref, served / steps), serving


def _plan(
    grid: Grid,
    stages: tuple[Stage, ...],
    last: StudyCheckpoint,
    guide: StudyCheckpoint | None,
    sampler: str,
    steps: int,
    scale: float,
    best_of: BestOf | None,
) -> SamplingPlan:
    """`last`: the checkpoint that finishes, whose schedule all of one plan share."""
    spacing, offset = grid.spacing or "trailing", 1
    if isinstance(last.model, DiffusersFolder):
        spacing, offset = grid.spacing or last.model.spacing, last.model.steps_offset
    pairs = timestep_pairs(last.traits.schedule, steps, spacing, offset)
    return SamplingPlan(
        stages=stages,
        schedule=last.traits.schedule,
        prediction=last.traits.prediction,
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        steps_offset=offset,
        guidance=_guidance(grid, scale, guide, lambda: calls(sampler, pairs), last.traits.embeds_guidance),
        eta=grid.eta if sampler == "ddim" else 0.0,
        variance=grid.variance if sampler == "ddpm" else "small",
        best_of=best_of,
    )


def _guidance(
    grid: Grid, scale: float, guide: StudyCheckpoint | None, timesteps: Callable[[], Sequence[int]], embeds: bool
) -> Guidance:
    """The grid's guidance at a scale, or none where it never acts: equal images are to have one key.

    embeds: whether the checkpoint takes the scale as an input, which is then how it has classifier-free guidance.
    """
    if embeds and grid.mode in ("cfg", "embedded"):
        if grid.interval is not None:
            raise SpecError("interval: a scale that a checkpoint embeds is in every evaluation: leave it out.")
        return Guidance(scale=scale, mode="embedded")
    asked = Guidance(scale=scale, mode=grid.mode, interval=grid.interval, guide=guide.ref if guide else None)
    if asked.interval is None:
        return asked if asked.active else Guidance()
    acts = [evaluations_per_call(asked, t) > 1 for t in timesteps()]
    if not any(acts):
        return Guidance()
    return asked.model_copy(update={"interval": None}) if all(acts) else asked


def check_names(study: StudySpec) -> None:
    """Raise `SpecError` for two members of one name, a grid that names one that is not there, or is of none, and a
    curve of some members only."""
    names = [model.name for model in study.members] + [Path(path).name for path in study.checkpoints]
    if len(set(names)) != len(names):
        raise SpecError(f"members: {', '.join(names)}: each needs a width, or a folder's name, of its own.")
    for grid in (*study.grids, *([study.curve] if study.curve else [])):
        for name in (*grid.named, *([grid.guide] if grid.guide else [])):
            lookup(dict.fromkeys(names), name, "member")
        if not _named(grid, names):
            raise SpecError(f"guide '{grid.guide}' is the study's only member: it has none to guide.")
    if study.curve is not None and study.curve.named:
        raise SpecError("curve: it is of every checkpoint that training keeps: leave `members` and `stitch` out.")


# --- how cells are told apart ---


def run_columns(run: Run) -> dict[str, Any]:
    """What `status` says of a training run."""
    return {"member": run.model.name, "seed": run.seed, "digest": run.spec.digest, "images": run.spec.images}


def columns(cell: Cell) -> dict[str, Any]:
    """What the results table says of a cell, but its costs and scores.

    From `stages` (who serves which share of the steps) to `scorer` they are "cfg", "" and 1 for a plain cell. `batch`
    is below the study's where memory ran out.
    """
    plan = cell.plan
    interval = plan.guidance.interval
    return {
        "sample_key": cell.sample_key,
        "member": cell.member,
        "width": max(checkpoint.width for checkpoint in cell.checkpoints),
        "seed": cell.seed,
        "images_seen": max(checkpoint.ref.images_seen for checkpoint in cell.checkpoints),
        "sampler": plan.sampler,
        "eta": plan.eta,
        "variance": plan.variance,
        "spacing": plan.spacing,
        "steps": plan.steps,
        "guidance_scale": plan.guidance.scale,
        "curve": cell.curve,
        "checkpoint": "+".join(checkpoint.ref.content_digest for checkpoint in cell.checkpoints),
        "stages": _stages(cell),
        "guidance_mode": plan.guidance.mode,
        "guidance_interval": f"{interval[0]}-{interval[1]}" if interval else "",
        "guide": cell.guide.name if cell.guide else "",
        "best_of": plan.best_of.n if plan.best_of else 1,
        "scorer": Path(cell.scorer.reference).name if cell.scorer else "",
        "batch": cell.key.engine.batch,
        "objective": cell.checkpoints[-1].traits.objective,
    }


def _stages(cell: Cell) -> str:
    """`c8 for 50% of the steps, then c24`; "" for a single checkpoint."""
    if len(cell.checkpoints) == 1:
        return ""
    first, then = cell.checkpoints
    return f"{first.name} for {100 * cell.plan.stages[0].until:.3g}% of the steps, then {then.name}"


def cell_name(row: Mapping[str, Any]) -> str:
    """What a person calls a cell of the expansion: `c16 ddim 8 steps x2`."""
    return f"{row.get('stages') or row['member']} {plan_name(row)}"


def plan_name(row: Mapping[str, Any]) -> str:
    """The same without whose: `ddim 8 steps x2`, `ddim 8 steps x0.6 cfg++ at 200-800, best of 4`."""
    mode = row.get("guidance_mode", "cfg")
    how = f" by {row['guide']}" if mode == "autoguidance" else f" {mode}" if mode != "cfg" else ""
    when = f" at {row['guidance_interval']}" if row.get("guidance_interval") else ""
    chosen = f", best of {row['best_of']}" if row.get("best_of", 1) > 1 else ""
    return f"{row['sampler']} {row['steps']} steps x{row['guidance_scale']:g}{how}{when}{chosen}"
