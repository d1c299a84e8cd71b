from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from isocost.diffusion.denoiser import add_noise, levels
from isocost.diffusion.schedule import timestep_pairs
from isocost.specs import Consistency, NoiseSchedule, TrainSettings
from isocost.training.objectives import OBJECTIVES
from isocost.training.objectives.consistency import bounded, scalings
from isocost.training.objectives.teaching import ddim_step, drawn, image, levels_to, teachers_image


def settings(prediction="v_prediction", **how) -> TrainSettings:
    return TrainSettings(
        images=8,
        batch=8,
        caption_dropout=0.0,
        prediction=prediction,
        objective="consistency",
        consistency=Consistency(**how),
        schedule=NoiseSchedule(final_alpha="first"),
    )


def test_boundary_scalings_are_those_of_lcm_scheduler():
    how, scheduler = Consistency(), LCMScheduler()
    skip, out = scalings(torch.tensor([0, 1, 19, 999]), how)
    assert skip[0] == 1 and out[0] == 0
    for place, t in enumerate((0, 1, 19, 999)):
        np.testing.assert_allclose(
            [skip[place], out[place]], scheduler.get_scalings_for_boundary_condition_discrete(t), rtol=1e-12
        )
    x, seen = torch.randn(2, 2, 4, 4, 4)
    assert torch.equal(bounded(x, seen, torch.tensor([0, 0]), how), x)
    torch.testing.assert_close(bounded(x, seen, torch.tensor([19, 999]), how), seen, atol=1e-4, rtol=0)


def test_timesteps_of_training_are_those_of_lcm_scheduler():
    scheduler = LCMScheduler()
    scheduler.set_timesteps(50)
    pairs = timestep_pairs(NoiseSchedule(), 50, "lcm")
    assert [t for t, _ in pairs] == scheduler.timesteps.tolist()
    t, s = drawn(pairs, torch.arange(1000), 1000)
    assert sorted(set(zip(t.tolist(), s.tolist(), strict=True)), reverse=True) == pairs
    assert torch.equal(t.bincount()[t.unique()], torch.full((50,), 20)) and (t.diff() >= 0).all()
    assert abs(t - torch.arange(1000)).max() < 20
    for steps in (1, 2, 4, 8):
        scheduler.set_timesteps(steps)
        assert [t for t, _ in timestep_pairs(NoiseSchedule(), steps, "lcm")] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_step_of_the_teacher_is_diffusers_ddim(prediction, toy):
    how = settings(prediction)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(50)
    batch, networks = toy.batch([999, 519, 19]), toy.networks(how)
    s = batch.timesteps - 20
    now, then = levels(how.schedule, batch.timesteps), levels_to(how.schedule, s)
    x_t = add_noise(batch.latents, batch.noise, now)
    ours = ddim_step(x_t, teachers_image(networks, x_t, batch.timesteps, batch, how), now, then)
    output = networks.teacher(x_t, batch.timesteps, batch.contexts)
    for row, t in enumerate(batch.timesteps):
        theirs = scheduler.step(output[row], int(t), x_t[row]).prev_sample
        torch.testing.assert_close(ours[row].float(), theirs.float(), rtol=1e-4, atol=1e-5)


def test_scale_1_is_the_unguided_teacher_and_others_are_as_in_sampling(toy):
    how = settings(guidance=(1.0, 8.0))
    plain, one = toy.batch([999, 500, 20]), toy.batch([999, 500, 20], [1.0] * 3)
    networks = toy.networks(how)
    unguided = teachers_image(networks, plain.noise, plain.timesteps, plain, how)
    torch.testing.assert_close(teachers_image(networks, one.noise, one.timesteps, one, how), unguided)
    some = toy.batch([999, 500, 20], [3.0, 1.0, 0.0])
    guided = teachers_image(networks, some.noise, some.timesteps, some, how)
    null = plain._replace(contexts=torch.zeros_like(plain.contexts))
    base = teachers_image(networks, plain.noise, plain.timesteps, null, how)
    torch.testing.assert_close(guided, base + torch.tensor([3.0, 1, 0])[:, None, None, None] * (unguided - base))
    # A teacher that embeds guidance gives the same in one evaluation; the toy's mean goes with the scale.
    embedding = toy.networks(how, teacher_embeds=True)
    torch.testing.assert_close(teachers_image(embedding, some.noise, some.timesteps, some, how), guided)


