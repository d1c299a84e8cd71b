"""A whole study: do what is not done yet, and read what is.

`sweep` is a chain of stages, each a function of the artifacts before it; what the store holds is never made again, so
running it again after any interruption goes on where it stopped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocost.allocator import keep_freed_memory
from isocost.data import scenes
from isocost.data.prompts import VALIDATION_SEED, PromptList
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.latents import data_spec, read_header
from isocost.environment import environment
from isocost.errors import SpecError, StoreError
from isocost.scoring.agreement import chance_levels
from isocost.scoring.lowres import LowResolution
from isocost.scoring.metrics import compute
from isocost.specs import StudySpec, digest_of, split_metric
from isocost.study import adaptive, dreambooth, grid, measured, measures
from isocost.study.artifacts import (
    EncoderRefs,
    Progress,
    against,
    encoded_data,
    encoder_refs,
    given_checkpoints,
    given_references,
    kept_checkpoints,
    prompts_of,
    scored_prompts,
    silent,
    train_runs,
    undistilled_checkpoints,
)
from isocost.study.batches import settled
from isocost.study.checks import check_checkpoints_of, check_ways
from isocost.study.costs import CellCosts
from isocost.study.executors import Executor, Processes, default_workers, one_thread
from isocost.study.frames import write_frames
from isocost.study.grid import Cell, Run, Scorer, StudyCheckpoint
from isocost.study.images import ChunkTask, chunk_prompts, folders_of, make_chunk, make_chunks
from isocost.study.pipelines import scorers_of
from isocost.study.scores import Judge, missing_scores, score_cells
from isocost.study.search import Settings as Search
from isocost.study.shards import Shard, cells_of
from isocost.study.store import Store, write_atomically
from isocost.study.superres import check_crops, kept_starts, low_resolution, starts_in
from isocost.study.tables import table
from isocost.study.together import AS_SPECIFIED, Training


def check(study: StudySpec) -> None:
    """Refuse what cannot run, before anything is started.

    Raises:
        SpecError: an unknown family, member, sampler, scorer or prompt list, two members of one name, or a plan that
            its checkpoints cannot serve.
        DataError: a checkpoint that is given, or weights of an extractor, are missing or unfit.
    """
    check_checkpoints_of(study)
    superres = study.data.degradation is not None
    if study.data.kind == "images" and not study.data.val and not superres:
        raise SpecError("data.val: name the held-out images; scores are against them.")
    prompts = scored_prompts(study)
    if superres:
        check_crops(study)
    asks_accuracy = any(split_metric(name)[0] == "accuracy" for name in study.evaluation.metrics)
    if asks_accuracy and not prompts.at(0)[0].attributes:
        raise SpecError(
            f"evaluation.metrics: nothing says what images of '{study.evaluation.prompts}' must show, so 'accuracy' "
            "cannot be judged: leave it out, or use prompts 'scenes-val'."
        )
    strip_prompts(study)
    check_ways(study)
    usable = measures.check(study.evaluation, has_targets=superres)
    if study.evaluation.reference_files:
        given_references(study.evaluation).prepare(usable)


@dataclass(frozen=True)
class Trained:
    """A study whose members are trained: its cells, and where everything they need lies.

    checkpoints: those given, and of each training run those kept, by images seen. scorers: by what grids call them.
    """

    study: StudySpec
    store: Store
    refs: EncoderRefs
    checkpoints: tuple[StudyCheckpoint, ...]
    scorers: Mapping[str, Scorer]
    prompts: PromptList

    @property
    def folders(self) -> dict[str, Path]:
        """Content digest of each checkpoint -> where it lies."""
        return {checkpoint.ref.content_digest: checkpoint.folder for checkpoint in self.checkpoints}

    @property
    def cells(self) -> list[Cell]:
        """Each at the batch that it is sampled at in this store."""
        return settled(self._expanded, self.store)

    @functools.cached_property
    def pairs(self) -> Path | None:
        """Folder of the images that a study of super-resolution upscales; None for one of prompts."""
        found = low_resolution(self.study, self.store)
        return found and found.folder

    @functools.cached_property
    def _expanded(self) -> list[Cell]:
        return grid.expand(self.study, self.checkpoints, self.scorers, self.prompts.promptset)


def train(
    study: StudySpec,
    store: Store,
    workers: int | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
    training: Training = AS_SPECIFIED,
) -> Trained:
    """Encoders, encoded data and members: everything up to the checkpoints.

    `executor`: where work is done; by default `workers` processes of this machine. `training`: by which ranks, and how.

    Raises:
        SpecError, DataError: as `check`.
        StoreError: another process is at work on this store, or it cannot be written.
    """
    check(study)
    with store.held():
        return _train(study, store, executor or Processes(workers or default_workers()), progress, training)


def _train(
    study: StudySpec, store: Store, executor: Executor, progress: Progress, training: Training = AS_SPECIFIED
) -> Trained:
    keep_freed_memory()
    given = given_checkpoints(study)  # now: hours of training are not for a file that turns out to be corrupt
    prompts = scored_prompts(study)
    if store.study_file.is_file() and store.study().digest != study.digest:
        store.forget_expansion()  # another study's; its chunks and scores stay
    store.write_study(study)
    with one_thread():
        refs = encoder_refs(study, store, executor, progress)
        place, runs = asdict(refs), []
        if study.members:
            starts = kept_starts(study, store)
            data = encoded_data(study, store, refs, executor, progress)
            place, runs = {"data": data.folder.name, **place}, grid.runs(study, data.spec, starts)
        store.write_expansion(runs=[grid.run_columns(run) for run in runs], places=[store.inside(place)])
        if study.members:
            train_runs(runs, store, data, executor, progress, training)
    return _trained(study, store, refs, runs, given, prompts)


def _trained(
    study: StudySpec,
    store: Store,
    refs: EncoderRefs,
    runs: Sequence[Run],
    given: Sequence[StudyCheckpoint],
    prompts: PromptList,
) -> Trained:
    kept = [checkpoint for run in runs for checkpoint in kept_checkpoints(store, run, refs)]
    before = undistilled_checkpoints(store, runs, refs)
    return Trained(study, store, refs, (*kept, *before, *given), scorers_of(study, refs.extractor), prompts)


def sweep(
    study: StudySpec,
    store: Store,
    workers: int | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
    search: Search | None = None,
) -> pd.DataFrame:
    """Train, sample and score what is missing; the results table of `table`. `executor`, and errors, as for `train`.

    `search`: look for the cost-quality frontier adaptively, and score the cells that it takes; None: score every cell.
    """
    if study.dreambooth is not None:
        return dreambooth.sweep(study, store, workers, progress, executor)
    check(study)
    executor = executor or Processes(workers or default_workers())
    with store.held(), one_thread():
        trained = _train(study, store, executor, progress)
        names = measures.metric_names(study.evaluation, trained.refs)
        judge = Judge.build(study.evaluation, measures.loaded(names), against(study, store), trained.prompts)
        cells, batches = trained.cells, store.smaller_batches()
        write_expansion(trained, judge)
        if search is None:
            store.forget_search()
        else:
            make = functools.partial(_make_chunks, trained, names, executor, progress)
            costs = store.expansion()["cells"]
            cells = adaptive.finalists(cells, costs, store, judge, trained.prompts, make, search, progress)
        scored = {key for key, missing in missing_scores(cells, store, judge).items() if not missing}
        made = _make_chunks(trained, names, executor, progress, cells, whole=scored)
        if store.smaller_batches() != batches:  # memory ran out
            write_expansion(trained, judge)
        score_cells([cell for cell in made if cell.sample_key not in scored], store, judge, progress)
        write_baselines(trained, judge)
        if trained.pairs is not None:
            autoencoder = load_autoencoder(trained.refs.autoencoder)
            write_frames(store, judge, trained.prompts, LowResolution(trained.pairs), autoencoder)
    return table(store)


def sweep_shard(
    study: StudySpec,
    store: Store,
    shard: Shard,
    workers: int | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Make images and features of share i of n of the cells, for `shard` (i, n), of a trained study; score nothing.

    Shards of one study may share a store, or have each a copy of the trained one, to be merged; a sweep then scores.

    Raises:
        SpecError, DataError: as `check`.
        StoreError: the store holds another study or its members are not trained, or a sweep is at work on it.
    """
    check(study)
    if store.study().digest != study.digest:
        raise StoreError(f"{store.path}: holds another study: run `isocost train` with this one first.")
    with store.held(shared=True), one_thread():
        trained = opened(store)
        if not store.expansion()["cells"]:
            store.write_expansion(cells=cell_rows(trained))  # for `isocost status`
        names = measures.metric_names(study.evaluation, trained.refs)
        executor = executor or Processes(workers or default_workers())
        made = _make_chunks(trained, names, executor, progress, cells_of(shard, trained.cells))
    return {"store": str(store.path), "shard": "/".join(map(str, shard)), "cells": len(made)}


