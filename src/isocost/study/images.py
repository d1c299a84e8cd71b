"""Making the images of cells: chunks of prompts, each a task of its own, features kept, nothing made twice."""

from __future__ import annotations

import functools
import platform
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from isocost.data.prompts import Drawn, PromptList
from isocost.diffusion.plans import evaluations_of
from isocost.errors import IsocostError, StoreError
from isocost.sampling.generate import generate
from isocost.sampling.upscale import LowRes, upscale
from isocost.scoring.lowres import LowResolution
from isocost.scoring.measures import columns_of
from isocost.scoring.streaming import arguments_of
from isocost.specs import EngineSpec, SampleKey, SamplingPlan
from isocost.study.artifacts import EncoderRefs, Progress, silent
from isocost.study.batches import OutOfMemory, halving, settled
from isocost.study.best_of import generate_best
from isocost.study.executors import Executor, Task
from isocost.study.grid import Cell, Scorer
from isocost.study.measures import loaded
from isocost.study.pipelines import load_pipeline, load_scorer
from isocost.study.store import Store, StoredChunk


@dataclass(frozen=True)
class ChunkTask:
    """One chunk to make: everything a worker on any machine that sees the store needs.

    folders: content digest -> folder, of every checkpoint that the plan calls. scorer: of best-of-n. pairs: folder of
    images to upscale and their targets, which prompts name by key; None: prompts are to be drawn.
    """

    store: Path
    key: SampleKey
    index: int
    folders: Mapping[str, Path]
    refs: EncoderRefs
    scorer: Scorer | None
    prompts: tuple[tuple[str, Drawn, int], ...]
    metrics: tuple[str, ...]
    keep_images: bool
    pairs: Path | None = None


