"""Prompts to images: text encoder, trajectory and decoder, a chunk at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isocost.data.prompts import Drawn
from isocost.encoders.autoencoder import Autoencoder
from isocost.encoders.text import TextEncoder
from isocost.errors import SpecError
from isocost.sampling.checkpoints import DRAWS_NONE, require_empty_prompt
from isocost.sampling.engine import Networks, sample_latents, threads
from isocost.sampling.interpolate import embedded
from isocost.specs import EngineSpec, SamplingPlan


@dataclass(frozen=True)
class Pipeline:
    """What turns prompts into images: prepared networks and the encoders they were trained with.

    network: of the plan's checkpoint; of a plan with several, content digest -> network.
    caption_dropout: the least of theirs; None: unknown, as of other people's checkpoints.
    takes_image: whether they upscale images (`isocost.sampling.upscale`) rather than draw from prompts.
    """

    network: Networks
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    latent_shape: tuple[int, int, int]
    caption_dropout: float | None
    takes_image: bool = False


@dataclass(frozen=True)
class Chunk:
    """Images [n, H, W, 3] uint8, network evaluations an image (of all checkpoints together), and seconds an image.

    Seconds hold everything from prompt to pixels; a prompt that this process has encoded before costs no text encoder.
    """

    images: np.ndarray
    evaluations: int
    seconds: float


def generate(
    pipeline: Pipeline, plan: SamplingPlan, engine: EngineSpec, prompts: Sequence[tuple[str, Drawn, int]]
) -> Chunk:
    """The images of up to engine.batch prompts, each given as (prompt id, text or what lies between two, replicate).

    Image i is a function of (prompt id, what is drawn, replicate), the plan and the engine: not of the other prompts.

    Raises:
        SpecError: a guided plan on a checkpoint trained without caption dropout, whose empty prompt means nothing; a
            checkpoint that upscales images.
    """
    if pipeline.takes_image:
        raise SpecError(DRAWS_NONE)
    require_empty_prompt(plan, pipeline.caption_dropout)
    start = time.perf_counter()
    with threads(engine.threads):
        context = embedded(pipeline.text_encoder, [drawn for _, drawn, _ in prompts])
        null_context = pipeline.text_encoder.encode([""])[0]
        latents, evaluations = sample_latents(
            pipeline.network,
            plan,
            context,
            null_context,
            [(prompt_id, replicate) for prompt_id, _, replicate in prompts],
            pipeline.latent_shape,
            engine,
        )
        images = pipeline.autoencoder.decode(latents.cpu().numpy())
    return Chunk(images, sum(evaluations.values()), (time.perf_counter() - start) / len(prompts))