def _make_chunks(
    trained: Trained,
    metrics: tuple[str, ...],
    executor: Executor,
    progress: Progress,
    cells: Sequence[Cell],
    prompts: PromptList | None = None,
    images: int | None = None,
    whole: Set[str] = frozenset(),
) -> list[Cell]:
    """All images of cells on all prompts; or the first `images` of them on a half of the prompts.

    whole: sample keys of which all features were there before, as they are scored.
    """
    evaluation = trained.study.evaluation
    return make_chunks(
        cells,
        trained.folders,
        trained.store,
        trained.refs,
        prompts or trained.prompts,
        images or evaluation.images,
        metrics=metrics,
        executor=executor,
        keep_images=evaluation.keep_images,
        pairs=trained.pairs,
        whole=frozenset() if evaluation.keep_images else whole,
        progress=progress,
    )


def opened(store: Store) -> Trained:
    """The trained study of a store, from what lies in the store alone: nothing is trained, no source is read.

    Raises:
        StoreError: no study there, or its training is not finished.
    """
    study = store.study()
    expansion = store.expansion()
    unfinished = [run["member"] for run in expansion["runs"] if store.images_seen(run["digest"]) < run["images"]]
    if unfinished or not expansion["places"]:
        missing = ", ".join(unfinished) or "none of the members"
        raise StoreError(f"{store.path}: training is not finished ({missing}). `isocost train` goes on.")
    place = {name: store.resolve(reference) for name, reference in expansion["places"][0].items()}
    data, runs = place.pop("data", None), []
    if data is not None:
        spec = data_spec(read_header(store.path / "data" / Path(data).name))
        runs = grid.runs(study, spec, starts_in(store) if study.start_from else None)
    prompts = scored_prompts(study)
    return _trained(study, store, EncoderRefs(**place), runs, given_checkpoints(study), prompts)


