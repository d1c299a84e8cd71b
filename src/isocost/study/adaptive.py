"""Adaptive search in a study: its cells as arms, images of the selection half as the search asks for them.

The search sees the selection half of the prompts alone, in sample sets of their own. Its finalists, the cells of the
frontier that it finds, then get the report half: fresh prompts and fresh noise, which nothing was chosen by. An image
is a function of its prompt, so the chunks of both halves are put together to those of the whole cell: scores, table and
report of the finalists are, to the bit, what full search gives for these cells; a later full sweep goes on from them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from isocost.data.prompts import PromptList
from isocost.errors import SpecError, lookup
from isocost.scoring.measures import Measure
from isocost.scoring.uncertainty import Estimate, centred, standard_error
from isocost.specs import Split
from isocost.study.artifacts import Progress, silent
from isocost.study.grid import Cell, columns
from isocost.study.images import chunks_needed
from isocost.study.scores import Judge, cell_features
from isocost.study.search import Arm, SearchResult, Settings, search
from isocost.study.store import Store, StoredChunk

UNITS = {"paper": "paper_cost", "gflops": "gflops_per_image"}  # what is known of a cell before its images are made
HALVES: tuple[Split, Split] = ("selection", "report")

Make = Callable[[Sequence[Cell], PromptList, int], Sequence[Cell]]
"""Have the first n images of cells made, on these prompts; the cells as they were made (`images.make_chunks`)."""


@dataclass(frozen=True)
class Candidate:
    """An arm: a plan of one member, as the cells of all its training seeds."""

    cells: tuple[Cell, ...]
    arm: Arm


def candidates(cells: Sequence[Cell], rows: Sequence[Mapping[str, Any]], unit: str) -> list[Candidate]:
    """The arms of a study: its cells but those of the training curve.

    `rows`: what the expansion says of each cell, costs included. Raises `SpecError` for a cell whose cost in `unit` is
    not known.
    """
    column = lookup(UNITS, unit, "cost unit of a search")
    plans: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
    for cell, row in zip(cells, rows, strict=True):
        if not cell.curve:
            plans.setdefault(_but(cell, "seed"), []).append((cell, row))
    lowest = min((row["guidance_scale"] for row in rows if row["guidance_scale"] > 0), default=1.0)
    found = []
    for of_seeds in plans.values():
        cell, row = of_seeds[0]
        if row[column] is None:
            raise SpecError(f"{cell.label}: its cost in {unit} is not known: search by another --unit.")
        place = (math.log(cell.plan.steps), math.log(max(cell.plan.guidance.scale, lowest / 2)))
        arm = Arm(cell.key.digest, _but(cell, "seed", "steps", "guidance_scale"), place, float(row[column]))
        found.append(Candidate(tuple(each for each, _ in of_seeds), arm))
    return found


def _but(cell: Cell, *names: str) -> str:
    """What tells a cell from others, but what `names` say and what follows from the seed."""
    left_out = {"sample_key", "checkpoint", "batch", *names}
    return json.dumps({name: value for name, value in columns(cell).items() if name not in left_out}, sort_keys=True)


def half_of(cell: Cell, split: Split) -> Cell:
    """The same cell on one half of its prompts."""
    promptset = cell.key.promptset.model_copy(update={"split": split})
    return replace(cell, key=cell.key.model_copy(update={"promptset": promptset}))


@dataclass(eq=False)
class Halves:
    """The images of a search, and of its finalists: `Images` of the selection half, made in the store."""

    found: Sequence[Candidate]
    store: Store
    judge: Judge
    prompts: PromptList
    make_images: Make
    chunk: int
    _made: dict[str, Cell] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.judge.rows("selection"))

    @property
    def measure(self) -> Measure:
        """The metric that the study chooses by."""
        evaluation = self.judge.evaluation
        return self.judge.measures[evaluation.metrics.index(evaluation.select_by)]

    def make(self, counts: Mapping[int, int]) -> None:
        for count in sorted(set(counts.values())):
            self.have([cell for arm, n in counts.items() if n == count for cell in self.found[arm].cells], count)

    def have(self, cells: Sequence[Cell], count: int, split: Split = "selection") -> list[Cell]:
        """The same cells on one half, with so many of its images made."""
        halves = [half_of(cell, split) for cell in cells]
        made = list(self.make_images(halves, self.prompts.of_half(split), count))
        self._made |= {half.key.digest: cell for half, cell in zip(halves, made, strict=True)}
        return made

    def estimate(self, arm: int, rows: slice) -> Estimate:
        """Mean over training seeds."""
        return mean_of([self._estimate(cell, rows) for cell in self.found[arm].cells])

    def _estimate(self, cell: Cell, rows: slice) -> Estimate:
        key = self._made[half_of(cell, "selection").key.digest].key
        names = [column.name for column in self.measure.columns()]
        features = cell_features(self.store, key.digest, names, chunks_needed(rows.stop, key.engine), rows.stop)
        places = self.judge.rows("selection")[rows]
        asked_for = {name: values[rows] for name, values in features.items()}
        return self.judge.estimates_at(self.measure, asked_for, places)[self.measure.metric]


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of estimates on the same images, of one reference: values, biases and influence values."""
    first = estimates[0]
    values = [one.influence for one in estimates if one.influence is not None]
    if len(estimates) == 1 or not values:
        return first
    biases = [one.bias for one in estimates if one.bias is not None]
    influence = centred(np.mean(values, axis=0))
    return replace(
        first,
        value=float(np.mean([one.value for one in estimates])),
        bias=float(np.mean(biases)) if len(biases) == len(estimates) else None,
        influence=influence,
        stderr=standard_error(influence),
        reference_influence=None,
    )


# --- the search of a study ---


