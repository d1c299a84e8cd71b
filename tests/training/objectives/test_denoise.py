from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

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


def test_flow_matching_regresses_the_velocity_of_straight_paths():
    batch, schedule = make_batch(), NoiseSchedule(kind="flow", shift=2.0)
    seen = []

    def network(x, timesteps, context):
        seen.append(x)
        return 0.3 * x

    settings = TrainSettings(schedule=schedule, prediction="flow", **SETTINGS)
    losses = OBJECTIVES["denoise"](network, batch, settings)
    sigma = FlowMatchEulerDiscreteScheduler(shift=2.0).sigmas.flip(0)[batch.timesteps].reshape(-1, 1, 1, 1)
    x_t = (1 - sigma) * batch.latents + sigma * batch.noise
    torch.testing.assert_close(seen[0], x_t, rtol=1e-5, atol=1e-6)
    wanted = batch.noise - batch.latents
    torch.testing.assert_close(losses, (0.3 * x_t - wanted).square().mean(dim=(1, 2, 3)), rtol=1e-5, atol=1e-6)
