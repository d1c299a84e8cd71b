"""DreamBooth (arXiv 2208.12242, Eq. 2): denoising of pictures of a subject, and beside them of images of its class that
the network itself drew before, so that it does not forget what the rest of the class looks like.

What a step sees and how it counts is decided here; the loss of an image is that of `denoise`. As diffusers'
train_dreambooth has it: half of a batch is the subject's, half the class's, and the loss is the mean over the first
half plus `prior.weight` times the mean over the second. With weight 0 no image of the class is seen: it is plain
fine-tuning on the subject's pictures, bit for bit.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from isocost.data import sampler
from isocost.diffusion.denoiser import Network
from isocost.specs import TrainSettings, TrainSpec
from isocost.training.objectives import denoise
from isocost.training.objectives.batch import Batch


def loss(network: Network, batch: Batch, settings: TrainSettings) -> Tensor:
    """The loss of `denoise` of each image [B], times its weight."""
    losses = denoise.loss(network, batch, settings)
    return losses if batch.weights is None else batch.weights * losses


def indices(spec: TrainSpec, start: int) -> np.ndarray:
    """Which images a step sees after `start` were seen: int64 [batch], the subject's first.

    The subject's are the first `spec.data.instances` of the data. Either half has an order of its own.
    """
    own = _instances(spec)
    if not _preserves(spec):
        return sampler.indices(own, spec.seed, start, spec.batch)
    half = spec.batch // 2
    of_class = own + sampler.indices(spec.data.images - own, spec.seed, start // 2, half)
    return np.concatenate([sampler.indices(own, spec.seed, start // 2, half), of_class])


def weights(spec: TrainSpec) -> np.ndarray | None:
    """What an image of the batch counts, float32 [batch]: their mean is the sum of both means; None: all the same."""
    if not _preserves(spec):
        return None
    assert spec.prior is not None
    return np.repeat(np.array([2, 2 * spec.prior.weight], np.float32), spec.batch // 2)


def _preserves(spec: TrainSpec) -> bool:
    return spec.prior is not None and spec.prior.weight > 0


def _instances(spec: TrainSpec) -> int:
    assert spec.data.instances is not None
    return spec.data.instances
