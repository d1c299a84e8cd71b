from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from isocost.diffusion.schedule import alphas_cumprod
from isocost.specs import NoiseSchedule, TrainSettings
from isocost.training.objectives import OBJECTIVES, Batch

SETTINGS = {"images": 8, "batch": 8, "caption_dropout": 0.0}


def make_batch() -> Batch:
    rng = torch.Generator().manual_seed(0)
    timesteps = torch.tensor([0, 1, 250, 500, 998, 999])
    return Batch(
        latents=torch.randn(6, 4, 8, 8, generator=rng),
        contexts=torch.randn(6, 3, 5, generator=rng),
        noise=torch.randn(6, 4, 8, 8, generator=rng),
        timesteps=timesteps,
        alpha_cumprod=torch.from_numpy(np.array(alphas_cumprod(NoiseSchedule()))[timesteps]),
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_against_diffusers(prediction):
    batch = make_batch()
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    seen = []

    def network(x, timesteps, context):
        seen.append((x, timesteps, context))
        return 0.3 * x

    losses = OBJECTIVES["denoise"](network, batch, TrainSettings(prediction=prediction, **SETTINGS))
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    wanted = {
        "epsilon": batch.noise,
        "v_prediction": scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps),
        "sample": batch.latents,
    }[prediction]
    expected = torch.nn.functional.mse_loss(0.3 * noisy, wanted, reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    x, timesteps, context = seen[0]
    torch.testing.assert_close(x, noisy, rtol=1e-4, atol=1e-5)
    assert torch.equal(timesteps, batch.timesteps) and torch.equal(context, batch.contexts)


def test_a_perfect_network_has_no_loss():
    batch = make_batch()
    losses = OBJECTIVES["denoise"](lambda *_: batch.noise, batch, TrainSettings(prediction="epsilon", **SETTINGS))
    assert losses.tolist() == [0.0] * 6
