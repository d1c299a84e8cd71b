"""What one image of a cell costs: evaluations of each checkpoint, honest GFLOPs and the paper's cost."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from isocost.diffusion.plans import evaluations_of, serving
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.models.cost import (
    ImageCost,
    autoencoder_flops,
    clip_flops,
    forward_flops,
    paper_cost,
    parameters,
    training_flops,
)
from isocost.models.ladder import LADDERS
from isocost.sampling.folders import DiffusersFolder
from isocost.specs import ModelSpec, StudySpec
from isocost.study.grid import Cell, Scorer, StudyCheckpoint
from isocost.study.pipelines import load_scorer
from isocost.training.lineage import training_gflops


class CheckpointCost(NamedTuple):
    """FLOPs of one evaluation of one image, weights of the UNet, and what training took, alone and with all that it
    came from (None where it was given)."""

    flops: int
    params: int
    train_gflops: float | None
    total_train_gflops: float | None


class CellCosts:
    """Costs of a study's cells: each checkpoint is charged its own evaluations, and best-of-n all n candidates."""

    def __init__(self, study: StudySpec, checkpoints: Sequence[StudyCheckpoint]):
        self.costs = {checkpoint.ref: checkpoint_cost(checkpoint) for checkpoint in checkpoints}
        self.unit = _unit(study, checkpoints) or max(cost.flops for cost in self.costs.values())

    def of(self, cell: Cell) -> dict[str, Any]:
        """Costs of one image; `params` and `train_gflops` are those of all checkpoints that it takes, and
        `total_train_gflops` with what these started from and learned from.

        `paper_cost` is the norm. cost of whichever member serves a step, summed over steps and candidates: guidance's
        evaluations are left out, as in the paper. `norm_cost` is that of the mean step.
        """
        plan = cell.plan
        candidates = plan.best_of.n if plan.best_of else 1
        evaluations = evaluations_of(plan)
        taken = [self.costs[ref] for ref in evaluations]
        training = [cost.train_gflops for cost in taken if cost.train_gflops is not None]
        in_all = [cost.total_train_gflops for cost in taken if cost.total_train_gflops is not None]
        served = Counter(serving(plan).values())
        norm_cost = sum(self.costs[ref].flops / self.unit * (count / plan.steps) for ref, count in served.items())
        image_flops, caption_flops = scorer_flops(cell.scorer) if cell.scorer else (0, 0)
        last = cell.checkpoints[-1]
        latent_size = last.traits.latent_shape[1:]
        image = ImageCost(
            unet=candidates * sum(count * self.costs[ref].flops for ref, count in evaluations.items()),
            text_encoder=(2 if plan.guidance.needs_empty_prompt else 1) * text_flops(last.text_encoder),
            decoder=candidates * decoder_flops(last.autoencoder, latent_size),
            scorer=candidates * image_flops + caption_flops,
            encoder=encoder_flops(last.autoencoder, latent_size) if last.traits.takes_image else 0,
        )
        return {
            "params": sum(cost.params for cost in taken),
            "train_gflops": sum(training) if len(training) == len(taken) else None,
            "total_train_gflops": sum(in_all) if len(in_all) == len(taken) else None,
            "norm_cost": norm_cost,
            "evaluations": candidates * sum(evaluations.values()),
            "gflops_per_image": image.gflops,
            "paper_cost": paper_cost(norm_cost, plan.steps) * candidates,
        }


def checkpoint_cost(checkpoint: StudyCheckpoint) -> CheckpointCost:
    """What a checkpoint costs at the size of its own latents and the length of its own text encoder."""
    model, length = checkpoint.model, context_length(checkpoint.text_encoder)
    if isinstance(model, DiffusersFolder):
        return CheckpointCost(model.forward_flops(length), model.parameters(), None, None)
    size = (checkpoint.traits.latent_shape[1], length)
    if checkpoint.trained is not None:
        own, in_all = training_gflops(checkpoint.trained)
    else:
        own = in_all = training_flops(model, *size) * checkpoint.ref.images_seen / 1e9
    return CheckpointCost(forward_flops(model, *size), parameters(model), own, in_all)


def _unit(study: StudySpec, checkpoints: Sequence[StudyCheckpoint]) -> int | None:
    """FLOPs of an evaluation of norm. cost 1, the reference member's; None where there are no members."""
    trained = next((one for one in checkpoints if isinstance(one.model, ModelSpec)), None)
    if trained is None:
        return None
    size = (trained.traits.latent_shape[1], context_length(trained.text_encoder))
    return forward_flops(reference_member(study), *size)


def reference_member(study: StudySpec) -> ModelSpec:
    """The member of norm. cost 1: its ladder's reference, or the largest member of a family without a ladder."""
    families = {ladder.reference.family: ladder.reference for ladder in LADDERS.values()}
    first = study.members[0]
    shared = families.get(first.family)
    if shared is None:
        return max(study.members, key=parameters)
    # Its own number of heads: they move no FLOP, and those of a member of another width may not divide its width.
    same_input = {name: getattr(first, name) for name in ("context_dim", "in_channels", "out_channels")}
    return shared.model_copy(update=same_input)


@functools.lru_cache(maxsize=64)
def decoder_flops(autoencoder: str, latent_size: tuple[int, int]) -> int:
    """FLOPs of decoding one image of latents [h, w]."""
    return autoencoder_flops(load_autoencoder(autoencoder).module, latent_size)


@functools.lru_cache(maxsize=64)
def encoder_flops(autoencoder: str, latent_size: tuple[int, int]) -> int:
    """FLOPs of encoding one image to latents [h, w], as a low-resolution one is."""
    return autoencoder_flops(load_autoencoder(autoencoder).module, latent_size, "encode")


@functools.lru_cache(maxsize=64)
def text_flops(text_encoder: str) -> int:
    """FLOPs of encoding one prompt."""
    return load_text_encoder(text_encoder).flops


@functools.lru_cache(maxsize=64)
def scorer_flops(scorer: Scorer) -> tuple[int, int]:
    """FLOPs of looking at one candidate of best-of-n, and of reading one caption."""
    return clip_flops(load_scorer(scorer).clip.module)


@functools.lru_cache(maxsize=64)
def context_length(text_encoder: str) -> int:
    """Tokens of a prompt."""
    return load_text_encoder(text_encoder).context_shape[0]
