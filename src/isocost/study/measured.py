"""What checkpoints take on a machine, measured once: STORE/measured/KEY.json, and with that the seconds of every cell.

A sweep knows what its own cells took, with all that it did at the same time. `isocost measure` times one checkpoint
after the other, in a process of its own with nothing beside it, on the device and at the batch that will serve.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isocost.allocator import keep_freed_memory
from isocost.diffusion.plans import evaluations_of
from isocost.environment import environment
from isocost.errors import IsocostError
from isocost.sampling.checkpoints import Traits
from isocost.sampling.engine import require_device
from isocost.sampling.folders import is_diffusers, open_folder
from isocost.sampling.generate import Pipeline
from isocost.sampling.instruments import PeakMemory, device_name
from isocost.sampling.timing import measure, work_of
from isocost.specs import CheckpointRef, EngineSpec, Guidance, SamplingPlan, Stage, digest_of
from isocost.study.artifacts import Progress, silent
from isocost.study.checkpoints import find, pipeline_of
from isocost.study.grid import Scorer
from isocost.study.pipelines import load_scorer
from isocost.study.seconds import Measured, read
from isocost.study.store import Store, write_atomically

if TYPE_CHECKING:
    from isocost.study.run import Trained

STEPS_OF_WHOLE_PLANS = 4


# --- measuring ---


@dataclass(frozen=True)
class Target:
    """A checkpoint to measure, and where it lies."""

    member: str
    checkpoint: CheckpointRef
    folder: Path


def target_of(path: Path, member: str | None = None) -> tuple[Target, Store | None]:
    """The checkpoint that a user points at (see `checkpoints.find`; or a diffusers folder), and the store it is in."""
    if is_diffusers(path):
        return Target(path.name, open_folder(path).ref, path), None
    found = find(path, member)
    checkpoint = found.checkpoint
    return Target(checkpoint.spec.model.name, checkpoint.ref("ema"), checkpoint.folder), found.store


def targets_of(trained: Trained) -> list[Target]:
    """The checkpoints that a study's cells call, those of a training curve aside."""
    plans = [cell.plan for cell in trained.cells if not cell.curve]
    called = {ref.content_digest for plan in plans for ref in evaluations_of(plan)}
    return [Target(one.name, one.ref, one.folder) for one in trained.checkpoints if one.ref.content_digest in called]


def measure_all(
    targets: Sequence[Target],
    engines: Sequence[EngineSpec],
    store: Store | None = None,
    scorers: Sequence[Scorer] = (),
    repeats: int = 5,
    again: bool = False,
    progress: Progress = silent,
) -> list[Measured]:
    """What each checkpoint takes under each engine: as `store` has it, or else measured now and kept there.

    Each is measured in a process of its own, as a sweep's worker is one, and one after the other. `scorers`: CLIPs that
    choose in best-of-n, which are timed at the engine's batch too.

    Raises:
        SpecError: the engine's device is not there, or a lean engine does not know the network.
        IsocostError: a process died, most likely out of memory.
    """
    pairs = [(target, engine) for engine in engines for target in targets]
    for engine in engines:
        require_device(engine)
    found = []
    for place, (target, engine) in enumerate(pairs):
        progress("measure", place, len(pairs), f"{target.member}, batch {engine.batch}")
        path = store and _path(store, target.checkpoint, device_name(engine.device), engine)
        known = read(path) if path and path.is_file() and not again else None
        if known and {f"choose/{scorer.digest}" for scorer in scorers} <= set(known.seconds):
            found.append(known)
            continue
        found.append(_in_own_process(target, engine, scorers, repeats))
        if path:
            write_atomically(path, found[-1].model_dump_json(indent=1).encode())
    progress("measure", 1, 1, "")
    return found


def _path(store: Store, checkpoint: CheckpointRef, device: str, engine: EngineSpec) -> Path:
    return store.path / "measured" / f"{digest_of([checkpoint.canonical(), device, engine.canonical()])}.json"


def _in_own_process(target: Target, engine: EngineSpec, scorers: Sequence[Scorer], repeats: int) -> Measured:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=keep_freed_memory) as pool:
        try:
            return pool.submit(measure_one, target, engine, scorers, repeats).result()
        except BrokenProcessPool:
            raise IsocostError(
                f"measuring {target.member} at batch {engine.batch}: its process died (out of memory?). "
                "Leave that batch out."
            ) from None


def measure_one(target: Target, engine: EngineSpec, scorers: Sequence[Scorer] = (), repeats: int = 5) -> Measured:
    """In a process that did nothing before: its memory's growth is then the checkpoint's."""
    memory = PeakMemory(engine.device)
    pipeline, traits = _pipeline(target.folder, engine)
    more = {name: run for scorer in scorers for name, run in _choosing(scorer, pipeline, engine.batch).items()}
    timing = measure(pipeline, _plans(target.checkpoint, traits), engine, repeats, more)
    return Measured(
        member=target.member,
        checkpoint=target.checkpoint,
        device=device_name(engine.device),
        engine=engine,
        seconds=timing.seconds,
        joules=timing.joules,
        memory=memory(),
        wholes=timing.wholes,
        repeats=repeats,
        environment=environment(),
    )


def _pipeline(folder: Path, engine: EngineSpec) -> tuple[Pipeline, Traits]:
    if is_diffusers(folder):
        opened = open_folder(folder)
        return opened.pipeline(engine), opened.traits
    found = find(folder)
    return pipeline_of(found, engine), Traits.of(found.checkpoint.spec)


def _plans(checkpoint: CheckpointRef, traits: Traits) -> list[SamplingPlan]:
    """One without guidance, and one with it unless the checkpoint was never trained on the empty prompt; of one that
    embeds guidance the latter."""
    plain, guided = Guidance(), Guidance(scale=2.0, mode="embedded" if traits.embeds_guidance else "cfg")
    how = [guided] if traits.embeds_guidance else [plain] if traits.caption_dropout == 0 else [plain, guided]
    return [
        SamplingPlan(
            stages=(Stage(checkpoint=checkpoint),),
            schedule=traits.schedule,
            prediction=traits.prediction,
            sampler="ddim",
            steps=STEPS_OF_WHOLE_PLANS,
            guidance=guidance,
        )
        for guidance in how
    ]


def _choosing(scorer: Scorer, pipeline: Pipeline, batch: int) -> dict[str, Callable[[], object]]:
    """What best-of-n does besides sampling: captions once an image, and each candidate once."""
    clip = load_scorer(scorer).clip
    images = pipeline.autoencoder.decode(np.zeros((batch, *pipeline.latent_shape), np.float32))
    return {
        f"caption/{scorer.digest}": lambda: clip.text_features(["a red circle"] * batch, normalised=True),
        f"choose/{scorer.digest}": lambda: clip.image_features(images, normalised=True),
    }


# --- what a store has, and what its cells take ---


def work(plan: SamplingPlan) -> dict[str, Any]:
    """What the expansion says of a cell's plan, for `cell_seconds`: its network calls, and its draws of noise."""
    calls, noises = work_of(plan)
    return {"calls": calls, "noises": noises, "chosen_by": plan.best_of.scorer if plan.best_of else ""}
