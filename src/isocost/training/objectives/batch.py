"""What every objective is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from isocost.diffusion.denoiser import Network
from isocost.specs import TrainSettings


class Batch(NamedTuple):
    """Images of one micro-batch, with the random numbers that are theirs by (seed, images seen)."""

    latents: Tensor
    """x0, fp32 [B,C,h,w]."""
    contexts: Tensor
    """fp32 [B,L,D]; dropped captions are the null context already."""
    noise: Tensor
    """fp32 [B,C,h,w]."""
    timesteps: Tensor
    """int64 [B], in 0..T-1."""
    condition: Tensor | None = None
    """Latents of low-resolution images, fp32 [B,C,h,w]; None where the objective takes none."""
    scales: Tensor | None = None
    """Guidance scales, fp32 [B], of a student that embeds them; None of others."""
    null_context: Tensor | None = None
    """The empty caption's, fp32 [L,D], where `scales` are."""
    weights: Tensor | None = None
    """What each image counts, fp32 [B], of DreamBooth; None where all count the same."""

    def part(self, images: slice) -> Batch:
        """Some of its images."""
        own = {name: value for name, value in self._asdict().items() if value is not None and name != "null_context"}
        return self._replace(**{name: value[images] for name, value in own.items()})


Objective = Callable[[Network, Batch, TrainSettings], Tensor]
"""(network, batch, settings) -> loss of each image [B]."""