# --- what a study expands to, and its table ---


def write_expansion(trained: Trained, judge: Judge) -> None:
    """Keep what the study expands to beside it: `status` and `table` then need neither networks nor sources."""
    scores = [spec.model_dump(mode="json") for spec in judge.all_specs()]
    parts = {"scores": scores, "metrics": judge.described()}
    made_by = [{"digest": _made_by(trained)}]
    if trained.store.expansion().get("made_by") != made_by or environment()["dirty"]:
        parts |= {"cells": cell_rows(trained), "made_by": made_by}  # of many cells, this takes a while
    trained.store.write_expansion(**parts)


def _made_by(trained: Trained) -> str:
    """What the rows of the cells are a function of, code included."""
    code = [environment()[name] for name in ("isocost", "commit")]
    references = [checkpoint.ref.canonical() for checkpoint in trained.checkpoints]
    return digest_of([code, trained.study.digest, references, trained.store.smaller_batches()])


def cell_rows(trained: Trained) -> list[dict[str, Any]]:
    """What the expansion says of every cell: what it is, what an image costs, and what that asks of the networks."""
    costs = CellCosts(trained.study, trained.checkpoints)
    return [grid.columns(cell) | costs.of(cell) | measured.work(cell.plan) for cell in trained.cells]


# --- pictures ---


def strip(trained: Trained, cell: Cell, prompts: PromptList, count: int) -> np.ndarray:
    """Images [count, H, W, 3] of the first prompts of a list under a cell's plan, made once and kept in the store."""
    engine = cell.key.engine.model_copy(update={"batch": count})
    key = cell.key.model_copy(update={"promptset": prompts.promptset, "engine": engine})
    store = trained.store
    if not store.has_chunk(key.digest, 0, ["images"]):
        store.write_sample_key(key)
        make_chunk(
            ChunkTask(
                store=store.path,
                key=key,
                index=0,
                folders=folders_of(cell.plan, trained.folders),
                refs=trained.refs,
                scorer=cell.scorer,
                prompts=chunk_prompts(prompts, 0, count),
                metrics=(),
                keep_images=True,
                pairs=trained.pairs,
            )
        )
    store.note_strip(cell.sample_key, key.digest, [prompts.at(place)[0].text for place in range(count)])
    images = store.read_chunk(key.digest, 0).images
    assert images is not None
    return images


def strip_prompts(study: StudySpec) -> PromptList:
    """The list that the report's image strips show."""
    return prompts_of(study.strips or study.evaluation.prompts, study.data)


# --- what chance, the autoencoder and real images would score ---


def write_baselines(trained: Trained, judge: Judge) -> None:
    """Chance level, ceiling after the autoencoder and level of real images, for the report's tables."""
    classifier = next((measure.network for measure in judge.measures if measure.metric == "accuracy"), None)
    if classifier is None or trained.study.evaluation.prompts != "scenes-val":
        return
    path = trained.store.path / "baselines.json"
    source = trained.study.data
    autoencoder = load_autoencoder(trained.checkpoints[0].autoencoder)
    prompts = trained.prompts.promptset.canonical()
    inputs = digest_of([prompts, len(judge.wanted), source.resolution, classifier.digest, autoencoder.digest])
    if path.is_file() and json.loads(path.read_text()).get("inputs") == inputs:
        return
    images = scenes.draw(VALIDATION_SEED, range(len(judge.wanted)), source.resolution, source.scenes)
    rebuilt = autoencoder.decode(autoencoder.encode(images))
    attributes = classifier.attributes
    accuracies = {
        name: compute("accuracy", logits=logits, wanted=judge.wanted, attributes=attributes)
        for name, logits in (
            ("real", classifier.split(classifier(images))),
            ("ceiling", classifier.split(classifier(rebuilt))),
        )
    }
    chance = chance_levels(judge.wanted, attributes)
    baselines = {
        metric: {"chance": chance[metric].majority, **{name: found[metric].value for name, found in accuracies.items()}}
        for metric in accuracies["real"]
    }
    write_atomically(path, json.dumps({"inputs": inputs, "levels": baselines}, indent=1).encode())
