"""Super-resolution: denoising, given the low-resolution image's latent beside the noise (arXiv 2404.01367, Fig. 2).

So Stable Diffusion's own upscaler is trained (arXiv 2112.10752, section 4.4). Captions are empty. A member starts from
its text-to-image checkpoint, which it equals at first: `isocost.models.build.widened`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isocost.diffusion.denoiser import Network
from isocost.specs import TrainSettings
from isocost.training.objectives import denoise
from isocost.training.objectives.batch import Batch


def loss(network: Network, batch: Batch, settings: TrainSettings) -> Tensor:
    """The loss of `denoise` of each image [B], of a network that takes x_t and the condition, [B,2C,h,w]."""
    assert batch.condition is not None
    beside = batch.condition

    def given(x: Tensor, timesteps: Tensor, contexts: Tensor) -> Tensor:
        return network(torch.cat([x, beside], dim=1), timesteps, contexts)

    return denoise.loss(given, batch, settings)
