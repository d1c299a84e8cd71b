"""Making the images of cells: chunks of prompts, each a task of its own, features kept, nothing made twice."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from isocost.data.prompts import PromptList
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.sampling.engine import prepare
from isocost.sampling.generate import Pipeline, generate
from isocost.scoring.measures import columns_of
from isocost.specs import EngineSpec, SampleKey
from isocost.study.artifacts import EncoderRefs, Progress, silent
from isocost.study.executors import run_tasks
from isocost.study.grid import Cell
from isocost.study.measures import loaded
from isocost.study.store import Store, StoredChunk
from isocost.training.state import Checkpoint


@dataclass(frozen=True)
class ChunkTask:
    """One chunk to make: everything a worker on any machine that sees the store needs."""

    store: Path
    key: SampleKey
    index: int
    checkpoint: Path
    refs: EncoderRefs
    prompts: tuple[tuple[str, str, int], ...]
    metrics: tuple[str, ...]
    keep_images: bool


def chunks_needed(images: int, engine: EngineSpec) -> int:
    """Chunks of engine.batch images that hold at least `images`. A chunk is always full, so that more can follow it."""
    return -(-images // engine.batch)


def missing_chunks(cells: Iterable[Cell], store: Store, images: int, tensors: Sequence[str]) -> list[tuple[Cell, int]]:
    """Chunks that the store lacks, or that lack one of `tensors`; the costliest first, so that the end is even."""
    keyed = {cell.key.digest: cell for cell in cells}
    missing = [
        (cell, index)
        for digest, cell in keyed.items()
        for index in range(chunks_needed(images, cell.key.engine))
        if not store.has_chunk(digest, index, tensors)
    ]
    return sorted(missing, key=lambda item: -(item[0].model.width ** 2) * item[0].plan.steps * (item[0].guided + 1))


def chunk_prompts(prompts: PromptList, index: int, batch: int) -> tuple[tuple[str, str, int], ...]:
    """(prompt id, text, replicate) of the places that chunk `index` covers."""
    places = [prompts.at(place) for place in range(index * batch, (index + 1) * batch)]
    return tuple((prompt.id, prompt.text, replicate) for prompt, replicate in places)


def make_chunks(
    cells: Sequence[Cell],
    folders: Mapping[str, Path],
    store: Store,
    refs: EncoderRefs,
    prompts: PromptList,
    images: int,
    *,
    metrics: tuple[str, ...],
    workers: int,
    keep_images: bool,
    progress: Progress = silent,
) -> None:
    """Make every chunk that is missing, or that lacks something, for `images` images a cell.

    Args:
        folders: content digest of a checkpoint -> its folder.
        metrics: full names (`measures.metric_names`), for which the features of every image are kept.
    """
    for cell in cells:
        store.write_sample_key(cell.key)
    wanted = [f"features/{column.name}" for column in columns_of(loaded(metrics))] + (["images"] if keep_images else [])
    missing = missing_chunks(cells, store, images, wanted)
    texts = functools.cache(lambda index, batch: chunk_prompts(prompts, index, batch))
    tasks = [
        (
            ChunkTask(
                store=store.path,
                key=cell.key,
                index=index,
                checkpoint=folders[cell.checkpoint.content_digest],
                refs=refs,
                prompts=texts(index, cell.key.engine.batch),
                metrics=metrics,
                keep_images=keep_images,
            ),
        )
        for cell, index in missing
    ]
    done = 0

    def on_done(place: int, _: object) -> None:
        nonlocal done
        done += 1
        progress("sample and extract", done, len(tasks), missing[place][0].label)

    run_tasks(make_chunk, tasks, workers=workers, on_done=on_done)


def make_chunk(task: ChunkTask) -> None:
    """Sample, decode, extract, store. Images go from decoder to extractors in memory; images that are stored are not
    made again for the sake of another extractor."""
    store, key = Store(task.store), task.key.digest
    stored = store.read_chunk(key, task.index) if store.has_chunk(key, task.index, ["images"]) else None
    made = stored or _sampled(task)
    assert made.images is not None
    missing = [column for column in columns_of(loaded(task.metrics)) if column.name not in made.features]
    features = {column.name: column.function(made.images) for column in missing}
    kept = made.images if task.keep_images else None
    store.write_chunk(key, task.index, replace(made, features=made.features | features, images=kept))


def _sampled(task: ChunkTask) -> StoredChunk:
    """A chunk's images, and what they cost."""
    engine = task.key.engine
    weights = task.key.plan.stages[0].checkpoint.weights
    pipeline = _pipeline(task.checkpoint, weights, task.refs, engine)  # pyright: ignore[reportArgumentType]
    made = generate(pipeline, task.key.plan, engine, task.prompts)
    return StoredChunk({}, made.evaluations, made.seconds, len(task.prompts), made.images)


@functools.lru_cache(maxsize=2)
def _pipeline(folder: Path, weights: Literal["ema", "raw"], refs: EncoderRefs, engine: EngineSpec) -> Pipeline:
    checkpoint = Checkpoint.load(folder)
    return Pipeline(
        network=prepare(checkpoint.network(weights), engine),
        autoencoder=_autoencoder(refs.autoencoder),
        text_encoder=_text_encoder(refs.text_encoder),
        latent_shape=checkpoint.spec.data.latent_shape,
        caption_dropout=checkpoint.spec.caption_dropout,
    )


# A worker makes many chunks: what it loads, it keeps.
_autoencoder = functools.lru_cache(maxsize=1)(load_autoencoder)
_text_encoder = functools.lru_cache(maxsize=1)(load_text_encoder)