def chunks_needed(images: int, engine: EngineSpec) -> int:
    """Chunks of engine.batch images that hold at least `images`. A chunk is always full, so that more can follow it."""
    return -(-images // engine.batch)


def missing_chunks(
    cells: Iterable[Cell], store: Store, images: int, tensors: Sequence[str], whole: Set[str] = frozenset()
) -> list[tuple[Cell, int]]:
    """Chunks that the store lacks, or that lack one of `tensors`; the costliest first, so that the end is even.

    whole: sample keys whose chunks, where they are there, are known to lack none.
    """
    there = store.chunks()
    missing = [
        (cell, index)
        for key, cell in {cell.sample_key: cell for cell in cells}.items()
        for index in range(chunks_needed(images, cell.key.engine))
        if index not in there.get(key, ()) or not (key in whole or store.has_chunk(key, index, tensors))
    ]
    return sorted(missing, key=lambda item: -item[0].work)


def folders_of(plan: SamplingPlan, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Of the `folders` of checkpoints by content digest those that a plan calls."""
    return {ref.content_digest: folders[ref.content_digest] for ref in evaluations_of(plan)}


def chunk_prompts(prompts: PromptList, index: int, batch: int) -> tuple[tuple[str, Drawn, int], ...]:
    """(prompt id, what is drawn, replicate) of the places that chunk `index` covers."""
    places = [prompts.at(place) for place in range(index * batch, (index + 1) * batch)]
    return tuple((prompt.id, prompt.drawn, replicate) for prompt, replicate in places)


def make_chunks(
    cells: Sequence[Cell],
    folders: Mapping[str, Path],
    store: Store,
    refs: EncoderRefs,
    prompts: PromptList,
    images: int,
    *,
    metrics: tuple[str, ...],
    executor: Executor,
    keep_images: bool,
    pairs: Path | None = None,
    whole: Set[str] = frozenset(),
    progress: Progress = silent,
) -> list[Cell]:
    """Make every chunk that is missing, or that lacks something, for `images` images a cell.

    Args:
        folders: content digest of a checkpoint -> its folder.
        metrics: full names (`measures.metric_names`), for which the features of every image are kept.
        pairs: of images to upscale, as in `ChunkTask`.
        whole: as for `missing_chunks`.

    Returns:
        The cells as they were made: where memory ran out, at a smaller batch.

    Raises:
        IsocostError: memory runs out at batch 1, or the workers of a chunk keep dying.
    """
    wanted = [f"features/{column.name}" for column in columns_of(loaded(metrics))] + (["images"] if keep_images else [])
    texts = functools.cache(lambda index, batch: chunk_prompts(prompts, index, batch))

    def task(cell: Cell, index: int) -> Task:
        called = folders_of(cell.plan, folders)
        chunk = ChunkTask(
            store=store.path,
            key=cell.key,
            index=index,
            folders=called,
            refs=refs,
            scorer=cell.scorer,
            prompts=texts(index, cell.key.engine.batch),
            metrics=metrics,
            keep_images=keep_images,
            pairs=pairs,
        )
        return Task((chunk,), f"{cell.label}, chunk {index}", tuple(called))

    while True:
        cells = settled(cells, store)
        missing = missing_chunks(cells, store, images, wanted, whole)
        for cell in {cell.sample_key: cell for cell, _ in missing}.values():
            store.write_sample_key(cell.key)
        counter = _Counter([cell for cell, _ in missing], progress)
        if missing:
            executor.run(try_chunk, [task(cell, index) for cell, index in missing], on_done=counter)
            store.write_costs()
        if not counter.too_large:
            return cells


class _Counter:
    """Follows chunks as they are done, and the cells at whose batch memory runs out."""

    def __init__(self, cells: Sequence[Cell], progress: Progress):
        self.cells, self.progress = cells, progress
        self.done, self.too_large = 0, set[str]()

    def __call__(self, place: int, found: OutOfMemory | None) -> None:
        self.done += 1
        cell = self.cells[place]
        if found is None:
            self.progress("sample and extract", self.done, len(self.cells), cell.label)
        elif not found.goes_on_at:
            raise IsocostError(
                f"{cell.label}: out of memory at batch 1 ({found.reason}): it needs a device with more memory, or "
                "nothing beside it."
            )
        elif cell.sample_key not in self.too_large:
            self.too_large.add(cell.sample_key)
            number = len(self.too_large)
            what = f"{cell.label}: out of memory at batch {found.batch}, goes on at {found.goes_on_at}"
            self.progress("smaller batches", number, number, what)


def try_chunk(task: ChunkTask) -> OutOfMemory | None:
    """`make_chunk`, or why its cell has to go on at a smaller batch.

    Raises:
        StoreError: this machine does not see the store.
    """
    store = Store(task.store)
    if not store.study_file.is_file():
        raise StoreError(f"{store.path}: {platform.node()} sees no store there: workers need a file system they share.")
    return halving(lambda: make_chunk(task), task.key, store)


def make_chunk(task: ChunkTask) -> None:
    """Sample, decode, extract, store. Images go from decoder to extractors in memory; images that are stored are not
    made again for the sake of another extractor."""
    store, key = Store(task.store), task.key.digest
    stored = store.read_chunk(key, task.index) if store.has_chunk(key, task.index, ["images"]) else None
    made = stored or _sampled(task)
    assert made.images is not None
    missing = [column for column in columns_of(loaded(task.metrics)) if column.name not in made.features]
    needs_targets = any(column.of != "images" for column in missing)
    targets = LowResolution(task.pairs).high(_keys(task)) if needs_targets and task.pairs else None
    features = {column.name: column.function(*arguments_of(column, made.images, targets)) for column in missing}
    kept = made.images if task.keep_images else None
    store.write_chunk(key, task.index, replace(made, features=made.features | features, images=kept))


def _sampled(task: ChunkTask) -> StoredChunk:
    """A chunk's images, and what they cost."""
    plan, engine = task.key.plan, task.key.engine
    pipeline = load_pipeline(task.key, task.folders, task.refs)
    if task.pairs is not None:
        lows = LowResolution(task.pairs).low(_keys(task))
        named = zip(task.prompts, lows, strict=True)
        made = upscale(pipeline, plan, engine, [LowRes(name, low, replicate) for (name, _, replicate), low in named])
    elif task.scorer is None:
        made = generate(pipeline, plan, engine, task.prompts)
    else:
        made = generate_best(pipeline, plan, engine, _texts(task), load_scorer(task.scorer))
    return StoredChunk({}, made.evaluations, made.seconds, len(task.prompts), made.images)


def _texts(task: ChunkTask) -> list[tuple[str, str, int]]:
    """Prompts, none of which is a blend of two: specs refuse those where texts are read."""
    return [(name, text, replicate) for name, text, replicate in task.prompts if isinstance(text, str)]


def _keys(task: ChunkTask) -> list[str]:
    """Of the images to upscale."""
    return [key for _, key, _ in _texts(task)]
