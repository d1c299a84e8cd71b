"""Denoising, as Stable Diffusion is trained (arXiv 2112.10752, Eq. 2): predict eps, v or x0 at a random timestep.

With a flow schedule and prediction it is flow matching on straight paths (rectified flow, arXiv 2209.03003).
"""

from __future__ import annotations

from torch import Tensor

from isocost.diffusion.denoiser import Network, add_noise, levels, target
from isocost.specs import TrainSettings
from isocost.training.objectives.batch import Batch


def loss(network: Network, batch: Batch, settings: TrainSettings) -> Tensor:
    """Mean squared error of each image [B], unweighted, between the output and the target of `settings.prediction`."""
    at = levels(settings.schedule, batch.timesteps)
    x_t = add_noise(batch.latents, batch.noise, at)
    wanted = target(settings.prediction, batch.latents, batch.noise, at)
    output = network(x_t, batch.timesteps, batch.contexts)
    return (output.float() - wanted).square().mean(dim=(1, 2, 3))
