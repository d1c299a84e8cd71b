"""A whole study: do what is not done yet, and read what is.

`sweep` is a chain of stages, each a function of the artifacts before it; what the store holds is never made again, so
running it again after any interruption goes on where it stopped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocost.allocator import keep_freed_memory
from isocost.data import scenes
from isocost.data.prompts import VALIDATION_SEED, PromptList
from isocost.diffusion.samplers import SAMPLERS, planned_evaluations
from isocost.diffusion.schedule import timestep_pairs
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.latents import LatentShards
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError, StoreError, lookup
from isocost.models.cost import autoencoder_flops, forward_flops, image_cost, norm_cost, paper_cost, parameters
from isocost.models.cost import training_flops as training_flops_an_image
from isocost.models.ladder import LADDERS
from isocost.scoring.agreement import chance_levels
from isocost.scoring.metrics import compute, label
from isocost.specs import CheckpointRef, Guidance, ModelSpec, StudySpec, digest_of, split_metric
from isocost.study import grid, measures
from isocost.study.artifacts import (
    EncoderRefs,
    Progress,
    against,
    encoded_data,
    encoder_refs,
    given_references,
    kept_checkpoints,
    prompts_of,
    silent,
    train_runs,
)
from isocost.study.executors import default_workers, one_thread
from isocost.study.grid import Cell, Run
from isocost.study.images import ChunkTask, chunk_prompts, make_chunk, make_chunks
from isocost.study.scores import Judge, score_cells
from isocost.study.store import Store, write_atomically


def check(study: StudySpec) -> None:
    """Refuse what cannot run, before anything is started.

    Raises:
        SpecError: an unknown family, sampler or prompt list, more steps than timesteps, guidance that training rules
            out, or two members of one name.
    """
    for model in study.members:
        parameters(model)
    for cells in (study.grid, *study.extra_grids, *([study.curve] if study.curve else [])):
        for sampler, steps in itertools.product(cells.samplers, cells.steps):
            lookup(SAMPLERS, sampler, "sampler")
            pairs = timestep_pairs(study.train.schedule, steps, cells.spacing)
            planned_evaluations(sampler, pairs, Guidance(), study.train.schedule)
        if study.train.caption_dropout == 0 and any(scale != 1 for scale in cells.guidance):
            raise SpecError(
                "guidance scales other than 1 need train.caption_dropout > 0, or the empty prompt is never trained: "
                "set caption_dropout to 0.1, or guidance to [1]."
            )
    names = [model.name for model in study.members]
    if len(set(names)) != len(names):
        raise SpecError(f"members: {', '.join(names)}: every member needs its own width.")
    if study.data.kind == "images" and not study.data.val:
        raise SpecError("data.val: name the held-out images; scores are against them.")
    prompts = prompts_of(study.evaluation.prompts, study.data)
    asks_accuracy = any(split_metric(name)[0] == "accuracy" for name in study.evaluation.metrics)
    if asks_accuracy and not prompts.at(0)[0].attributes:
        raise SpecError(
            f"evaluation.metrics: nothing says what images of '{study.evaluation.prompts}' must show, so 'accuracy' "
            "cannot be judged: leave it out, or use prompts 'scenes-val'."
        )
    strip_prompts(study)
    usable = measures.check(study.evaluation)
    if study.evaluation.reference_files:
        given_references(study.evaluation).prepare(usable)


@dataclass(frozen=True)
class Trained:
    """A study whose members are trained: its cells, and where everything they need lies."""

    study: StudySpec
    store: Store
    refs: EncoderRefs
    runs: tuple[tuple[Run, tuple[CheckpointRef, ...]], ...]
    folders: dict[str, Path]
    prompts: PromptList

    @property
    def cells(self) -> list[Cell]:
        return grid.expand(self.study, self.runs, self.prompts.promptset)


def train(study: StudySpec, store: Store, workers: int | None = None, progress: Progress = silent) -> Trained:
    """Encoders, encoded data and members: everything up to the checkpoints."""
    keep_freed_memory()
    check(study)
    prompts = prompts_of(study.evaluation.prompts, study.data)
    if store.study_file.is_file() and store.study().digest != study.digest:
        store.write_expansion(runs=[], cells=[], scores=[], metrics=[])  # another study's; its chunks and scores stay
    store.write_study(study)
    workers = workers or default_workers()
    with one_thread():
        refs = encoder_refs(study, store, workers, progress)
        data = encoded_data(study, store, refs, workers, progress)
        runs = grid.runs(study, data.spec)
        place = {"data": data.folder.name, **asdict(refs)}
        store.write_expansion(runs=[grid.run_columns(run) for run in runs], places=[store.inside(place)])
        train_runs(runs, store, data, workers, progress)
    return _trained(study, store, refs, runs, prompts)


def _trained(study: StudySpec, store: Store, refs: EncoderRefs, runs: Sequence[Run], prompts: PromptList) -> Trained:
    kept = [(run, kept_checkpoints(store, run)) for run in runs]
    folders = {ref.content_digest: folder for _, checkpoints in kept for ref, folder in checkpoints}
    references = tuple((run, tuple(ref for ref, _ in checkpoints)) for run, checkpoints in kept)
    return Trained(study, store, refs, references, folders, prompts)


def sweep(study: StudySpec, store: Store, workers: int | None = None, progress: Progress = silent) -> pd.DataFrame:
    """Train, sample and score what is missing; the results table of `table`."""
    trained = train(study, store, workers, progress)
    cells = trained.cells
    with one_thread():
        names = measures.metric_names(study.evaluation, trained.refs)
        judge = Judge.build(study.evaluation, measures.loaded(names), against(study, store), trained.prompts)
        write_expansion(trained, judge)
        make_chunks(
            cells,
            trained.folders,
            store,
            trained.refs,
            trained.prompts,
            study.evaluation.images,
            metrics=names,
            workers=workers or default_workers(),
            keep_images=study.evaluation.keep_images,
            progress=progress,
        )
        score_cells(cells, store, judge, progress)
        write_baselines(trained, judge)
    return table(store)


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
        raise StoreError(f"{store.path}: training is not finished ({missing}). Run `isocost sweep` again to go on.")
    place = {name: store.resolve(reference) for name, reference in expansion["places"][0].items()}
    data = LatentShards(store.path / "data" / Path(place.pop("data")).name)
    prompts = prompts_of(study.evaluation.prompts, study.data)
    return _trained(study, store, EncoderRefs(**place), grid.runs(study, data.spec), prompts)


# --- what a study expands to, and its table ---


def write_expansion(trained: Trained, judge: Judge) -> None:
    """Keep what the study expands to beside it: `status` and `table` then need neither networks nor sources."""
    costs = CellCosts(trained)
    cells = [grid.columns(cell) | costs.of(cell) for cell in trained.cells]
    scores = [spec.model_dump(mode="json") for spec in judge.all_specs()]
    trained.store.write_expansion(cells=cells, scores=scores, metrics=judge.described())


class CellCosts:
    """What one image of a cell costs: evaluations, honest GFLOPs, the paper's cost, and measured seconds."""

    def __init__(self, trained: Trained):
        self.trained = trained
        autoencoder = load_autoencoder(trained.refs.autoencoder)
        text_encoder = load_text_encoder(trained.refs.text_encoder)
        self.decoder_flops = autoencoder_flops(autoencoder.module, _latent_side(trained))
        self.text_flops = text_encoder.flops
        self.context_length = text_encoder.context_shape[0]

    def of(self, cell: Cell) -> dict[str, Any]:
        plan, model, side = cell.plan, cell.model, cell.key.latent_shape[1]
        pairs = timestep_pairs(plan.schedule, plan.steps, plan.spacing)
        evaluations = planned_evaluations(plan.sampler, pairs, plan.guidance, plan.schedule)
        unet_flops = forward_flops(model, side, self.context_length)
        cost = image_cost(evaluations, unet_flops, self.text_flops, self.decoder_flops, guided=cell.guided)
        relative = norm_cost(model, reference_member(self.trained.study), side, self.context_length)
        trained_flops = training_flops_an_image(model, side, self.context_length) * cell.checkpoint.images_seen
        return {
            "params": parameters(model),
            "train_gflops": trained_flops / 1e9,
            "norm_cost": relative,
            "evaluations": evaluations,
            "gflops_per_image": cost.gflops,
            "paper_cost": paper_cost(relative, plan.steps),
        }


