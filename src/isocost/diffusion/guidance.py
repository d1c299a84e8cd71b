"""Classifier-free guidance (arXiv 2207.12598) in one place and one convention: out = uncond + scale (cond - uncond).

It is applied to the denoised image; on eps or v it would be the same, as an affine map joins the three at a given x_t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isocost.diffusion.denoiser import Denoiser
from isocost.errors import SpecError
from isocost.specs import Guidance

Denoise = Callable[[Tensor, int], Tensor]
"""D(x [B, C, H, W], t) -> denoised x0 [B, C, H, W]: all that a sampler knows of a network."""


def guide(denoiser: Denoiser, context: Tensor, null_context: Tensor, guidance: Guidance) -> Denoise:
    """D(x, t) with the context bound and guidance applied to all channels.

    context [B, L, D]; null_context, the empty caption's, [L, D] or [B, L, D]. Where guidance acts, one network call on
    2B rows (uncond, then cond) counts two evaluations; elsewhere one call on B rows counts one. Which of the two
    follows from the timestep alone, so a fixed B meets the same network batch shapes in every run, and bits repeat.
    Raises `SpecError` for a guide checkpoint (autoguidance), which this function does not do, or contexts that differ
    in shape.
    """
    if guidance.guide is not None:
        raise SpecError("guidance.guide: autoguidance is not available; leave it out.")
    if null_context.shape not in (context.shape, context.shape[1:]):
        raise SpecError(f"null context {tuple(null_context.shape)} does not fit context {tuple(context.shape)}.")
    doubled = torch.cat([null_context.to(context).expand_as(context), context])

    def denoise(x: Tensor, t: int) -> Tensor:
        if evaluations_per_call(guidance, t) == 1:
            return denoiser(x, t, context)
        uncond, cond = denoiser(torch.cat([x, x]), t, doubled, rows_per_image=2).chunk(2)
        return uncond + guidance.scale * (cond - uncond)

    return denoise


def evaluations_per_call(guidance: Guidance, t: int) -> int:
    """Network evaluations an image in a call at timestep t: 2 where guidance acts, 1 at scale 1 or off its interval."""
    low, high = guidance.interval or (t, t)
    return 2 if guidance.scale != 1 and low <= t <= high else 1
