"""Noise and embedded prompts in, latents out: reproducible to the bit under a recorded engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from isocost.diffusion.denoiser import Denoiser, Network, from_unet
from isocost.diffusion.guidance import guide
from isocost.diffusion.noise import Stream, batch_noise
from isocost.diffusion.samplers import sample
from isocost.diffusion.schedule import timestep_pairs
from isocost.errors import SpecError
from isocost.specs import EngineSpec, SamplingPlan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads: their number moves the last bits of a sum, so it is part of the engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(unet: nn.Module, engine: EngineSpec) -> Network:
    """`unet` on the engine's device and dtype (compiled where the engine says so), as a network of fp32 tensors.

    Raises:
        SpecError: the engine's device is not there.
    """
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("engine.device is 'cuda' but torch sees no GPU: set engine.device to 'cpu'.")
    dtype = DTYPES[engine.dtype]
    unet = unet.to(engine.device).eval().requires_grad_(False)
    if dtype != torch.float32:
        unet = unet.to(dtype=dtype)
    run = from_unet(torch.compile(unet) if engine.compiled else unet)  # pyright: ignore[reportArgumentType]

    def network(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return run(x.to(dtype), timestep, context.to(dtype)).float()

    return network


@torch.inference_mode()
def sample_latents(
    network: Network,
    plan: SamplingPlan,
    context: np.ndarray,
    null_context: np.ndarray,
    ids: Sequence[tuple[str, int]],
    latent_shape: tuple[int, int, int],
    engine: EngineSpec,
) -> tuple[torch.Tensor, int]:
    """Latents of one batch, and the network evaluations that each of its images took.

    Args:
        network: from `prepare`.
        context: [n, L, D] text embeddings, n <= engine.batch.
        null_context: [L, D] embedding of the empty prompt.
        ids: n pairs (prompt id, replicate): what the noise of each row is keyed by.
        latent_shape: (C, h, w).

    Returns:
        fp32 latents [n, C, h, w] on the engine's device, and evaluations an image.

    The network always sees engine.batch rows (twice that when guided): a short batch is padded with copies of its
    last row, so that an image's bits do not depend on how many were left.
    """
    count = len(ids)
    if not 0 < count <= engine.batch:
        raise ValueError(f"a batch has 1 to {engine.batch} images, not {count}")
    rows = [min(i, count - 1) for i in range(engine.batch)]
    padded_ids = [ids[i] for i in rows]
    device = torch.device(engine.device)

    def noise(stream: Stream) -> torch.Tensor:
        return torch.from_numpy(batch_noise(padded_ids, stream, latent_shape)).to(device)

    denoiser = Denoiser(network, plan.schedule, plan.prediction)
    guided = guide(
        denoiser,
        torch.from_numpy(context[rows]).to(device),
        torch.from_numpy(null_context).to(device),
        plan.guidance,
    )
    states = sample(
        plan.sampler,
        guided,
        noise("x_T"),
        plan.schedule,
        timestep_pairs(plan.schedule, plan.steps, plan.spacing),
        eta=plan.eta,
        variance=plan.variance,
        step_noise=lambda k: noise(("step", k)),
    )
    x = None
    for state in states:
        x = state
    assert x is not None
    return x[:count], denoiser.evaluations