def reference_member(study: StudySpec) -> ModelSpec:
    """The member of norm. cost 1: its ladder's reference, or the largest member of a family without a ladder."""
    families = {ladder.reference.family: ladder.reference for ladder in LADDERS.values()}
    first = study.members[0]
    shared = families.get(first.family)
    if shared is None:
        return max(study.members, key=parameters)
    same_input = {name: getattr(first, name) for name in ("context_dim", "num_heads", "in_channels", "out_channels")}
    return shared.model_copy(update=same_input)


def _latent_side(trained: Trained) -> int:
    return trained.runs[0][0].spec.data.latent_shape[1]


def table(store: Store) -> pd.DataFrame:
    """One row a (cell, metric, split): what it is, what it costs, its value and error.

    `value` is corrected for the metric's estimated bias where there is one (`plug_in` is the number before that);
    `captions_cut` counts captions of which the metric's text tower reads the beginning only; `seconds_per_image` is the
    median over the cell's chunks, as measured with the sweep's own load on the machine.

    Raises:
        StoreError: no study in the store, or nothing scored yet.
    """
    store.study()
    expansion = store.expansion()
    cells = pd.DataFrame(expansion["cells"])
    scores = _current(store.index(), expansion["scores"])
    if cells.empty or scores.empty:
        raise StoreError(f"{store.path}: no scores yet. `isocost sweep` goes on from what is there.")
    frame: Any = cells.merge(scores, on="sample_key", how="inner")
    keys = frame["sample_key"].unique()
    seconds = pd.Series({key: np.median([s for _, s in store.chunk_costs(key)]) for key in keys}, dtype=float)
    frame["plug_in"] = frame["value"]
    frame["value"] = frame["plug_in"] - frame["bias"].fillna(0.0)
    extractors = frame["extractor"].str.partition("@")[0]
    names = [label(*key) for key in zip(frame["metric"], extractors, strict=True)]
    cut = {metric["label"]: metric["captions_cut"] for metric in expansion["metrics"]}
    return frame.assign(
        metric=names,
        captions_cut=[cut.get(name, 0) for name in names],
        seconds_per_image=frame["sample_key"].map(seconds),
    )


