"""What a study builds once and every cell shares: encoders, encoded data, trained members, references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from isocost.data import scenes
from isocost.data.images import open_images, square_images
from isocost.data.prompts import REFERENCE_SEED
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.own import train_own
from isocost.encoders.precompute import IMAGES_PER_SHARD, LatentShards, encode_share, precompute
from isocost.encoders.text import load_text_encoder
from isocost.models.cost import parameters
from isocost.scoring.extractors import AttributeLogits, ClipFeatures, attribute_logits, clip_features
from isocost.specs import CheckpointRef, DataSource, StudySpec, TrainSpec, digest_of
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
        done = 0

        def on_done(*_: object) -> None:
            nonlocal done
            done += 1
            progress("train encoders", done, len(own), "")

        progress("train encoders", 0, len(own), ", ".join(own))
        run_tasks(train_own, [(kind, study.data, folder / kind) for kind in own], workers=workers, on_done=on_done)
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
        seen = [loop.images_seen(folder) for folder in folders]
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


def held_out_images(source: DataSource, count: int) -> np.ndarray:
    """Up to `count` real images [n, H, W, 3] uint8 that no member was trained on, prepared as the training images."""
    if source.kind == "scenes":
        return scenes.draw(REFERENCE_SEED, range(count), source.resolution, source.scenes)
    images = open_images(source.val, captions_required=False)
    return square_images(images, range(min(count, len(images))), source.resolution)


def extractors_of(study: StudySpec, refs: EncoderRefs) -> tuple[ClipFeatures, AttributeLogits | None]:
    """The CLIP that scores, and the attribute classifier where caption accuracy is asked for."""
    judged = "accuracy" in study.evaluation.metrics
    return clip_features(refs.extractor), attribute_logits(refs.classifier) if judged else None


def reference_features(study: StudySpec, store: Store, extractor: ClipFeatures) -> tuple[str, np.ndarray]:
    """Digest and features [n, D] (fp16 as stored) of the held-out real images, built once."""
    source = study.data
    held_out = source.model_copy(update={"images": study.evaluation.references, "seed": REFERENCE_SEED})
    digest = digest_of([_identity(held_out, "val"), extractor.digest])
    path = store.path / "references" / f"{digest}.safetensors"
    if not path.is_file():
        features = extractor(held_out_images(source, study.evaluation.references)).astype(np.float16)
        write_atomically(path, save({"features": features}))
    return digest, load_file(path)["features"]
