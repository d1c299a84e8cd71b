"""A study of DreamBooth: every member of another study is taught every subject, and asked to draw it (arXiv 2404.01367,
section 3.3).

A member draws its own images of a subject's class, is tuned on them and the subject's pictures (and once more on the
pictures alone), and then draws the subject by many prompts, and its class again. All of it is kept under what it is a
function of, so a second call makes nothing twice:

STORE/starts/DIGEST/        the members that are tuned
STORE/subjects/KEY/         pictures of a subject, or images of a class, as .png with their prompts
STORE/data/KEY/             the latents of both
STORE/checkpoints/SPEC/     one tuning
STORE/chunks/               images, before tuning and after

A cell of the table is a member: its scores are means over subjects, with errors over subjects. What it was before, and
what it is without images of the class, stand beside the cells as `frames`.
"""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocost.allocator import keep_freed_memory
from isocost.data.prompts import PromptList
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError, StoreError
from isocost.models.build import build
from isocost.runlog import images_seen
from isocost.sampling.checkpoints import Traits
from isocost.scoring.measures import Measure
from isocost.scoring.subjects import OF_A_SUBJECT, Look, accuracy, over_subjects
from isocost.scoring.uncertainty import Estimate
from isocost.specs import (
    CheckpointRef,
    DataSource,
    ModelSpec,
    Prior,
    SampleKey,
    ScoreSpec,
    StudySpec,
    TrainSpec,
    digest_of,
)
from isocost.study import grid, measured, measures
from isocost.study.artifacts import EncoderRefs, Progress, run_folder, silent
from isocost.study.checks import check_checkpoints_of
from isocost.study.costs import CellCosts
from isocost.study.executors import Executor, Processes, Task, default_workers, one_thread
from isocost.study.grid import Cell, Run, StudyCheckpoint
from isocost.study.images import ChunkTask, chunk_prompts, chunks_needed, make_chunk
from isocost.study.scores import SPLITS, write
from isocost.study.store import Store
from isocost.study.subjects import Shown, shown, token_of
from isocost.study.superres import kept_starts, start_folder
from isocost.study.tables import table
from isocost.training import loop, lora
from isocost.training.state import Checkpoint

UNTUNED, PRESERVED, ALONE = "untuned", "preserved", "pictures alone"
PLAIN_METRICS = tuple(OF_A_SUBJECT)
SAVED = 4  # states of a tuning


@dataclass(frozen=True, eq=False)
class Tuning:
    """One member taught one subject, with images of the class or without."""

    run: Run
    shown: Shown
    how: str
    data: Path

    @property
    def name(self) -> str:
        """`c16-house`; `c16-house-alone` of a tuning on the pictures alone."""
        return f"{self.run.model.name}-{self.shown.name}{'-alone' if self.how == ALONE else ''}"


@dataclass(frozen=True, eq=False)
class Opened:
    """A study of DreamBooth whose starts are in its store."""

    study: StudySpec
    store: Store
    refs: EncoderRefs
    starts: Mapping[tuple[str, int], StudyCheckpoint]
    subjects: tuple[Shown, ...]
    token: str

    @property
    def hows(self) -> tuple[str, ...]:
        assert self.study.dreambooth is not None
        return (PRESERVED, ALONE) if self.study.dreambooth.unpreserved and _weight(self.study) else (PRESERVED,)

    def key(self, checkpoint: StudyCheckpoint, prompts: PromptList) -> SampleKey:
        """What a set of images is a function of: the study's one plan, of a checkpoint."""
        available = {checkpoint.name: checkpoint}
        ((plan, _, _),) = grid.plans(self.study.grid, available, [checkpoint.name], {})
        shape = checkpoint.traits.latent_shape
        return SampleKey(plan=plan, promptset=prompts.promptset, latent_shape=shape, engine=self.study.engine)


def _weight(study: StudySpec) -> float:
    assert study.train is not None and study.train.prior is not None
    return study.train.prior.weight


