"""Noise and embedded prompts in, latents out: reproducible to the bit under a recorded engine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from isocost.diffusion.denoiser import (
    BindingNetwork,
    Conditioned,
    Denoiser,
    GuidanceEmbedded,
    Network,
    Predict,
    from_unet,
)
from isocost.diffusion.noise import Stream, batch_noise
from isocost.diffusion.plans import evaluations_of, guided, pairs_of
from isocost.diffusion.samplers import sample
from isocost.errors import SpecError
from isocost.sampling.unet import LeanUNet
from isocost.specs import CheckpointRef, EngineSpec, SamplingPlan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Networks = Network | BindingNetwork | Mapping[str, Network | BindingNetwork]
"""A prepared network that serves all of a plan, or for each content digest of a plan's checkpoints its own."""


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` torch threads: their number moves the last bits of a sum, so it is part of the engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(unet: nn.Module, engine: EngineSpec) -> Network | BindingNetwork:
    """`unet` on the engine's device and dtype (compiled where the engine says so), as a network of fp32 tensors.

    A lean engine takes a UNet's weights over: use the module for nothing else. Other networks run their own forward
    pass.

    Raises:
        SpecError: the engine's device is not there, or a lean engine does not know a part of the UNet.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    require_device(engine)
    unet = unet.to(engine.device).eval().requires_grad_(False)
    if engine.network == "lean" and isinstance(unet, UNet2DConditionModel):
        return LeanNetwork(unet, engine)
    dtype = DTYPES[engine.dtype]
    if dtype != torch.float32:
        nn.Module.to(unet, dtype)  # diffusers' own `to` warns of parts to be kept in fp32, even where there are none
    run = from_unet(_compiled(unet) if engine.compiled else unet)  # pyright: ignore[reportArgumentType]

    def network(x: Tensor, timestep: Tensor, context: Tensor, *scales: Tensor) -> Tensor:
        return run(x.to(dtype), timestep, context.to(dtype), *scales).float()

    return network


def require_device(engine: EngineSpec) -> None:
    """Raise `SpecError` where the engine's device is not there."""
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("engine.device is 'cuda' but torch sees no GPU: set engine.device to 'cpu'.")


def _compiled(module: nn.Module) -> nn.Module:
    """Compiled at its first call, which takes minutes on two cores, and seconds where it was compiled before.

    Kernels are kept in $TORCHINDUCTOR_CACHE_DIR, by default ~/.cache/isocost/compiled. They do not hold the weights:
    all checkpoints of one member share them.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "isocost" / "compiled"))
    return torch.compile(module, dynamic=False)  # pyright: ignore[reportReturnType]


class LeanNetwork:
    """A UNet that computes keys, values and what a timestep adds once a trajectory.

    bf16 is the weights'; the arithmetic is bf16 too where the device computes in it, and fp32 on processors that would
    only imitate it, many times slower.
    """

    def __init__(self, unet: nn.Module, engine: EngineSpec) -> None:
        self.unet = LeanUNet(nn.Module.to(unet, DTYPES[engine.dtype]))  # pyright: ignore[reportArgumentType]
        if not computes_in(engine):
            self.unet.float()
        self.dtype = next(self.unet.parameters()).dtype
        self.forward = _compiled(self.unet) if engine.compiled else self.unet
        self.shifts: dict[tuple[int, float | None], list[Tensor]] = {}
        self.sizes: set[torch.Size] = set()

    def bind(self, context: Tensor, rows_per_image: int, scale: float | None = None) -> Predict:
        keys_values = self.unet.keys_values(context.to(self.dtype))

        def predict(x: Tensor, t: int) -> Tensor:
            if (t, scale) not in self.shifts:
                self.shifts[t, scale] = self.unet.shifts(t, scale)
            inputs = x.to(self.dtype).repeat(rows_per_image, 1, 1, 1), keys_values, self.shifts[t, scale]
            if self.forward is not self.unet and x.shape[2:] not in self.sizes:
                self.unet(*inputs)  # makes the matrices of small convolutions, which a compiled forward takes as given
                self.sizes.add(x.shape[2:])
            return self.forward(*inputs).float()

        return predict


def computes_in(engine: EngineSpec) -> bool:
    """Whether the engine's device has arithmetic of the engine's dtype, rather than imitates it."""
    return engine.dtype == "fp32" or engine.device == "cuda" or "AVX512" in torch.backends.cpu.get_cpu_capability()


@torch.inference_mode()
def sample_latents(
    networks: Networks,
    plan: SamplingPlan,
    context: np.ndarray,
    null_context: np.ndarray,
    ids: Sequence[tuple[str, int]],
    latent_shape: tuple[int, int, int],
    engine: EngineSpec,
    condition: np.ndarray | None = None,
) -> tuple[Tensor, dict[CheckpointRef, int]]:
    """Latents of one batch, and the evaluations of each checkpoint that each of its images took.

    Args:
        networks: from `prepare`.
        context: [n, L, D] text embeddings, n <= engine.batch.
        null_context: [L, D] embedding of the empty prompt.
        ids: n pairs (prompt id, replicate): what the noise of each row is keyed by.
        latent_shape: (C, h, w).
        condition: [n, C', h, w], of networks that take an image's latent beside the noise.

    Returns:
        fp32 latents [n, C, h, w] on the engine's device, and evaluations an image by checkpoint.

    A network always sees engine.batch rows (twice that when guided): a short batch is padded with copies of its
    last row, so that an image's bits do not depend on how many were left.

    Raises:
        SpecError: the plan cannot be run, or `networks` lacks one of its checkpoints.
    """
    count = len(ids)
    if not 0 < count <= engine.batch:
        raise ValueError(f"a batch has 1 to {engine.batch} images, not {count}")
    rows = [min(i, count - 1) for i in range(engine.batch)]
    padded_ids = [ids[i] for i in rows]
    device = torch.device(engine.device)

    def noise(stream: Stream) -> Tensor:
        return torch.from_numpy(batch_noise(padded_ids, stream, latent_shape)).to(device)

    beside = None if condition is None else torch.from_numpy(condition[rows]).to(device)

    def network(checkpoint: CheckpointRef) -> Network | BindingNetwork:
        found = network_of(networks, checkpoint)
        if plan.guidance.mode == "embedded":
            found = GuidanceEmbedded(found, plan.guidance.scale)
        return found if beside is None else Conditioned(found, beside)

    denoisers = {
        checkpoint: Denoiser(network(checkpoint), plan.schedule, plan.prediction) for checkpoint in evaluations_of(plan)
    }
    contexts = (torch.from_numpy(context[rows]).to(device), torch.from_numpy(null_context).to(device))
    states = sample(
        plan.sampler,
        guided(plan, denoisers, *contexts),
        noise("x_T"),
        plan.schedule,
        pairs_of(plan),
        eta=plan.eta,
        variance=plan.variance,
        step_noise=lambda k: noise(("step", k)),
    )
    x = None
    for state in states:
        x = state
    assert x is not None
    return x[:count], {checkpoint: denoiser.evaluations for checkpoint, denoiser in denoisers.items()}


def network_of(networks: Networks, checkpoint: CheckpointRef) -> Network | BindingNetwork:
    """A checkpoint's network. Raises `SpecError` where it was not loaded."""
    if not isinstance(networks, Mapping):
        return networks
    if checkpoint.content_digest not in networks:
        raise SpecError(f"the plan calls checkpoint {checkpoint.content_digest[:12]}, which was not loaded.")
    return networks[checkpoint.content_digest]
