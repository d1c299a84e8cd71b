from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.diffusion.denoiser import add_noise, levels
from isocost.diffusion.samplers import sample
from isocost.diffusion.schedule import timestep_pairs
from isocost.errors import SpecError
from isocost.specs import Guided, NoiseSchedule, TrainSettings
from isocost.training.objectives import OBJECTIVES
from isocost.training.objectives.guided import double_steps, two_steps_as_one, weight
from isocost.training.objectives.teaching import ddim_step, drawn, image, levels_to, teachers_image

SCALES = [1.0, 2.0, 4.0, 1.5]


def settings(**how) -> TrainSettings:
    fields = {"prediction": how.pop("prediction", "v_prediction"), "objective": "guided", "guided": Guided(**how)}
    return TrainSettings(images=8, batch=8, caption_dropout=0.0, **fields)


def test_stage_1_is_the_error_of_v_to_the_guided_teacher(toy):
    how = settings()
    batch, networks = toy.batch([0, 250, 500, 999], SCALES), toy.networks(how)
    blind = networks._replace(student=lambda x, t, c, scales: networks.student(x, t, c))
    losses = OBJECTIVES["guided"](blind, batch, how)
    x_t = add_noise(batch.latents, batch.noise, levels(how.schedule, batch.timesteps))
    own = networks.student(x_t, batch.timesteps, batch.contexts)
    guided = networks.student(x_t, batch.timesteps, batch.contexts, batch.scales)
    torch.testing.assert_close(losses, (own - guided).square().mean(dim=(1, 2, 3)))
    assert losses[0] < 1e-20 < losses[1]  # at scale 1 the unguided student has nothing to learn
    assert OBJECTIVES["guided"](networks, batch, how).max() < 1e-12


def test_weights():
    at = levels(NoiseSchedule(), torch.tensor([0, 999]))
    snr = (at.alpha / at.sigma) ** 2
    torch.testing.assert_close(weight(at, Guided()), 1 / at.sigma**2)
    assert torch.equal(weight(at, Guided(weighting="snr")), torch.stack([snr[0], torch.ones_like(snr[1])]))


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_steps_are_those_of_ddim_and_halves_those_of_twice_as_many(steps):
    schedule = NoiseSchedule()
    rows = double_steps(schedule, Guided(steps=steps))
    assert [(t, s) for t, _, s in rows] == timestep_pairs(schedule, steps, "trailing")
    assert [pair for t, m, s in rows for pair in ((t, m), (m, s))] == timestep_pairs(schedule, 2 * steps, "trailing")
    every = double_steps(schedule, Guided(steps=steps, stochastic=True))
    assert every[::2] == rows and [t for t, _, _ in every] == [
        t for t, _ in timestep_pairs(schedule, 2 * steps, "trailing")
    ]


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_step_from_the_target_lands_where_two_of_the_teacher_do(prediction, stochastic, toy):
    """The linear-Gaussian toy, at every step of a round."""
    how = settings(steps=4, prediction=prediction, stochastic=stochastic)
    rows = double_steps(how.schedule, how.guided)
    timesteps = drawn(rows, torch.arange(len(rows)) * (1000 // len(rows)), 1000)
    batch = toy.batch([0] * len(rows), list(np.linspace(1, 8, len(rows))))
    networks = toy.networks(how, teacher_embeds=True)
    t, middle, s = timesteps
    x_t = add_noise(batch.latents, batch.noise, levels(how.schedule, t))
    single = two_steps_as_one(networks, x_t, timesteps, batch, how)
    landed = ddim_step(x_t, single, levels(how.schedule, t), levels_to(how.schedule, s))
    first = ddim_step(
        x_t, image(networks.teacher, x_t, t, batch, how), levels(how.schedule, t), levels_to(how.schedule, middle)
    )
    for row in range(len(rows)):
        one = batch._replace(**{name: getattr(batch, name)[row : row + 1] for name in ("contexts", "scales")})
        wanted = first[row : row + 1]
        if middle[row] >= 0:
            m = middle[row : row + 1]
            seen = teachers_image(networks, wanted, m, one, how)
            wanted = ddim_step(wanted, seen, levels(how.schedule, m), levels_to(how.schedule, s[row : row + 1]))
        torch.testing.assert_close(landed[row : row + 1], wanted, rtol=1e-7, atol=1e-7)
    # So a student that gives the target has no loss, and takes N steps to where the teacher gets in 2N.
    exact = networks._replace(student=_giving(single, x_t, t, how))
    losses = OBJECTIVES["guided"](exact, batch._replace(timesteps=torch.arange(len(rows)) * (1000 // len(rows))), how)
    assert losses.max() < 1e-9


def _giving(x0, x_t, t, how):
    from isocost.diffusion.denoiser import target, to_epsilon

    at = levels(how.schedule, t)
    output = target(how.prediction, x0, to_epsilon("sample", x0, x_t, at), at)
    return lambda *_: output


def test_ddim_and_back_keeps_the_noise_level():
    """On images that are all 0 the exact denoiser gives 0, and each state must be noise of its own level."""
    schedule, rng = NoiseSchedule(), torch.Generator().manual_seed(0)
    pairs = timestep_pairs(schedule, 8, "trailing")
    shape = (2, 4, 64, 64)
    x = levels(schedule, torch.tensor([999])).sigma.float() * torch.randn(shape, generator=rng)
    noise = lambda k: torch.randn(shape, generator=rng)  # noqa: E731
    states = list(sample("ddim_back", lambda x, t: torch.zeros_like(x), x, schedule, pairs, step_noise=noise))
    for (_, s), state in zip(pairs, states, strict=True):
        wanted = levels_to(schedule, torch.tensor([s])).sigma
        assert abs(float(state.std()) - float(wanted)) < 0.01
    again = list(sample("ddim_back", lambda x, t: x, x, schedule, [(999, -1)], step_noise=noise))
    single = list(sample("ddim", lambda x, t: x, x, schedule, [(999, -1)], step_noise=noise))
    assert torch.equal(again[0], single[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 6}, "steps 6 is no power of two"),
        ({"guidance": (4, 1)}, "give the lower scale first"),
        ({"stochastic": True}, "stochastic is of rounds"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(SpecError, match=message):
        Guided.parse(fields)
