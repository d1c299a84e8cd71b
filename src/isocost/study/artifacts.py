"""What a study builds once and every cell shares: encoders, encoded data, trained members, references."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isocost.data import scenes
from isocost.data.images import CaptionedImages, Decoded, open_images, square
from isocost.data.prompts import REFERENCE_SEED, PromptList, listed, prompt_list
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import IMAGES_PER_SHARD, encode_share, precompute
from isocost.encoders.text import load_text_encoder
from isocost.models.cost import parameters
from isocost.runlog import images_seen
from isocost.scoring.evaluate import Against
from isocost.scoring.extractors import Extractor
from isocost.scoring.protocols import is_protocol, protocol_prompts
from isocost.scoring.references import ReferenceSet, load_reference
from isocost.scoring.sets import ImageSet, shared
from isocost.scoring.streaming import Column, extract
from isocost.specs import CheckpointRef, DataSource, Evaluation, StudySpec, TrainSpec, digest_of
from isocost.study.encoders import train_encoders
from isocost.study.executors import run_tasks
from isocost.study.grid import Run
from isocost.study.store import Store, write_atomically
from isocost.training import loop
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


def encoder_refs(study: StudySpec, store: Store, workers: int = 1, progress: Progress = silent) -> EncoderRefs:
    """The study's encoders; those that are "own" are trained here, a process each, unless the store has them."""
    refs = {
        "autoencoder": study.data.autoencoder,
        "text_encoder": study.data.text_encoder,
        "extractor": study.evaluation.extractor,
    }
    own = [kind for kind, ref in refs.items() if ref == "own"]
    if own:
        training = study.data.encoder_training
        source = digest_of([_identity(study.data, "train"), training and training.canonical()])[:16]
        folder = store.path / "encoders" / source
        refs |= {kind: str(folder / kind) for kind in own}
        train_encoders(own, study.data, folder, workers, progress)
    return EncoderRefs(**refs, classifier=study.evaluation.classifier)


def encoded_data(
    study: StudySpec, store: Store, refs: EncoderRefs, workers: int = 1, progress: Progress = silent
) -> LatentShards:
    """The study's training data, encoded once for every member; the work is shared out among `workers`."""
    autoencoder = load_autoencoder(refs.autoencoder)
    text_encoder = load_text_encoder(refs.text_encoder)
    store.locate({autoencoder.digest: refs.autoencoder, text_encoder.digest: refs.text_encoder})
    name = digest_of([_identity(study.data, "train"), autoencoder.digest, text_encoder.digest])[:16]
    folder = store.path / "data" / name
    if workers > 1 and not (folder / "header.json").is_file():
        wanted = -(-(study.data.images or 0) // IMAGES_PER_SHARD)

        def report(*_: object) -> None:
            done = len(list(folder.glob("latents-*.safetensors")))
            progress("encode images", done, max(wanted, done), "")

        progress("encode images", 0, 1, "")
        tasks = [(study.data, refs, folder, share, workers) for share in range(workers)]
        run_tasks(_encode_share, tasks, workers=workers, on_done=report, on_wait=report)
    return precompute(
        study.data,
        autoencoder,
        text_encoder,
        folder,
        progress=lambda done, total: progress("encode images", done, total, ""),
    )


def _encode_share(source: DataSource, refs: EncoderRefs, folder: Path, share: int, shares: int) -> None:
    encode_share(
        source, load_autoencoder(refs.autoencoder), load_text_encoder(refs.text_encoder), folder, share, shares
    )


def _identity(source: DataSource, split: str) -> list:
    """What a split's images are a function of: never the paths they lie at."""
    if source.kind == "scenes":
        return [split, source.seed, source.scenes.canonical(), source.resolution, source.images]
    return [split, open_images(getattr(source, split), False).digest, source.resolution, source.images]


# --- training ---


def run_folder(store: Store, run: Run) -> Path:
    return store.path / "checkpoints" / run.spec.digest


def train_runs(
    runs: Sequence[Run], store: Store, data: LatentShards, workers: int, progress: Progress = silent
) -> None:
    """Train what is not trained yet, largest first, a process each."""
    todo = [run for run in runs if not loop.is_finished(run_folder(store, run), run.spec)]
    todo.sort(key=lambda run: parameters(run.model), reverse=True)
    folders = [run_folder(store, run) for run in todo]
    total = sum(run.spec.images for run in todo)

    def report(*_: object) -> None:
        seen = [images_seen(folder) for folder in folders]
        notes = [f"{run.model.name} {count / run.spec.images:.0%}" for run, count in zip(todo, seen, strict=True)]
        progress("train members", sum(seen), total, ", ".join(notes))

    tasks = [(run.spec, data.folder, folder) for run, folder in zip(todo, folders, strict=True)]
    run_tasks(_train, tasks, workers=workers, on_done=report, on_wait=report)


def _train(spec: TrainSpec, data: Path, folder: Path) -> None:
    loop.train(spec, LatentShards(data), folder)


def kept_checkpoints(store: Store, run: Run) -> list[tuple[CheckpointRef, Path]]:
    """Checkpoints kept for scoring, and where they lie, by images seen; the final one is last."""
    folders = loop.kept_checkpoints(run_folder(store, run), run.spec)
    return [(Checkpoint.load(folder).ref("ema"), folder) for folder in folders]


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
    digest = digest_of([_identity(held_out, "val"), extractor.digest])
    path = store.path / "references" / f"{digest}.safetensors"
    if path.is_file():
        built = load_reference(path)
        if built.made_by is not None:  # older files do not say what they are
            return built
    images = HeldOut(f"held-out images of {study.name}", study.data, count)
    found, _ = extract(images, [Column("features", extractor)])
    built = ReferenceSet(found["features"], extractor.name, extractor.digest, digest, images.name)
    write_atomically(path, built.to_bytes())
    return built


def against(study: StudySpec, store: Store) -> Against:
    """What a study is scored against: its `reference_files`, or its held-out images by whichever extractor."""
    if study.evaluation.reference_files:
        return given_references(study.evaluation)
    return Against(make=lambda extractor: reference_set(study, store, extractor))


def given_references(evaluation: Evaluation) -> Against:
    """`reference_files`, read. Raises `DataError` naming one that is missing or corrupt."""
    return Against([load_reference(path) for path in evaluation.reference_files])


# --- prompts ---


def prompts_of(name: str, source: DataSource) -> PromptList:
    """The prompts called `name`: those of a protocol (`coco2014-30k:FOLDER`), or `data.prompts.prompt_list`'s."""
    if is_protocol(name):
        return listed(name.partition(":")[0], protocol_prompts(name))
    return prompt_list(name, source)