def metric_label(store: Store, name: str) -> str:
    """What a metric of the study's own spec is called in its table: `fd` -> `fd[scenes-clip-score-32]`."""
    labels = {metric["asked"]: metric["label"] for metric in store.expansion()["metrics"]}
    return labels.get(name, name)


def _current(scores: pd.DataFrame, specs: list[dict[str, Any]]) -> pd.DataFrame:
    """Scores of the study's own ScoreSpecs: a store may hold older ones, by other references or extractors."""
    if scores.empty or not specs:
        return scores.iloc[:0]
    wanted: Any = pd.DataFrame(specs)[["metric", "extractor", "reference", "split", "n"]]
    wanted = wanted.rename(columns={"metric": "family", "n": "images"}).fillna({"reference": ""})
    named = scores.assign(family=scores["metric"].str.partition("/")[0], known=scores["reference"].fillna(""))
    keys = ["family", "extractor", "known", "split", "images"]
    return named.merge(wanted.rename(columns={"reference": "known"}), on=keys).drop(columns=["family", "known"])


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
                checkpoint=trained.folders[cell.checkpoint.content_digest],
                refs=trained.refs,
                prompts=chunk_prompts(prompts, 0, count),
                metrics=(),
                keep_images=True,
            )
        )
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
    autoencoder = load_autoencoder(trained.refs.autoencoder)
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
