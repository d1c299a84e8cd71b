"""What the objectives of distillation share: a student, its teacher, its own average, and DDIM's step between levels.

The teacher is frozen, and the average follows the student; neither takes gradients. Every image is x0, fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from isocost.diffusion.denoiser import Levels, add_noise, levels, to_epsilon, to_x0
from isocost.diffusion.schedule import END, level, level_table
from isocost.specs import NoiseSchedule, TrainSettings
from isocost.training.objectives.batch import Batch

Called = Callable[..., Tensor]
"""A `Network`, or one that takes guidance scales [B] as a fourth."""


class Networks(NamedTuple):
    """Of a distillation. `teacher_embeds`: whether the teacher takes guidance scales, as a student before it did."""

    student: Called
    teacher: Called
    target: Called
    """The student with its average weights."""
    teacher_embeds: bool = False


def image(network: Called, x_t: Tensor, timesteps: Tensor, batch: Batch, settings: TrainSettings) -> Tensor:
    """The image [B,C,h,w] that the student, or its average, sees in x_t: one evaluation."""
    scales = () if batch.scales is None else (batch.scales,)
    output = network(_beside(x_t, batch.condition), timesteps, batch.contexts, *scales)
    return to_x0(settings.prediction, output.float(), x_t, levels(settings.schedule, timesteps))


@torch.no_grad()
def teachers_image(networks: Networks, x_t: Tensor, timesteps: Tensor, batch: Batch, settings: TrainSettings) -> Tensor:
    """The image that the teacher sees, guided by `batch.scales`: null + scale (prompt - null), as in sampling."""
    if networks.teacher_embeds:
        return image(networks.teacher, x_t, timesteps, batch, settings)
    if batch.scales is None:
        return image(networks.teacher, x_t, timesteps, batch, settings)
    assert batch.null_context is not None
    contexts = torch.cat([batch.null_context.expand_as(batch.contexts), batch.contexts])
    output = networks.teacher(_beside(x_t, batch.condition).repeat(2, 1, 1, 1), timesteps.repeat(2), contexts)
    at = levels(settings.schedule, timesteps.repeat(2))
    null, prompt = to_x0(settings.prediction, output.float(), x_t.repeat(2, 1, 1, 1), at).chunk(2)
    return null + batch.scales[:, None, None, None] * (prompt - null)


def ddim_step(x_t: Tensor, x0: Tensor, now: Levels, then: Levels) -> Tensor:
    """Where DDIM (eta 0) leads from x_t, given the image in it."""
    return add_noise(x0, to_epsilon("sample", x0, x_t, now), then)


def levels_to(schedule: NoiseSchedule, timesteps: Tensor) -> Levels:
    """As `levels`, of timesteps int64 [B] from -1, the end of sampling, up."""
    final = level(schedule, END)
    table = np.concatenate([level_table(schedule), [[final.alpha], [final.sigma]]], axis=1)
    return Levels(*torch.tensor(table, device=timesteps.device)[:, timesteps])


def drawn(rows: list[tuple[int, ...]], timesteps: Tensor, total: int) -> tuple[Tensor, ...]:
    """For each image a row of a table of descending timesteps [n, k], as columns [B]; chosen by timesteps in 0..T-1,
    evenly and in their order, so that they say how noisy an image is."""
    table = torch.tensor(rows, device=timesteps.device).flip(0)
    return table[timesteps * len(rows) // total].unbind(1)


def _beside(x: Tensor, condition: Tensor | None) -> Tensor:
    return x if condition is None else torch.cat([x, condition], dim=1)
