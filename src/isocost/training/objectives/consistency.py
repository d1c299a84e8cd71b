"""Consistency distillation: the student's image from x_t is to be its average's image from one DDIM step further.

Latent Consistency Models (arXiv 2310.04378, Algorithm 1), whose teacher takes the step, and CoDi (arXiv 2310.01407),
whose student takes it itself and is drawn to the data. Timesteps are the 50 of spacing `lcm`, so a student of few steps
meets in sampling, by the sampler `lcm`, what it met in training. For super-resolution the low-resolution image's latent
lies beside the noise, as in the family's own members; CoDi's own code duplicates the encoder instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isocost.diffusion.denoiser import add_noise, levels, to_epsilon
from isocost.diffusion.schedule import END, LCM_TIMESTEPS, timestep_pairs
from isocost.specs import Consistency, TrainSettings
from isocost.training.objectives.batch import Batch
from isocost.training.objectives.teaching import Networks, ddim_step, drawn, image, levels_to, teachers_image


def loss(networks: Networks, batch: Batch, settings: TrainSettings) -> Tensor:
    """Of each image [B], as `settings.consistency` says."""
    assert settings.consistency is not None
    how, schedule = settings.consistency, settings.schedule
    pairs = timestep_pairs(schedule, LCM_TIMESTEPS, "lcm")
    t, s = drawn(pairs, batch.timesteps, schedule.num_train_timesteps)
    now, then = levels(schedule, t), levels_to(schedule, s)
    x_t = add_noise(batch.latents, batch.noise, now)
    seen = image(networks.student, x_t, t, batch, settings)
    own = bounded(x_t, seen, t, how)
    with torch.no_grad():
        step = teachers_image(networks, x_t, t, batch, settings) if how.setting == "lcm" else seen.detach()
        x_s = ddim_step(x_t, step, now, then)
        from_s = s.clamp(min=0)
        wanted = bounded(x_s, image(networks.target, x_s, from_s, batch, settings), from_s, how)
        if how.setting == "codi":
            wanted = to_epsilon("sample", wanted, x_s, levels(schedule, from_s))
    if how.setting == "lcm":
        return distance(own, wanted, how)
    # At the end of sampling no noise is left to be compared: what remains is the data.
    noises = distance(to_epsilon("sample", own, x_t, now), wanted, how)
    return torch.where(s == END, 0, noises) + how.data_weight * distance(own, batch.latents, how)


def scalings(timesteps: Tensor, how: Consistency) -> tuple[Tensor, Tensor]:
    """c_skip and c_out [B]: 1 and 0 at timestep 0 (arXiv 2303.01469, eq. 5, as LCMScheduler scales timesteps)."""
    scaled = timesteps.double() * how.timestep_scaling
    total = scaled**2 + how.sigma_data**2
    return how.sigma_data**2 / total, scaled / total.sqrt()


def bounded(x_t: Tensor, seen: Tensor, timesteps: Tensor, how: Consistency) -> Tensor:
    """The consistency function: x itself at timestep 0, and all but the network's image from 20 up."""
    skip, out = (factor.to(x_t)[:, None, None, None] for factor in scalings(timesteps, how))
    return skip * x_t + out * seen


def distance(own: Tensor, wanted: Tensor, how: Consistency) -> Tensor:
    """Of each image [B]: mean over its values of the square, or of sqrt(d^2 + c^2) - c."""
    squares = (own - wanted).square()
    if how.distance == "huber":
        squares = (squares + how.huber_c**2).sqrt() - how.huber_c
    return squares.mean(dim=(1, 2, 3))