def finalists(
    cells: Sequence[Cell],
    rows: Sequence[Mapping[str, Any]],
    store: Store,
    judge: Judge,
    prompts: PromptList,
    make_images: Make,
    settings: Settings,
    progress: Progress = silent,
) -> list[Cell]:
    """Search a study's cells by its `select_by`, and have the report half of the finalists made.

    `rows`: as for `candidates`. What was found, or is so far, lies in the store's search.json.

    Returns:
        The cells to be scored: the finalists, and those of the training curve.

    Raises:
        SpecError: no cells, a cost that is not known, or a metric without influence values.
    """
    found = candidates(cells, rows, settings.unit)
    halves = Halves(found, store, judge, prompts, make_images, store.study().engine.batch)
    store.write_expansion(
        halves=[{"sample_key": half_of(cell, split).key.digest} for cell in cells for split in HALVES]
    )

    def note(so_far: SearchResult, finished: bool = False) -> None:
        store.write_search(_record(so_far, found, halves, settings, finished))
        sure = min(1 - so_far.doubt, settings.confidence)
        progress("search", sure, settings.confidence, f"{so_far.images:,} images, doubt {so_far.doubt:.2f}")

    result = search([candidate.arm for candidate in found], halves, settings, note)
    chosen = [cell for number in result.frontier for cell in found[number].cells]
    selection = halves.have(chosen, halves.total)
    report = halves.have(chosen, len(judge.rows("report")), "report")
    for whole, *parts in zip(chosen, selection, report, strict=True):
        put_together(store, whole, parts, prompts, judge.evaluation.images)
    note(result, finished=True)
    return [*chosen, *(cell for cell in cells if cell.curve)]


def put_together(store: Store, whole: Cell, halves: Sequence[Cell], prompts: PromptList, images: int) -> None:
    """Write the chunks of a cell from those of its halves, where these were made at its batch and hold all of them."""
    engine, digest = whole.key.engine, whole.key.digest
    if any(half.key.engine != engine for half in halves):
        return
    stored = {half.key.promptset.split: _joined(store, half) for half in halves}
    taken: Counter[str] = Counter()
    for index in range(chunks_needed(images, engine)):
        rows = []
        for place in range(index * engine.batch, (index + 1) * engine.batch):
            split = prompts.half(place)
            rows.append((stored[split], taken[split]))
            taken[split] += 1
        if all(row < part.count for part, row in rows) and not store.has_chunk(digest, index):
            store.write_sample_key(whole.key)
            store.write_chunk(digest, index, _picked(rows))


def _joined(store: Store, half: Cell) -> StoredChunk:
    """All chunks of a half as one."""
    digest = half.key.digest
    there = itertools.takewhile(lambda index: store.has_chunk(digest, index), itertools.count())
    parts = [store.read_chunk(digest, index) for index in there]
    images = [part.images for part in parts if part.images is not None]
    return StoredChunk(
        features={name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features},
        evaluations=parts[0].evaluations,
        seconds=float(np.mean([part.seconds for part in parts])),
        count=sum(part.count for part in parts),
        images=np.concatenate(images) if len(images) == len(parts) else None,
    )


def _picked(rows: Sequence[tuple[StoredChunk, int]]) -> StoredChunk:
    """A chunk of the images at (where, row), in order."""
    first, _ = rows[0]
    images = [part.images[row] for part, row in rows if part.images is not None]
    return StoredChunk(
        features={name: np.stack([part.features[name][row] for part, row in rows]) for name in first.features},
        evaluations=first.evaluations,
        seconds=float(np.mean([part.seconds for part, _ in rows])),
        count=len(rows),
        images=np.stack(images) if len(images) == len(rows) else None,
    )


# --- what is known of a search afterwards ---


def _record(
    result: SearchResult, found: Sequence[Candidate], halves: Halves, settings: Settings, finished: bool
) -> dict[str, Any]:
    """What `Store.search` gives back. Images are counted as they are made: in whole chunks, at every training seed."""

    def made(images: int, seeds: int) -> int:
        return math.ceil(images / halves.chunk) * halves.chunk * seeds

    seeds = [len(candidate.cells) for candidate in found]
    chosen = [found[number] for number in result.frontier]
    report = len(halves.judge.rows("report"))
    return {
        "finished": finished,
        "metric": halves.measure.label(halves.measure.metric),
        "settings": asdict(settings),
        "doubt": result.doubt,
        "images": {
            "search": sum(made(count, seeds[number]) for number, count in enumerate(result.counts)),
            "report": sum(made(report, len(candidate.cells)) for candidate in chosen),
            "full": sum(made(halves.judge.evaluation.images, count) for count in seeds),
        },
        "cells": len(found),
        "frontier": [
            {
                "cell": candidate.cells[0].label,
                "cost": candidate.arm.cost,
                "sample_keys": [cell.key.digest for cell in candidate.cells],
            }
            for candidate in chosen
        ],
        "counts": {found[number].arm.name: count for number, count in enumerate(result.counts) if count},
        "rounds": [asdict(step) for step in result.rounds],
    }


def in_words(record: Mapping[str, Any]) -> str:
    """A finished search in two sentences: what it took beside full search, and what it promises."""
    settings, images = record["settings"], record["images"]
    spent = images["search"] + images["report"]
    return (
        f"Adaptive search over {record['cells']} cells took {spent:,} images, {images['report']:,} of them to report "
        f"its {len(record['frontier'])} finalists on fresh prompts; full search takes {images['full']:,}, "
        f"{images['full'] / spent:.1f} times as many. At no budget would it find anything more than "
        f"{settings['tolerance']:.0%} better in {record['metric']} on the selection half, with a probability of "
        f"{1 - record['doubt']:.1%}."
    )
