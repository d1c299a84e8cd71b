"""What a study builds once and every cell shares: encoders, encoded data, trained members, references."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isocost.data import scenes
from isocost.data.degradation import DEGRADATIONS
from isocost.data.images import CaptionedImages, Decoded, open_images, square
from isocost.data.prompts import REFERENCE_SEED, PromptList, listed, prompt_list, ways
from isocost.encoders.autoencoder import Autoencoder, load_autoencoder
from isocost.encoders.latents import LatentShards
from isocost.encoders.live import LiveLatents, encode_live
from isocost.encoders.precompute import IMAGES_PER_SHARD, encode_share, precompute, refuse_changed
from isocost.encoders.text import TextEncoder, load_text_encoder
from isocost.errors import lookup
from isocost.models.cost import parameters
from isocost.runlog import images_seen
from isocost.sampling.checkpoints import Traits
from isocost.sampling.folders import DiffusersFolder, open_folder
from isocost.scoring.evaluate import Against
from isocost.scoring.extractors import Extractor
from isocost.scoring.protocols import is_protocol, protocol_prompts
from isocost.scoring.references import ReferenceSet, load_reference
from isocost.scoring.sets import ImageSet, shared
from isocost.scoring.streaming import Column, extract
from isocost.specs import CheckpointRef, DataSource, Evaluation, StudySpec, digest_of
from isocost.study.encoders import train_encoders
from isocost.study.executors import Executor, Processes, Task
from isocost.study.grid import Run, StudyCheckpoint
from isocost.study.store import Store, write_atomically
from isocost.study.superres import crops_as_prompts, low_resolution, start_folder, undistilled_ref
from isocost.study.together import AS_SPECIFIED, Training, speed_of, train_member, train_together
from isocost.training import loop
from isocost.training.parallel import ALONE, PLAIN
from isocost.training.state import Checkpoint

Progress = Callable[[str, float, float, str], None]
"""progress(stage, done, total, note): called often; done and total are in the stage's own unit."""


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """The default progress: says nothing."""


@dataclass(frozen=True)
class EncoderRefs:
    """Which encoders a study uses: shipped names, hub ids or folders, with "own" ones already trained."""

    autoencoder: str
    text_encoder: str
    extractor: str
    classifier: str


def encoder_refs(study: StudySpec, store: Store, executor: Executor, progress: Progress = silent) -> EncoderRefs:
    """The study's encoders; those that are "own" are trained here, a process each, unless the store has them.

    Without members only the extractor is of use: checkpoints of others have their own encoders beside them.
    """
    refs = {
        "autoencoder": study.data.autoencoder,
        "text_encoder": study.data.text_encoder,
        "extractor": study.evaluation.extractor,
    }
    own = [kind for kind, ref in refs.items() if ref == "own" and (study.members or kind == "extractor")]
    if own:
        training = study.data.encoder_training
        source = digest_of([_identity(study.data, "train"), training and training.canonical()])[:16]
        folder = store.path / "encoders" / source
        refs |= {kind: str(folder / kind) for kind in own}
        train_encoders(own, study.data, folder, executor, progress)
    return EncoderRefs(**refs, classifier=study.evaluation.classifier)


