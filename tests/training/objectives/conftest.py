"""Toys of distillation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from isocost.diffusion.denoiser import levels, target
from isocost.specs import TrainSettings
from isocost.training.objectives import Batch, Networks


@pytest.fixture
def toy():
    """`toy.networks(settings)`: the exact denoiser of N(m, 0.5), m each image's first context value, as student,
    teacher and average; a scale, where given to it, moves the mean as guidance by the empty prompt (m = 0) would."""

    def network(settings: TrainSettings):
        def predict(x, timesteps, contexts, scales=None):
            at = levels(settings.schedule, timesteps)
            alpha, sigma = (level.reshape(-1, 1, 1, 1).to(x) for level in at)
            mean = contexts[:, :1, :1, None].to(x)
            if scales is not None:
                mean = mean * scales.reshape(-1, 1, 1, 1).to(x)
            x0 = mean + 0.5 * alpha / (0.5 * alpha**2 + sigma**2) * (x - alpha * mean)
            return target(settings.prediction, x0, (x - alpha * x0) / sigma, at)

        return predict

    def networks(settings: TrainSettings, teacher_embeds: bool = False) -> Networks:
        own = network(settings)
        return Networks(own, own, own, teacher_embeds)

    def batch(timesteps: list[int], scales: list[float] | None = None) -> Batch:
        rng = torch.Generator().manual_seed(0)
        count = len(timesteps)
        draw = lambda *shape: torch.randn(count, *shape, generator=rng, dtype=torch.float64)  # noqa: E731
        return Batch(
            latents=draw(2, 4, 4),
            contexts=draw(3, 5),
            noise=draw(2, 4, 4),
            timesteps=torch.tensor(timesteps),
            scales=None if scales is None else torch.tensor(scales, dtype=torch.float64),
            null_context=None if scales is None else torch.zeros(3, 5, dtype=torch.float64),
        )

    return SimpleNamespace(networks=networks, batch=batch)
