"""Loading what a chunk needs: networks and encoders, of which a worker keeps a few in memory."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from isocost.diffusion.denoiser import BindingNetwork, Network
from isocost.diffusion.plans import evaluations_of, serving
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.errors import DataError, SpecError
from isocost.sampling.engine import prepare
from isocost.sampling.folders import is_diffusers, open_folder
from isocost.sampling.generate import Pipeline
from isocost.scoring.extractors import ClipFeatures, load_extractor
from isocost.specs import CheckpointRef, EngineSpec, Grid, SampleKey, StudySpec
from isocost.study.artifacts import EncoderRefs
from isocost.study.grid import Scorer
from isocost.training.state import Checkpoint

# Both checkpoints of a stitch, a guide, and what the next chunk calls for.
NETWORKS_KEPT = 4


def load_pipeline(key: SampleKey, folders: Mapping[str, Path], refs: EncoderRefs) -> Pipeline:
    """Everything that turns prompts into the images of a sample key.

    Args:
        folders: content digest -> folder, of every checkpoint that the plan calls.
        refs: encoders of the study's own members; a checkpoint of others has its own beside it.

    Raises:
        DataError: a checkpoint is damaged, or is not the one that the plan names.
    """
    plan = key.plan
    own = folders[plan.stages[-1].checkpoint.content_digest]
    autoencoder, text_encoder = encoders_of(own, refs)
    dropouts = [caption_dropout(folders[ref.content_digest]) for ref in dict.fromkeys(serving(plan).values())]
    called = {ref.content_digest: ref for ref in evaluations_of(plan)}
    return Pipeline(
        network={digest: _network(folders[digest], ref, key.engine) for digest, ref in called.items()},  # pyright: ignore[reportArgumentType]
        autoencoder=_autoencoder(autoencoder),
        text_encoder=_text_encoder(text_encoder),
        latent_shape=key.latent_shape,
        caption_dropout=min((dropout for dropout in dropouts if dropout is not None), default=None),
        takes_image=not is_diffusers(own) and Checkpoint.load(own).spec.model.takes_image,
    )


def encoders_of(folder: Path, refs: EncoderRefs) -> tuple[str, str]:
    """References of the autoencoder and the text encoder that a checkpoint was trained with."""
    if not is_diffusers(folder):
        return refs.autoencoder, refs.text_encoder
    opened = open_folder(folder)
    return opened.autoencoder, opened.text_encoder


def caption_dropout(folder: Path) -> float | None:
    """Of a checkpoint's training; None where it is somebody else's, and not known."""
    return None if is_diffusers(folder) else Checkpoint.load(folder).spec.caption_dropout


@functools.lru_cache(maxsize=NETWORKS_KEPT)
def _network(folder: Path, ref: CheckpointRef, engine: EngineSpec) -> Network | BindingNetwork:
    module, found = _module(folder, ref)
    if found.content_digest != ref.content_digest:
        raise DataError(
            f"{folder}: holds checkpoint {found.content_digest[:12]}, not {ref.content_digest[:12]} as when the sweep "
            "began: put that one back, or run the sweep again."
        )
    return prepare(module, engine)


def _module(folder: Path, ref: CheckpointRef) -> tuple[nn.Module, CheckpointRef]:
    """A checkpoint's network, and what it is by content."""
    if is_diffusers(folder):
        opened = open_folder(folder)
        unet = opened.unet()
        return unet, opened.ref_with(unet)
    checkpoint = Checkpoint.load(folder)
    return checkpoint.network(ref.weights), checkpoint.ref(ref.weights)


# A worker makes many chunks: what it loads, it keeps.
_autoencoder = functools.lru_cache(maxsize=2)(load_autoencoder)
_text_encoder = functools.lru_cache(maxsize=2)(load_text_encoder)


@functools.lru_cache(maxsize=2)
def load_scorer(scorer: Scorer) -> ClipFeatures:
    """The CLIP that chooses in best-of-n. Raises `DataError` where it is not the one that the plan names."""
    clip = open_scorer(scorer.reference)
    if clip.digest != scorer.digest:
        raise DataError(f"{scorer.reference}: another CLIP than when the sweep began: run the sweep again.")
    return clip


def open_scorer(reference: str) -> ClipFeatures:
    """Raises `SpecError` for an extractor that does not read captions."""
    clip = load_extractor(reference)
    if not isinstance(clip, ClipFeatures):
        raise SpecError(f"scorer '{reference}' cannot compare images with captions: take a CLIP.")
    return clip


def scorers_of(study: StudySpec, extractor: str) -> dict[str, Scorer]:
    """The CLIPs that choose in the study's grids, by what these call them; `extractor` is what "own" means.

    Raises `SpecError` as `open_scorer` does, `DataError` for weights that are missing.
    """
    named = {grid.scorer: extractor if grid.scorer == "own" else grid.scorer for grid in scoring_grids(study)}
    return {name: Scorer(reference, open_scorer(reference).digest) for name, reference in named.items()}


def scoring_grids(study: StudySpec) -> list[Grid]:
    """The grids with best-of-n."""
    return [grid for grid in (*study.grids, *([study.curve] if study.curve else [])) if max(grid.best_of) > 1]
