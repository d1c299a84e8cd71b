"""What checkpoints take on a machine, measured once: STORE/measured/KEY.json, and with that the seconds of every cell.

A sweep knows what its own cells took, with all that it did at the same time. `isocost measure` times one checkpoint
after the other, in a process of its own with nothing beside it, on the device and at the batch that will serve.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from isocost.allocator import keep_freed_memory
from isocost.diffusion.plans import evaluations_of
from isocost.environment import environment
from isocost.errors import DataError, IsocostError, SpecError
from isocost.sampling.checkpoints import Traits
from isocost.sampling.engine import require_device
from isocost.sampling.folders import is_diffusers, open_folder
from isocost.sampling.generate import Pipeline
from isocost.sampling.instruments import PeakMemory, device_name
from isocost.sampling.timing import Whole, image_price, measure, work_of
from isocost.specs import CheckpointRef, EngineSpec, Guidance, SamplingPlan, Spec, Stage, digest_of
from isocost.study.artifacts import Progress, silent
from isocost.study.checkpoints import find, pipeline_of
from isocost.study.grid import Scorer
from isocost.study.pipelines import load_scorer
from isocost.study.store import Store, write_atomically

if TYPE_CHECKING:
    from isocost.study.run import Trained

SWEEPS_OWN = "as the sweep itself took, with its own load on the machine"
STEPS_OF_WHOLE_PLANS = 4
UNKNOWN_CALLS = (("of cells that were written before calls were counted", 1, 1),)


class Measured(Spec):
    """What one checkpoint takes under one engine on one device.

    seconds, joules: of each part of an image (`sampling.timing.Parts`); joules are the GPU's, None where NVML does not
    count them. memory: bytes at most while a batch is made: of tensors on a GPU, of the process on a processor (without
    its libraries, but with the compiler where the engine is compiled); None where the system does not tell.
    """

    member: str
    checkpoint: CheckpointRef
    device: str
    engine: EngineSpec
    seconds: dict[str, float]
    joules: dict[str, float] | None
    memory: int | None
    wholes: tuple[Whole, ...]
    repeats: int
    environment: dict[str, Any]

    @property
    def setting(self) -> tuple[str, EngineSpec]:
        return self.device, self.engine

    @property
    def words(self) -> str:
        return in_words(*self.setting)

    def columns(self) -> list[dict[str, Any]]:
        """A row for every whole plan, as `isocost measure` prints them: milliseconds and joules an image."""
        milliseconds = {name: 1000 * value for name, value in self.seconds.items()}
        return [
            {
                "member": self.member,
                "call": milliseconds.get("call/1"),
                "guided call": milliseconds.get("call/2"),
                "text": milliseconds["text"],
                "decode": milliseconds["decode"],
                "plan": f"DDIM-{plan.steps}, guidance {plan.guidance:g}",
                "as run": 1000 * plan.measured,
                "sum of parts": 1000 * plan.modelled,
                "error, %": 100 * plan.error,
                "joules": self._joules(plan),
                "peak MiB": None if self.memory is None else self.memory / 2**20,
            }
            for plan in self.wholes
        ]

    def _joules(self, plan: Whole) -> float | None:
        rows = 1 if plan.guidance == 1 else 2
        return image_price({"": self.joules}, [("", rows, plan.steps)], noises=1) if self.joules else None


def in_words(device: str, engine: EngineSpec) -> str:
    """`AMD EPYC, fp32, batch 64, 1 thread`: what seconds were measured on."""
    words = [device, engine.dtype, f"batch {engine.batch}"]
    if engine.device == "cpu":
        words.append("1 thread" if engine.threads == 1 else f"{engine.threads} threads")
    words += ["compiled"] * engine.compiled + ["diffusers' network"] * (engine.network == "diffusers")
    return ", ".join(words)


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
    """One without guidance, and one with it unless the checkpoint was never trained on the empty prompt."""
    return [
        SamplingPlan(
            stages=(Stage(checkpoint=checkpoint),),
            schedule=traits.schedule,
            prediction=traits.prediction,
            sampler="ddim",
            steps=STEPS_OF_WHOLE_PLANS,
            guidance=Guidance(scale=scale),
        )
        for scale in ([1.0] if traits.caption_dropout == 0 else [1.0, 2.0])
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


def read(path: Path) -> Measured:
    """Raises `DataError` naming the file when it is corrupt."""
    try:
        return Measured.model_validate_json(path.read_text())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: corrupt measurement ({reason}). Delete it and run `isocost measure` again.") from None


def measured_in(store: Store) -> list[Measured]:
    """All that was measured in a store, in order of file name."""
    return [read(path) for path in sorted((store.path / "measured").glob("*.json"))]


class Wanted(Spec):
    """Which measurements to go by, of several in a store. None: whichever are nearest to the study's own engine.

    device: `cpu`, `cuda`, or a part of a device's name.
    """

    device: str | None = None
    dtype: Literal["fp32", "bf16"] | None = None
    batch: int | None = None

    def fits(self, device: str, engine: EngineSpec) -> bool:
        return (
            (self.device is None or self.device == engine.device or self.device.lower() in device.lower())
            and self.dtype in (None, engine.dtype)
            and self.batch in (None, engine.batch)
        )


@dataclass(frozen=True)
class CellSeconds:
    """Seconds an image by sample key (NaN: not known), and what they are."""

    by_key: dict[str, float]
    source: str


def cell_seconds(store: Store, cells: Iterable[Mapping[str, Any]], wanted: Wanted | None = None) -> CellSeconds:
    """Seconds an image of a study's cells: from measured parts where the store has those, else as the sweep took.

    `cells`: those of the store's expansion. All are by one device and engine: seconds of two are never mixed. Cells of
    a training curve, whose checkpoints are not measured, are NaN then.

    Raises:
        SpecError: nothing that is `wanted` was measured, or not for all checkpoints.
    """
    wanted, cells = wanted or Wanted(), list(cells)
    settings: dict[tuple[str, EngineSpec], dict[str, Measured]] = {}
    for record in measured_in(store):
        settings.setdefault(record.setting, {})[record.checkpoint.content_digest] = record
    fitting = {setting: parts for setting, parts in settings.items() if wanted.fits(*setting)}
    needed = {who for cell in cells if not cell["curve"] for who, *_ in cell.get("calls", UNKNOWN_CALLS)}
    complete = [setting for setting, parts in fitting.items() if needed <= set(parts)]
    if not complete:
        if wanted != Wanted():
            known = "; ".join(sorted(in_words(*setting) for setting in fitting or settings)) or "nothing"
            lacking = "not every checkpoint was so measured" if fitting else "nothing was so measured"
            raise SpecError(f"{store.path}: {lacking} (measured: {known}). `isocost measure` measures what is missing.")
        lacking = " (`isocost measure` was not run for every checkpoint)" if settings else ""
        return CellSeconds(_as_swept(store, cells), SWEEPS_OWN + lacking)
    study = store.study().engine
    nearest = min(complete, key=lambda setting: (_differences(setting[1], study), in_words(*setting)))
    parts = {who: record.seconds for who, record in fitting[nearest].items()}
    seconds = {cell["sample_key"]: _seconds(cell, parts) for cell in cells}
    return CellSeconds(seconds, f"measured on {in_words(*nearest)}")


def _seconds(cell: Mapping[str, Any], parts: Mapping[str, Mapping[str, float]]) -> float:
    """NaN where a part was not measured."""
    try:
        chosen, candidates = cell["chosen_by"], cell["best_of"]
        first = parts[cell["calls"][0][0]]
        choice = first[f"caption/{chosen}"] + candidates * first[f"choose/{chosen}"] if chosen else 0.0
        return image_price(parts, cell["calls"], cell["noises"], candidates) + choice
    except KeyError:
        return float("nan")


def _as_swept(store: Store, cells: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    costs, keys = store.costs(), {cell["sample_key"] for cell in cells}
    return {key: median(seconds for _, seconds in costs[key]) for key in sorted(keys & set(costs))}


def _differences(engine: EngineSpec, study: EngineSpec) -> int:
    fields = cast(Mapping[str, Any], EngineSpec.model_fields)
    return sum(getattr(engine, name) != getattr(study, name) for name in fields)