def check(study: StudySpec) -> None:
    """Refuse what cannot run, before anything is started.

    Raises:
        SpecError: no store to start from, several plans, prompts that mean the class, an unknown subject or metric,
            adapters that the members cannot have.
        DataError: pictures that are missing or too few.
    """
    assert study.dreambooth is not None and study.train is not None
    if not (Path(study.start_from or "") / "study.yaml").is_file():
        raise SpecError(f"start_from: {study.start_from} is no store of a study whose members could be tuned.")
    check_checkpoints_of(study)
    only = study.grid
    lengths = [len(values) for values in (only.samplers, only.steps, only.guidance, only.best_of)]
    if study.extra_grids or study.curve or lengths != [1] * 4 or only.stitch or only.guide or max(only.best_of) > 1:
        raise SpecError(
            "grid: members that were tuned are sampled by one plan: one sampler, number of steps and scale."
        )
    for name in study.evaluation.metrics:
        family = name.partition("[")[0]
        if family not in (*PLAIN_METRICS, "accuracy"):
            raise SpecError(
                f"evaluation.metrics: '{name}' is none of DreamBooth's: {', '.join(PLAIN_METRICS)}, accuracy."
            )
    measures.check(study.evaluation, has_targets=True)
    for model in study.members if study.train.lora else ():
        lora.check(build(model, "meta"), study.train.lora)  # pyright: ignore[reportArgumentType]
    shown(study, study.dreambooth.token or "z")