def test_the_loss_of_lcm_in_closed_form(toy):
    """Against Algorithm 1 written out for one image."""
    how = settings(guidance=(1.0, 8.0), distance="l2")
    batch, networks = toy.batch([777], [2.5]), toy.networks(how)
    losses = OBJECTIVES["consistency"](networks, batch, how)
    t, s = torch.tensor([779]), torch.tensor([759])
    x_t = add_noise(batch.latents, batch.noise, levels(how.schedule, t))
    guided = image(networks.teacher, x_t, t, batch, how)  # the toy's own guidance
    x_s = ddim_step(x_t, guided, levels(how.schedule, t), levels(how.schedule, s))
    own = bounded(x_t, guided, t, how.consistency)
    wanted = bounded(x_s, image(networks.target, x_s, s, batch, how), s, how.consistency)
    torch.testing.assert_close(losses, (own - wanted).square().mean(dim=(1, 2, 3)))
    huber = OBJECTIVES["consistency"](networks, batch, settings(guidance=(1.0, 8.0), huber_c=0.1))
    expected = (((own - wanted) ** 2 + 0.01).sqrt() - 0.1).mean(dim=(1, 2, 3))
    torch.testing.assert_close(huber, expected)


def test_at_the_end_the_image_itself_is_the_target(toy):
    """s is the end for the last timestep: f(x_s) is x_s, whatever the average says."""
    how = settings(distance="l2")
    batch, networks = toy.batch([3]), toy.networks(how)
    broken = networks._replace(target=lambda x, *_: torch.full_like(x, 1e6))
    torch.testing.assert_close(
        OBJECTIVES["consistency"](broken, batch, how), OBJECTIVES["consistency"](networks, batch, how)
    )


def test_the_loss_of_codi_is_of_noises_and_of_the_data(toy):
    how = settings(setting="codi", distance="l2", data_weight=0.0)
    batch, networks = toy.batch([777, 3]), toy.networks(how)
    t, s = torch.tensor([779, 19]), torch.tensor([759, -1])
    now = levels(how.schedule, t)
    x_t = add_noise(batch.latents, batch.noise, now)
    seen = image(networks.student, x_t, t, batch, how)
    x_s = ddim_step(x_t, seen, now, levels_to(how.schedule, s))
    noise = lambda x0, x, at: (x - at.alpha.reshape(-1, 1, 1, 1) * x0) / at.sigma.reshape(-1, 1, 1, 1)  # noqa: E731
    own = noise(bounded(x_t, seen, t, how.consistency), x_t, now)
    at_s = image(networks.target, x_s, s.clamp(min=0), batch, how)
    wanted = noise(bounded(x_s, at_s, s.clamp(min=0), how.consistency), x_s, levels(how.schedule, s.clamp(min=0)))
    of_noises = (own - wanted).square().mean(dim=(1, 2, 3)) * torch.tensor([1, 0])
    torch.testing.assert_close(OBJECTIVES["consistency"](networks, batch, how), of_noises)
    both = OBJECTIVES["consistency"](networks, batch, settings(setting="codi", distance="l2", data_weight=2.0))
    data = (bounded(x_t, seen, t, how.consistency) - batch.latents).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(both, of_noises + 2 * data)


@pytest.mark.parametrize("setting", ["lcm", "codi"])
def test_gradients_reach_the_student_through_its_own_image_only(setting, toy):
    how = settings(setting=setting, distance="l2", data_weight=0.0)
    plain = toy.networks(how)
    factor = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    student = lambda *given: factor * plain.student(*given)  # noqa: E731
    batch = toy.batch([500])
    OBJECTIVES["consistency"](plain._replace(student=student, target=student), batch, how).sum().backward()
    of_all = factor.grad.clone()
    # The loss is a parabola in what the student alone is multiplied by, all else held, with that very slope.
    if setting == "lcm":

        def at(value):
            nudged = plain._replace(student=lambda *given: value * plain.student(*given),
                                    target=lambda *given: 1.1 * plain.student(*given))  # fmt: skip
            return OBJECTIVES["consistency"](nudged, batch, how).sum()

        torch.testing.assert_close(of_all, ((at(1.6) - at(0.6)) / 1).to(of_all), rtol=1e-4, atol=0)
    assert of_all != 0