def encoded_data(
    study: StudySpec, store: Store, refs: EncoderRefs, executor: Executor, progress: Progress = silent
) -> LatentShards | LiveLatents:
    """The study's training data, encoded once for every member; the work is shared out among the workers."""
    autoencoder = load_autoencoder(refs.autoencoder)
    text_encoder = load_text_encoder(refs.text_encoder)
    folder = data_folder(study.data, store, refs, autoencoder, text_encoder)
    if study.data.encode == "live":
        return encode_live(study.data, autoencoder, text_encoder, folder, (refs.autoencoder, refs.text_encoder))
    shares = executor.workers
    if shares > 1 and not (folder / "header.json").is_file():
        wanted = -(-(study.data.images or 0) // IMAGES_PER_SHARD)

        def report(*_: object) -> None:
            done = len(list(folder.glob("latents-*.safetensors")))
            progress("encode images", done, max(wanted, done), "")

        progress("encode images", 0, 1, "")
        tasks = [Task((study.data, refs, folder, share, shares), f"images {share}/{shares}") for share in range(shares)]
        executor.run(_encode_share, tasks, on_done=report, on_wait=report)
    return precompute(
        study.data,
        autoencoder,
        text_encoder,
        folder,
        progress=lambda done, total: progress("encode images", done, total, ""),
    )


def data_folder(
    source: DataSource, store: Store, refs: EncoderRefs, autoencoder: Autoencoder, text_encoder: TextEncoder
) -> Path:
    """Where the store keeps a source's training data, as these encoders encode them.

    Raises `DataError` where the store has them from files that have changed since.
    """
    store.locate({autoencoder.digest: refs.autoencoder, text_encoder.digest: refs.text_encoder})
    how = [value for name, value in source.canonical().items() if name in ("encode", "embeddings")]
    name = digest_of([_identity(source, "train"), autoencoder.digest, text_encoder.digest, *how])[:16]
    folder = store.path / "data" / name
    refuse_changed(source, autoencoder, text_encoder, set(folder.parent.glob("*")) - {folder})
    return folder


def _encode_share(source: DataSource, refs: EncoderRefs, folder: Path, share: int, shares: int) -> None:
    encode_share(
        source, load_autoencoder(refs.autoencoder), load_text_encoder(refs.text_encoder), folder, share, shares
    )


def _identity(source: DataSource, split: str) -> list:
    """What a split's images are a function of: never the paths they lie at."""
    if source.kind == "scenes":
        return [split, source.seed, source.scenes.canonical(), source.resolution, source.images]
    filters = [source.canonical()["filters"]] if source.filters and split == "train" else []
    if source.degradation is not None:
        filters = [lookup(DEGRADATIONS, source.degradation, "degradation").digest, source.seed]
    return [split, open_images(getattr(source, split), False).digest, source.resolution, source.images, *filters]


# --- training ---


def run_folder(store: Store, run: Run) -> Path:
    return store.path / "checkpoints" / run.spec.digest


def train_runs(
    runs: Sequence[Run],
    store: Store,
    data: LatentShards | LiveLatents,
    executor: Executor,
    progress: Progress = silent,
    training: Training = AS_SPECIFIED,
) -> None:
    """Train what is not trained yet, largest first: a process each, or one after the other by all ranks."""
    training = replace(training, threads=_threads(len(runs), executor, training))
    todo = [run for run in runs if not loop.is_finished(run_folder(store, run), run.spec)]
    todo.sort(key=lambda run: parameters(run.model), reverse=True)
    folders = [run_folder(store, run) for run in todo]
    total = sum(run.spec.images for run in todo)

    def report(*_: object) -> None:
        seen = [images_seen(folder) for folder in folders]
        notes = [f"{run.model.name} {count / run.spec.images:.0%}" for run, count in zip(todo, seen, strict=True)]
        progress("train members", sum(seen), total, ", ".join([*notes, *speed_of(todo, folders, seen, training)]))

    arguments = [(run.spec, data.folder, folder, training) for run, folder in zip(todo, folders, strict=True)]
    tasks = [Task(call, f"training of {run.model.name}") for run, call in zip(todo, arguments, strict=True)]
    if training.ranks.world > 1:
        Processes(1).run(train_together, tasks, on_done=report, on_wait=report)
    else:
        executor.run(train_member, tasks, on_done=report, on_wait=report)


def _threads(runs: int, executor: Executor, training: Training) -> int:
    """Of each training, where a study has fewer members than this machine has workers.

    By all members, not by those that are left to train: it moves last bits, and a study gone on with keeps its own.
    """
    here = isinstance(executor, Processes) and training.ranks == ALONE and training.layout == PLAIN
    return max(1, executor.workers // max(runs, 1)) if here else 1


def kept_checkpoints(store: Store, run: Run, refs: EncoderRefs) -> list[StudyCheckpoint]:
    """A run's checkpoints kept for scoring, by images seen; the final one is last."""
    return [
        StudyCheckpoint(
            name=run.model.name,
            model=run.model,
            seed=run.seed,
            ref=checkpoint.ref("ema"),
            traits=Traits.of(run.spec),
            folder=checkpoint.folder,
            autoencoder=refs.autoencoder,
            text_encoder=refs.text_encoder,
            trained=checkpoint,
        )
        for checkpoint in map(Checkpoint.load, loop.kept_checkpoints(run_folder(store, run), run.spec))
    ]


def undistilled_checkpoints(store: Store, runs: Sequence[Run], refs: EncoderRefs) -> list[StudyCheckpoint]:
    """What members were before their study distilled them."""
    found = []
    for run in runs:
        if run.spec.teacher is None:
            continue
        root = undistilled_ref(Checkpoint.load(start_folder(store.path, run.spec.teacher)))
        checkpoint = Checkpoint.load(start_folder(store.path, root))
        found.append(
            StudyCheckpoint(
                name=run.model.name,
                model=checkpoint.spec.model,
                seed=run.seed,
                ref=root,
                traits=Traits.of(checkpoint.spec),
                folder=checkpoint.folder,
                autoencoder=refs.autoencoder,
                text_encoder=refs.text_encoder,
                trained=checkpoint,
                undistilled=True,
            )
        )
    return found


def given_checkpoints(study: StudySpec) -> list[StudyCheckpoint]:
    """The checkpoints of others, read whole. Raises `DataError` naming a file that is missing, corrupt or unfit."""
    opened = {name: open_folder(folder) for name, folder in study.given.items()}
    return [given_checkpoint(name, folder, folder.ref) for name, folder in opened.items()]


def given_checkpoint(name: str, folder: DiffusersFolder, ref: CheckpointRef) -> StudyCheckpoint:
    """Somebody's checkpoint under a name of the study's."""
    return StudyCheckpoint(
        name=name,
        model=folder,
        seed=None,
        ref=ref,
        traits=folder.traits,
        folder=folder.path,
        autoencoder=folder.autoencoder,
        text_encoder=folder.text_encoder,
    )


# --- real images ---

SCENES_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class HeldOut(ImageSet):
    """Up to `count` real images that no member was trained on, prepared as the training images."""

    name: str
    source: DataSource
    count: int

    @functools.cached_property
    def _files(self) -> CaptionedImages:
        return open_images(self.source.val, captions_required=False)

    @functools.cached_property
    def _scenes(self) -> Callable[[int], np.ndarray]:
        """Scenes in blocks: drawing many at once is quicker."""

        def draw(block: int) -> np.ndarray:
            places = range(block * SCENES_AT_ONCE, (block + 1) * SCENES_AT_ONCE)
            return scenes.draw(REFERENCE_SEED, places, self.source.resolution, self.source.scenes)

        return shared(draw)

    def __len__(self) -> int:
        return self.count if self.source.kind == "scenes" else min(self.count, len(self._files))

    def where(self, index: int) -> str:
        return f"{self.name}: scene {index}" if self.source.kind == "scenes" else self._files.where(index)

    def read(self, index: int) -> Decoded:
        if self.source.kind == "scenes":
            block, place = divmod(index, SCENES_AT_ONCE)
            return Decoded(self._scenes(block)[place])
        return Decoded(square(self._files.decoded(index).pixels, self.source.resolution))


def reference_set(study: StudySpec, store: Store, extractor: Extractor) -> ReferenceSet:
    """The held-out real images in an extractor's features, built once and kept in the store."""
    count = study.evaluation.references
    held_out = study.data.model_copy(update={"images": count, "seed": REFERENCE_SEED})
    images = HeldOut(f"held-out images of {study.name}", study.data, count)
    return _reference_of(images, _identity(held_out, "val"), store, extractor)


def _reference_of(images: ImageSet, identity: Any, store: Store, extractor: Extractor) -> ReferenceSet:
    """Images in an extractor's features, built once and kept in the store. `identity`: what tells the images apart."""
    digest = digest_of([identity, extractor.digest])
    path = store.path / "references" / f"{digest}.safetensors"
    if path.is_file():
        built = load_reference(path)
        if built.made_by is not None:  # older files do not say what they are
            return built
    found, _ = extract(images, [Column("features", extractor)])
    built = ReferenceSet(found["features"], extractor.name, extractor.digest, digest, images.name)
    write_atomically(path, built.to_bytes())
    return built


def against(study: StudySpec, store: Store) -> Against:
    """What a study is scored against: its `reference_files`, or its held-out images by whichever extractor; of
    super-resolution, the crops themselves."""
    if study.evaluation.reference_files:
        return given_references(study.evaluation)
    if (pairs := low_resolution(study, store)) is not None:
        return Against(make=lambda extractor: _reference_of(pairs.targets, pairs.digest, store, extractor))
    return Against(make=lambda extractor: reference_set(study, store, extractor))


def given_references(evaluation: Evaluation) -> Against:
    """`reference_files`, read. Raises `DataError` naming one that is missing or corrupt."""
    return Against([load_reference(path) for path in evaluation.reference_files])


# --- prompts ---


def scored_prompts(study: StudySpec) -> PromptList:
    """What cells are drawn of: the prompts of `evaluation.prompts`, or ways between them."""
    prompts = prompts_of(study.evaluation.prompts, study.data)
    return ways(prompts, study.evaluation.between) if study.evaluation.between else prompts


def prompts_of(name: str, source: DataSource) -> PromptList:
    """The prompts called `name`: those of a protocol (`coco2014-30k:FOLDER`), or `data.prompts.prompt_list`'s.

    Of super-resolution, the images to upscale: the crops of a protocol (`sr-64:FOLDER`).
    """
    if source.degradation is not None:
        return crops_as_prompts(name, source.degradation)
    if is_protocol(name):
        return listed(name.partition(":")[0], protocol_prompts(name))
    return prompt_list(name, source)
