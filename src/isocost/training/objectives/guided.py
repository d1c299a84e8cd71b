"""Guided distillation (arXiv 2210.03142): first guidance in one evaluation, then half as many steps a round.

Stage 1 (section 3.1) matches the guided teacher at every timestep. A round of stage 2 (section 3.2, after arXiv
2202.00512, Algorithm 2) matches two of the teacher's DDIM steps by one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isocost.diffusion.denoiser import Levels, add_noise, levels
from isocost.diffusion.schedule import END, timestep_pairs
from isocost.specs import Guided, NoiseSchedule, TrainSettings
from isocost.training.objectives.batch import Batch
from isocost.training.objectives.teaching import Networks, ddim_step, drawn, image, levels_to, teachers_image


def loss(networks: Networks, batch: Batch, settings: TrainSettings) -> Tensor:
    """Squared error of each image [B], weighted as `settings.guided` says."""
    how, schedule = settings.guided, settings.schedule
    assert how is not None
    if how.steps is None:
        t = batch.timesteps
        x_t = add_noise(batch.latents, batch.noise, levels(schedule, t))
        wanted = teachers_image(networks, x_t, t, batch, settings)
    else:
        t, middle, s = drawn(double_steps(schedule, how), batch.timesteps, schedule.num_train_timesteps)
        x_t = add_noise(batch.latents, batch.noise, levels(schedule, t))
        wanted = two_steps_as_one(networks, x_t, (t, middle, s), batch, settings)
    error = (image(networks.student, x_t, t, batch, settings) - wanted).square().mean(dim=(1, 2, 3))
    return weight(levels(schedule, t), how).to(error) * error


def double_steps(schedule: NoiseSchedule, how: Guided) -> list[tuple[int, ...]]:
    """Steps t -> middle -> s, descending: those of N steps with the halves that 2N steps have; where the student is to
    be sampled by `ddim_back` too, also those that start at a half. The last of these is a half itself: (t, -1, -1)."""
    assert how.steps is not None
    halves = timestep_pairs(schedule, 2 * how.steps, "trailing")
    after = [s for _, s in halves[1:]] + [END]
    every = [(t, middle, s) for (t, middle), s in zip(halves, after, strict=True)]
    return [*every] if how.stochastic else [*every[::2]]


@torch.no_grad()
def two_steps_as_one(
    networks: Networks, x_t: Tensor, timesteps: tuple[Tensor, ...], batch: Batch, settings: TrainSettings
) -> Tensor:
    """The image from which one DDIM step, from t to s, leads where two of the teacher's lead (arXiv 2202.00512, G)."""
    t, middle, _ = timesteps
    now, between, then = (levels_to(settings.schedule, at) for at in timesteps)
    x_middle = ddim_step(x_t, teachers_image(networks, x_t, t, batch, settings), now, between)
    ends = middle == END
    seen = teachers_image(networks, x_middle, torch.where(ends, t, middle), batch, settings)
    safe = Levels(*(torch.where(ends, one, other) for one, other in zip(now, between, strict=True)))
    x_s = torch.where(ends[:, None, None, None], x_middle, ddim_step(x_middle, seen, safe, then))
    ratio = then.sigma / now.sigma
    share, of_image = (factor.to(x_t)[:, None, None, None] for factor in (ratio, then.alpha - ratio * now.alpha))
    return (x_s - share * x_t) / of_image


def weight(at: Levels, how: Guided) -> Tensor:
    """[B]: SNR + 1, by which the error of an image is that of v; or SNR, 1 at least ("truncated SNR")."""
    snr = (at.alpha / at.sigma) ** 2
    return snr + 1 if how.weighting == "v" else snr.clamp(min=1)
