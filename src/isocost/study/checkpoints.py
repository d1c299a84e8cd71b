"""Finding a checkpoint that a user points at, and the encoders it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.errors import DataError, SpecError, did_you_mean
from isocost.sampling.engine import prepare
from isocost.sampling.generate import Pipeline
from isocost.specs import EngineSpec
from isocost.study.store import Store
from isocost.training import state
from isocost.training.state import Checkpoint


@dataclass(frozen=True)
class Found:
    """A checkpoint, and references of the encoders whose latents and embeddings it was trained on."""

    checkpoint: Checkpoint
    autoencoder: str
    text_encoder: str
    store: Store | None


def find(path: str | Path, member: str | None = None) -> Found:
    """A checkpoint from its own folder, a training run's (its newest), or a store's and the name of a member.

    Raises:
        SpecError: the path is none of these, or a store has no such member.
        DataError: the checkpoint is damaged, or its encoders are not to be found.
    """
    path = Path(path)
    store = _store_above(path)
    if (path / "study.yaml").is_file():
        path = _run_of(Store(path), member)
    if not (path / "state.json").is_file():
        saved = state.checkpoints(path)
        if not saved:
            raise SpecError(f"{path}: no checkpoint here. Give a checkpoint's folder, a training run's, or a store's.")
        path = saved[-1]
    checkpoint = Checkpoint.load(path)
    autoencoder, text_encoder = (
        _located(store, digest, what)
        for digest, what in (
            (checkpoint.spec.data.autoencoder, "autoencoder"),
            (checkpoint.spec.data.text_encoder, "text encoder"),
        )
    )
    return Found(checkpoint, autoencoder, text_encoder, store)


def _store_above(path: Path) -> Store | None:
    """The store that a path lies in, if any."""
    resolved = path.resolve()
    for folder in (resolved, *resolved.parents):
        if (folder / "study.yaml").is_file():
            return Store(folder)
    return None


def _run_of(store: Store, member: str | None) -> Path:
    runs = {run["member"]: run["digest"] for run in reversed(store.expansion()["runs"])}
    if not runs:
        raise SpecError(f"{store.path} has no member that was trained there.")
    if member is None and len(runs) > 1:
        raise SpecError(f"{store.path} holds several members: say which with --member ({', '.join(runs)}).")
    chosen = member or next(iter(runs))
    if chosen not in runs:
        raise SpecError(f"{store.path} has no trained member '{chosen}'.{did_you_mean(chosen, runs)}")
    return store.path / "checkpoints" / runs[chosen]


def _located(store: Store | None, digest: str, what: str) -> str:
    """Where the encoder with a digest lies: as the store's locator says, or among the shipped ones."""
    known = store.locator() if store else {}
    if digest in known:
        return known[digest]
    load = load_autoencoder if what == "autoencoder" else load_text_encoder
    shipped = "scenes-vae" if what == "autoencoder" else "scenes-clip-condition"
    if load(shipped).digest == digest:
        return shipped
    raise DataError(
        f"the {what} {digest[:12]} that this checkpoint was trained with is not to be found: keep the checkpoint "
        "in its store, whose locator.json knows it."
    )


def pipeline_of(found: Found, engine: EngineSpec) -> Pipeline:
    """Everything that turns prompts, or small images, into images of a found checkpoint."""
    return Pipeline(
        network=prepare(found.checkpoint.network("ema"), engine),
        autoencoder=load_autoencoder(found.autoencoder),
        text_encoder=load_text_encoder(found.text_encoder),
        latent_shape=found.checkpoint.spec.data.latent_shape,
        caption_dropout=found.checkpoint.spec.caption_dropout,
        takes_image=found.checkpoint.spec.model.takes_image,
    )