def sweep(
    study: StudySpec,
    store: Store,
    workers: int | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Tune, draw and score what is missing; the results table. Call it again to go on after an interruption."""
    executor = executor or Processes(workers or default_workers())
    opened, tunings = train(study, store, executor, progress)
    with store.held(), one_thread():
        _score(opened, tunings, executor, progress)
    return table(store)


def train(
    study: StudySpec, store: Store, executor: Executor, progress: Progress = silent
) -> tuple[Opened, list[Tuning]]:
    """Images of the classes, latents, and every tuning."""
    check(study)
    keep_freed_memory()
    with store.held(), one_thread():
        if store.study_file.is_file() and store.study().digest != study.digest:
            store.forget_expansion()
        store.write_study(study)
        opened = open_study(study, store)
        _draw(opened, _class_sets(opened), executor, progress, "draw the classes")
        tunings = _tunings(opened)
        store.write_expansion(runs=[grid.run_columns(one.run) | {"member": one.name} for one in tunings])
        _tune(opened, tunings, executor, progress)
    return opened, tunings


def opened(store: Store) -> tuple[Opened, list[Tuning]]:
    """A study whose members are tuned, from its store alone."""
    found = open_study(store.study(), store)
    return found, _tunings(found)


def open_study(study: StudySpec, store: Store) -> Opened:
    """What follows from a study alone, once the members that it starts from are in its store."""
    refs = _encoder_refs(study, store)
    starts = {key: _start(store, ref, refs) for key, ref in kept_starts(study, store).items()}
    text_encoder = load_text_encoder(refs.text_encoder)
    autoencoder = load_autoencoder(refs.autoencoder)
    store.locate({autoencoder.digest: refs.autoencoder, text_encoder.digest: refs.text_encoder})
    for checkpoint in starts.values():
        if checkpoint.traits.text_encoder != text_encoder.digest:
            raise SpecError(f"data.text_encoder: the members of {study.start_from} read another one than this.")
    token = token_of(study, text_encoder)
    return Opened(study, store, refs, starts, tuple(shown(study, token)), token)


def _encoder_refs(study: StudySpec, store: Store) -> EncoderRefs:
    """The encoders of the study that members start from, in whose latents they draw; kept with the store's own."""
    kept = store.expansion()["places"]
    if kept:
        return EncoderRefs(**{name: store.resolve(where) for name, where in kept[0].items()})
    base = Store(study.start_from or "")
    if not base.expansion()["places"]:
        raise StoreError(f"{base.path}: no members are trained there. `isocost train` makes them.")
    places = {name: base.resolve(where) for name, where in base.expansion()["places"][0].items()}
    own = study.evaluation.extractor == "own"
    refs = EncoderRefs(
        autoencoder=places["autoencoder"],
        text_encoder=places["text_encoder"],
        extractor=places["extractor"] if own else study.evaluation.extractor,
        classifier=study.evaluation.classifier,
    )
    store.write_expansion(places=[store.inside(asdict(refs))])
    return refs


def _start(store: Store, ref: CheckpointRef, refs: EncoderRefs) -> StudyCheckpoint:
    folder = start_folder(store.path, ref)
    return _checkpoint(Checkpoint.load(folder), refs)


def _checkpoint(checkpoint: Checkpoint, refs: EncoderRefs) -> StudyCheckpoint:
    spec = checkpoint.spec
    return StudyCheckpoint(
        name=spec.model.name,
        model=spec.model,
        seed=spec.seed,
        ref=checkpoint.ref("ema"),
        traits=Traits.of(spec),
        folder=checkpoint.folder,
        autoencoder=refs.autoencoder,
        text_encoder=refs.text_encoder,
        trained=checkpoint,
    )


# --- images ---


@dataclass(frozen=True, eq=False)
class ImagesOf:
    """Images to draw: the first `count` of a prompt list by a checkpoint."""

    checkpoint: StudyCheckpoint
    prompts: PromptList
    count: int


def _class_sets(opened: Opened) -> list[ImagesOf]:
    """Images of each class by the members as they are: some to preserve their prior by, and as many to compare with."""
    assert opened.study.dreambooth is not None
    count = 2 * opened.study.dreambooth.class_images
    return [ImagesOf(start, one.of_class, count) for start in opened.starts.values() for one in opened.subjects]


def subject_sets(opened: Opened, checkpoint: StudyCheckpoint, one: Shown) -> tuple[ImagesOf, ImagesOf]:
    """Images of a subject and of its class by a checkpoint."""
    how = opened.study.dreambooth
    assert how is not None
    of_subject = ImagesOf(checkpoint, one.drawn, how.images * len(how.prompts))
    return of_subject, ImagesOf(checkpoint, one.of_class, 2 * how.class_images)


def _draw(opened: Opened, sets: Sequence[ImagesOf], executor: Executor, progress: Progress, stage: str) -> None:
    """Make the chunks that are missing."""
    store, tasks = opened.store, {}
    for one in sets:
        key = opened.key(one.checkpoint, one.prompts)
        for index in range(chunks_needed(one.count, key.engine)):
            if not store.has_chunk(key.digest, index, ["images"]):
                store.write_sample_key(key)
                chunk = ChunkTask(
                    store=store.path,
                    key=key,
                    index=index,
                    folders={one.checkpoint.ref.content_digest: one.checkpoint.folder},
                    refs=opened.refs,
                    scorer=None,
                    prompts=chunk_prompts(one.prompts, index, key.engine.batch),
                    metrics=(),
                    keep_images=True,
                )
                label = f"{one.checkpoint.name}, {one.prompts.promptset.name}, chunk {index}"
                tasks[key.digest, index] = Task((chunk,), label, (one.checkpoint.ref.content_digest,))
    done = _Count(len(tasks), progress, stage)
    executor.run(make_chunk, list(tasks.values()), on_done=done)


def images_of(opened: Opened, one: ImagesOf) -> np.ndarray:
    """uint8 [count, H, W, 3] of a set that was drawn."""
    key = opened.key(one.checkpoint, one.prompts)
    chunks = [opened.store.read_chunk(key.digest, index) for index in range(chunks_needed(one.count, key.engine))]
    return np.concatenate([chunk.images for chunk in chunks if chunk.images is not None])[: one.count]


class _Count:
    def __init__(self, total: int, progress: Progress, stage: str):
        self.done, self.total, self.progress, self.stage = 0, total, progress, stage

    def __call__(self, place: int, result: Any) -> None:
        self.done += 1
        self.progress(self.stage, self.done, self.total, "")


# --- tuning ---


def _tunings(opened: Opened) -> list[Tuning]:
    """Every member taught every subject, with the latents that each is taught from."""
    study, found = opened.study, []
    assert study.train is not None
    settings: dict[str, Any] = {name: getattr(study.train, name) for name in type(study.train).model_fields}
    for (_, seed), start in opened.starts.items():
        model = start.model
        assert isinstance(model, ModelSpec)
        for one in opened.subjects:
            data = _latents(opened, start, one)
            for how in opened.hows:
                prior: dict[str, Any] = {"prior": Prior(weight=0)} if how == ALONE else {}
                spec = TrainSpec(model=model, data=data.spec, seed=seed, start_from=start.ref, **(settings | prior))
                found.append(Tuning(Run(model, seed, spec), one, how, Path(data.folder)))
    return found


def _latents(opened: Opened, start: StudyCheckpoint, one: Shown) -> LatentShards:
    """Latents of a subject's pictures, and after them of its class as a member drew it before."""
    study = opened.study
    assert study.dreambooth is not None
    folders = [_written(opened.store, one.pictures, one.captions)]
    if _weight(study):
        count = study.dreambooth.class_images
        captions = [one.of_class.at(place)[0].text for place in range(count)]
        folders.append(_written(opened.store, images_of(opened, ImagesOf(start, one.of_class, count)), captions))
    source = DataSource(
        kind="images",
        resolution=study.data.resolution,
        train=tuple(map(str, folders)),
        autoencoder=study.data.autoencoder,
        text_encoder=study.data.text_encoder,
        encoder_training=study.data.encoder_training,
        instances=len(one.pictures),
    )
    autoencoder, text_encoder = _encoders(opened.refs)
    name = digest_of([[folder.name for folder in folders], autoencoder.digest, text_encoder.digest])[:16]
    return precompute(source, autoencoder, text_encoder, opened.store.path / "data" / name, check_scale=False)


@functools.lru_cache(maxsize=1)
def _encoders(refs: EncoderRefs) -> Any:
    return load_autoencoder(refs.autoencoder), load_text_encoder(refs.text_encoder)


def _written(store: Store, images: np.ndarray, captions: Sequence[str]) -> Path:
    """A folder of images with their captions, named by its content; made once."""
    from PIL import Image

    name = digest_of([images.shape, images.tobytes().hex(), list(captions)])[:16]
    folder = store.path / "subjects" / name
    if not folder.is_dir():
        temporary = folder.with_name(f".{name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            (temporary / f"{number:04d}.png").write_bytes(buffer.getvalue())
            (temporary / f"{number:04d}.txt").write_text(caption + "\n", encoding="utf-8")
        temporary.rename(folder)
    return folder


def _tune(opened: Opened, tunings: Sequence[Tuning], executor: Executor, progress: Progress) -> None:
    folders = {one.name: run_folder(opened.store, one.run) for one in tunings}
    todo = [one for one in tunings if not loop.is_finished(folders[one.name], one.run.spec)]
    total = sum(one.run.spec.images for one in todo)

    def report(*_: object) -> None:
        progress("tune members", sum(images_seen(folders[one.name]) for one in todo), total, "")

    tasks = [
        Task((one.run.spec, one.data, folders[one.name]), f"tuning of {one.name}")
        for one in sorted(todo, key=lambda one: -one.run.model.width)
    ]
    executor.run(_tune_one, tasks, on_done=report, on_wait=report)


def _tune_one(spec: TrainSpec, data: Path, folder: Path) -> None:
    """A tuning takes a minute or so: states on the way are for a few of them."""
    every = -(-spec.images // SAVED)
    locate = functools.partial(start_folder, folder.parents[1])
    loop.train(spec, LatentShards(data), folder, save_every_images=every, keep_last=1, locate=locate)


def tuned(opened: Opened, one: Tuning) -> StudyCheckpoint:
    """The final checkpoint of a tuning."""
    final = loop.kept_checkpoints(run_folder(opened.store, one.run), one.run.spec)[-1]
    return replace(_checkpoint(Checkpoint.load(final), opened.refs), name=one.name)


# --- scores ---


@dataclass(frozen=True, eq=False)
class Group:
    """What one row of the table is of: a member, tuned in one way or not at all, with a checkpoint a subject."""

    member: str
    seed: int
    how: str
    checkpoints: tuple[StudyCheckpoint, ...]


def groups(opened: Opened, tunings: Sequence[Tuning]) -> list[Group]:
    """By member: as it was, tuned with images of the class, and without."""
    found = []
    for (member, seed), start in opened.starts.items():
        found.append(Group(member, seed, UNTUNED, (start,) * len(opened.subjects)))
        for how in opened.hows:
            own = [one for one in tunings if (one.run.model, one.run.seed, one.how) == (start.model, seed, how)]
            found.append(Group(member, seed, how, tuple(tuned(opened, one) for one in own)))
    return found


def _score(opened: Opened, tunings: Sequence[Tuning], executor: Executor, progress: Progress) -> None:
    store, all_groups = opened.store, groups(opened, tunings)
    sets = [
        one
        for group in all_groups
        for checkpoint, subject in zip(group.checkpoints, opened.subjects, strict=True)
        for one in subject_sets(opened, checkpoint, subject)
    ]
    _draw(opened, sets, executor, progress, "draw the subjects")
    names = measures.metric_names(opened.study.evaluation, opened.refs)
    judged = measures.loaded(names)
    rows = {group: _row(opened, group) for group in all_groups}
    specs = [_spec(opened, measure, split) for split in SPLITS for measure in judged]
    asked = zip(opened.study.evaluation.metrics, judged, strict=True)
    described = [{"asked": name, "label": one.label(one.metric), "captions_cut": 0} for name, one in asked]
    cells = [row for group, row in rows.items() if group.how == PRESERVED]
    frames = [row for group, row in rows.items() if group.how != PRESERVED]
    store.write_expansion(
        cells=cells,
        frames=[row | {"frame": f"{row['member']} {row['how']}"} for row in frames],
        scores=[spec.model_dump(mode="json") for spec in specs],
        metrics=described,
        sets=[_counted(opened, one) for one in sets],
    )
    there = store.score_keys()
    for done, (group, row) in enumerate(rows.items(), 1):
        missing = [
            (measure, split)
            for split in SPLITS
            for measure in judged
            if store.score_key(row["sample_key"], _spec(opened, measure, split)) not in there
        ]
        for measure in dict.fromkeys(measure for measure, _ in missing):
            looks = [_look(opened, group, place, measure) for place in range(len(opened.subjects))]
            for other, split in missing:
                if other is measure:
                    estimate = _estimate(measure, [_part(look, split) for look in looks])
                    write(store, row["sample_key"], _spec(opened, measure, split), {measure.metric: estimate})
        progress("score", done, len(rows), "")


def _counted(opened: Opened, one: ImagesOf) -> dict[str, Any]:
    key = opened.key(one.checkpoint, one.prompts)
    return {"sample_key": key.digest, "chunks": chunks_needed(one.count, key.engine)}


def _row(opened: Opened, group: Group) -> dict[str, Any]:
    """What the table says of a group, its scores aside."""
    keys = [
        opened.key(one.checkpoint, one.prompts).digest
        for checkpoint, subject in zip(group.checkpoints, opened.subjects, strict=True)
        for one in subject_sets(opened, checkpoint, subject)
    ]
    first = group.checkpoints[0]
    cell = Cell((first,), None, None, group.seed, False, opened.key(first, opened.subjects[0].drawn))
    costs = CellCosts(opened.study, group.checkpoints).of(cell)
    objective = {UNTUNED: "denoise", PRESERVED: "dreambooth", ALONE: "dreambooth-alone"}[group.how]
    return (
        grid.columns(cell)
        | costs
        | measured.work(cell.plan)
        | {
            "sample_key": digest_of([group.how, keys, [subject.digest for subject in opened.subjects]]),
            "member": group.member,
            "checkpoint": "+".join(checkpoint.ref.content_digest for checkpoint in group.checkpoints),
            "objective": objective,
            "how": group.how,
        }
    )


def _spec(opened: Opened, measure: Measure, split: Any) -> ScoreSpec:
    return ScoreSpec(metric=measure.metric, extractor=measure.identity, n=len(opened.subjects), split=split)


def _look(opened: Opened, group: Group, place: int, measure: Measure) -> Look:
    """A subject as a metric's network sees it."""
    one, checkpoint = opened.subjects[place], group.checkpoints[place]
    start = opened.starts[group.member, group.seed]
    how = opened.study.dreambooth
    assert how is not None
    of_subject, of_class = subject_sets(opened, checkpoint, one)
    before = ImagesOf(start, one.of_class, 2 * how.class_images)
    see = measure.network
    prompts = np.arange(of_subject.count) % len(one.plain)
    return Look(
        images=see(images_of(opened, of_subject)),
        prompt_of=prompts,
        # Before and after share noise, image by image: a distance of sets is of two halves, so that none is its own.
        class_images=see(images_of(opened, of_class)[how.class_images :]),
        class_before=see(images_of(opened, before)[: how.class_images]),
        pictures=see(one.pictures),
        texts=see.text([one.plain[prompt] for prompt in prompts]) if measure.reads_captions else None,
        asked=[one.asked(int(prompt)) for prompt in prompts],
    )


def _part(look: Look, split: str) -> Look:
    """The half of a look: of every second prompt, and every second image of the class."""
    if split == "all":
        return look
    odd = int(split == "report")
    rows = np.flatnonzero(look.prompt_of % 2 == odd)
    return replace(
        look,
        images=look.images[rows],
        prompt_of=look.prompt_of[rows],
        class_images=look.class_images[odd::2],
        texts=None if look.texts is None else look.texts[rows],
        asked=[look.asked[int(row)] for row in rows],
    )


def _estimate(measure: Measure, looks: Sequence[Look]) -> Estimate:
    if measure.metric == "accuracy":
        return accuracy(looks, measure.network.split, measure.network.attributes)
    return over_subjects(measure.metric, looks)
