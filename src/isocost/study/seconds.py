"""Seconds an image of every cell: from what `isocost measure` left in a store, else as the sweep itself took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

from isocost.errors import DataError, SpecError
from isocost.sampling.prices import Whole, image_price
from isocost.specs import CheckpointRef, EngineSpec, Spec
from isocost.study.store import Store

SWEEPS_OWN = "as the sweep itself took, with its own load on the machine"
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
