"""Guidance in one place and one convention: out = weak + scale (D(prompt) - weak), where weak is D without the prompt
(classifier-free guidance, arXiv 2207.12598) or D of a weaker network (autoguidance, arXiv 2406.02507).

It is applied to the denoised image; on eps or v it would be the same, as an affine map joins the three at a given x_t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from isocost.diffusion.denoiser import Denoiser
from isocost.diffusion.schedule import Pairs, level
from isocost.errors import SpecError
from isocost.specs import Guidance, NoiseSchedule

Denoise = Callable[[Tensor, int], Tensor]
"""D(x [B, C, H, W], t) -> denoised x0 [B, C, H, W]: all that a sampler knows of a network."""


def guide(
    denoiser: Denoiser,
    context: Tensor,
    null_context: Tensor,
    guidance: Guidance,
    weak: Denoiser | None = None,
    pairs: Pairs = (),
) -> Denoise:
    """D(x, t) with the context bound and guidance applied to all channels.

    context [B, L, D]; null_context, the empty caption's, [L, D] or [B, L, D]. `weak`: the denoiser of autoguidance's
    guide; `pairs`: the trajectory, which CFG++ has to know. Where guidance acts it takes two evaluations: one network
    call on 2B rows (the empty prompt's, then the prompt's), or one call of either network; elsewhere one call on B
    rows is one evaluation. Which of the two follows from the timestep alone, so a fixed B meets the same network batch
    shapes in every run, and bits repeat. Contexts are bound when they are first called for.
    Raises `SpecError` for contexts that differ in shape.
    """
    if null_context.shape not in (context.shape, context.shape[1:]):
        raise SpecError(f"null context {tuple(null_context.shape)} does not fit context {tuple(context.shape)}.")
    ends = dict(pairs)

    @cache
    def plain() -> Denoise:
        return denoiser.bind(context)

    @cache
    def both() -> Callable[[Tensor, int], tuple[Tensor, ...]]:
        if weak is not None:
            weaker, cond = weak.bind(context), plain()
            return lambda x, t: (weaker(x, t), cond(x, t))
        doubled = denoiser.bind(torch.cat([null_context.to(context).expand_as(context), context]), rows_per_image=2)
        return lambda x, t: doubled(x, t).chunk(2)

    def denoise(x: Tensor, t: int) -> Tensor:
        if evaluations_per_call(guidance, t) == 1:
            return plain()(x, t)
        uncond, cond = both()(x, t)
        scale = guidance.scale
        if guidance.mode == "cfg++":
            scale *= plus_plus_factor(denoiser.schedule, t, ends[t])
        return uncond + scale * (cond - uncond)

    return denoise


def plus_plus_factor(schedule: NoiseSchedule, t: int, s: int) -> float:
    """What turns CFG++'s lambda into a scale, at a step from timestep t to s: 1 / (1 - e^-h), 1 on a step to sigma 0.

    CFG++ (arXiv 2406.08070, Algorithm 2) steps to x_s = alpha_s (x0_null + lambda d) + sigma_s eps_null, where
    d = x0_prompt - x0_null. DDIM from D = x0_null + w d steps to
        x_s = alpha_s x0_null + sigma_s eps_null + (alpha_s - sigma_s alpha_t / sigma_t) w d,
    the same at w = lambda / (1 - (sigma_s / alpha_s) (alpha_t / sigma_t)). So samplers need not know of it.
    """
    return 1 / -math.expm1(level(schedule, t).half_log_snr - level(schedule, s).half_log_snr)


def evaluations_per_call(guidance: Guidance, t: int) -> int:
    """Evaluations an image in a call at timestep t: 2 where guidance acts (one is autoguidance's guide's), else 1."""
    low, high = guidance.interval or (t, t)
    return 2 if guidance.active and low <= t <= high else 1
