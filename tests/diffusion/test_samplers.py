"""Samplers against diffusers' schedulers, and against a Gaussian whose exact denoiser and ODE have closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from isocost.diffusion import samplers
from isocost.diffusion.denoiser import Denoiser, to_x0
from isocost.diffusion.guidance import guide
from isocost.diffusion.samplers import SAMPLERS, evaluations, planned_evaluations, sample, stochastic
from isocost.diffusion.schedule import alphas_cumprod, level, timestep_pairs
from isocost.errors import SpecError
from isocost.specs import Guidance, NoiseSchedule

SD = NoiseSchedule()
SD_FIRST = NoiseSchedule(final_alpha="first")
ZERO_SNR = NoiseSchedule(zero_terminal_snr=True)
FLOW = NoiseSchedule(kind="flow")
SHIFTED = NoiseSchedule(kind="flow", shift=3.0)
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 3, 4, 4)


def normal(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def epsilon(x, t):
    """A network of no meaning, so that nothing cancels by chance: smooth, and different at every timestep."""
    return torch.tanh(0.7 * x + math.sin(0.01 * t)) + 0.1 * x.roll(1, -1)


def states(name, schedule, pairs, **settings):
    def denoise(x, t):
        return to_x0("epsilon", epsilon(x, t), x, level(schedule, t))

    return list(sample(name, denoise, normal(0), schedule, pairs, **settings))


def exact(scheduler):
    """A diffusers scheduler with its float32 table replaced by ours, so that formulas are compared in float64."""
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod(SD).copy())
    scheduler.alphas = scheduler.alphas_cumprod / torch.cat([torch.ones(1).double(), scheduler.alphas_cumprod[:-1]])
    if hasattr(scheduler, "final_alpha_cumprod") and not scheduler.config.set_alpha_to_one:
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


def assert_states(ours, theirs, **tolerance):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance or {"rtol": 1e-10, "atol": 1e-10})


# --- diffusers as the oracle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 10, 50, 500])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [SD, SD_FIRST], ids=lambda schedule: schedule.final_alpha)
def test_ddim_matches_diffusers(steps, eta, schedule):
    # Leading and dividing only: elsewhere diffusers' DDIM steps by 1000 // steps, not to its own next timestep.
    to_one = schedule.final_alpha == "one"
    scheduler = exact(DDIMScheduler(**SD_BETAS, clip_sample=False, set_alpha_to_one=to_one, steps_offset=1))
    scheduler.set_timesteps(steps)
    x, theirs = normal(0), []
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(epsilon(x, int(t)), t, x, eta=eta, variance_noise=normal(100 + k)).prev_sample
        theirs.append(x)
    pairs = timestep_pairs(schedule, steps, "leading")
    assert_states(states("ddim", schedule, pairs, eta=eta, step_noise=lambda k: normal(100 + k)), theirs)


@pytest.mark.parametrize("steps", [4, 10, 50, 500])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_matches_diffusers(steps, variance, monkeypatch):
    # In diffusers the last step draws noise wherever its timestep is above 0, so with steps_offset 1 the finished image
    # of `fixed_large` is noisy (and `fixed_small` clamps its variance to 1e-20 rather than 0): left out there.
    scheduler = exact(DDPMScheduler(**SD_BETAS, clip_sample=False, variance_type=f"fixed_{variance}", steps_offset=1))
    scheduler.set_timesteps(steps)
    drawn = iter(range(100, 100 + steps))
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: normal(next(drawn)))
    x, theirs = normal(0), []
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(t)), t, x).prev_sample
        theirs.append(x)
    pairs = timestep_pairs(SD, steps, "leading")
    ours = states("ddpm", SD, pairs, variance=variance, step_noise=lambda k: normal(100 + k))
    assert_states(ours[:-1], theirs[:-1])
    if variance == "small":
        torch.testing.assert_close(ours[-1], theirs[-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
@pytest.mark.parametrize("schedule", [SD, SD_FIRST], ids=lambda schedule: schedule.final_alpha)
def test_dpmpp_2m_matches_diffusers(steps, schedule):
    # diffusers computes steps in float32, and its own leading spacing divides by steps + 1: hence our timesteps.
    pairs = timestep_pairs(schedule, steps, "trailing")
    final = "zero" if schedule.final_alpha == "one" else "sigma_min"
    scheduler = exact(DPMSolverMultistepScheduler(**SD_BETAS, final_sigmas_type=final, lower_order_final=False))
    scheduler.set_timesteps(timesteps=[t for t, _ in pairs])
    x, theirs = normal(0), []
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(t)), t, x).prev_sample
        theirs.append(x)
    assert_states(states("dpmpp_2m", schedule, pairs), theirs, rtol=2e-4, atol=2e-4)


def in_float64(scheduler, schedule, pairs):
    """A multistep scheduler on our pairs, with our noise levels in place of its float32 ones."""
    scheduler.timesteps = torch.tensor([t for t, _ in pairs])
    scheduler.num_inference_steps = len(pairs)
    levels = [level(schedule, t).ve_sigma for t, _ in pairs]
    scheduler.sigmas = torch.tensor([*levels, level(schedule, -1).ve_sigma], dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 100, 500])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("schedule", [SD, SD_FIRST], ids=lambda schedule: schedule.final_alpha)
def test_unipc_matches_diffusers(steps, spacing, schedule):
    pairs = timestep_pairs(schedule, steps, spacing)
    scheduler = in_float64(UniPCMultistepScheduler(**SD_BETAS, solver_order=2, solver_type="bh2"), schedule, pairs)
    x, theirs = normal(0), []
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(t)), t, x).prev_sample
        theirs.append(x)
    assert_states(states("unipc", schedule, pairs), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100, 500])
@pytest.mark.parametrize("schedule", [SD, SD_FIRST], ids=lambda schedule: schedule.final_alpha)
def test_dpmpp_2m_sde_matches_diffusers(steps, schedule):
    pairs = timestep_pairs(schedule, steps, "trailing")
    settings = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero", "lower_order_final": False}
    scheduler = in_float64(DPMSolverMultistepScheduler(**SD_BETAS, **settings), schedule, pairs)
    x, theirs = normal(0), []
    for k, t in enumerate(scheduler.timesteps):
        # diffusers draws its noise, and so computes a first-order step, in float32.
        x = scheduler.step(epsilon(x, int(t)), t, x, variance_noise=normal(100 + k).float()).prev_sample.double()
        theirs.append(x)
    ours = states("dpmpp_2m_sde", schedule, pairs, step_noise=lambda k: normal(100 + k).float())
    if schedule.final_alpha == "one":  # diffusers keeps its last step first order where that ends at sigma 0, as we do
        assert_states(ours, theirs, rtol=2e-5, atol=2e-5)
    assert_states(ours[:-1], theirs[:-1], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("schedule", [SD, SD_FIRST], ids=lambda schedule: schedule.final_alpha)
def test_lcm_matches_diffusers_without_boundary_scalings(steps, schedule, monkeypatch):
    scheduler = exact(LCMScheduler(**SD_BETAS, clip_sample=False))
    scheduler.get_scalings_for_boundary_condition_discrete = lambda timestep: (0.0, 1.0)
    scheduler.set_timesteps(steps)
    drawn = iter(range(100, 100 + steps))
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, **kwargs: normal(next(drawn)))
    x, theirs = normal(0), []
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(t)), t, x).prev_sample
        theirs.append(x)
    pairs = timestep_pairs(schedule, steps, "lcm")
    assert_states(states("lcm", schedule, pairs, step_noise=lambda k: normal(100 + k)), theirs)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 4, 20, 100])
def test_euler_and_heun_match_diffusers(spacing, steps):
    # x / alpha is diffusers' sample; Euler's is float32 there. Both start from our x_T (diffusers' own start is this
    # one for leading, and a little smaller for the other spacings).
    pairs = timestep_pairs(SD, steps, spacing)
    alphas = [level(SD, s).alpha for _, s in pairs]
    for name, kind in (("euler", EulerDiscreteScheduler), ("heun", HeunDiscreteScheduler)):
        scheduler = exact(kind(**SD_BETAS, timestep_spacing=spacing, steps_offset=1))
        scheduler.set_timesteps(steps)
        x, theirs = normal(0) / level(SD, pairs[0][0]).alpha, []
        for t in scheduler.timesteps:
            output = epsilon(scheduler.scale_model_input(x, t).double(), int(t))
            x = scheduler.step(output, t, x).prev_sample
            theirs.append(x.double())
        after_steps = theirs[1:-1:2] + theirs[-1:] if name == "heun" else theirs
        in_our_scale = [alpha * state for alpha, state in zip(alphas, after_steps, strict=True)]
        assert len(theirs) == evaluations(name, steps)
        assert_states(states(name, SD, pairs), in_our_scale, rtol=2e-4, atol=2e-4)


def flow_states(name, schedule, pairs, **settings):
    """As `states`, of a network that predicts the velocity of a flow."""
    context = torch.zeros(len(normal(0)), 1, 1)
    denoise = Denoiser(lambda x, t, c: epsilon(x, int(t[0])), schedule, "flow").bind(context)
    return list(sample(name, denoise, normal(0), schedule, pairs, **settings))


@pytest.mark.parametrize("steps", [1, 4, 20, 100])
@pytest.mark.parametrize("schedule", [FLOW, SHIFTED], ids=["even", "shifted"])
def test_flow_euler_and_heun_match_diffusers(steps, schedule):
    pairs = timestep_pairs(schedule, steps, "trailing")
    sigmas = torch.tensor([level(schedule, t).sigma for t, _ in pairs] + [0.0], dtype=torch.float32)
    for name, kind in (("euler", FlowMatchEulerDiscreteScheduler), ("heun", FlowMatchHeunDiscreteScheduler)):
        scheduler = kind()
        scheduler.set_timesteps(steps)
        calls = samplers.calls(name, pairs)
        # Our pairs and levels, laid out as the scheduler lays out its own; a call's time is its index.
        inner = sigmas[1:-1].repeat_interleave(2 if name == "heun" else 1)
        scheduler.sigmas = torch.cat([sigmas[:1], inner, sigmas[-1:]])
        scheduler.timesteps = torch.arange(len(calls)).float()
        x, theirs = normal(0), []
        for index, t in enumerate(calls):
            x = scheduler.step(epsilon(x.double(), t), scheduler.timesteps[index], x).prev_sample
            theirs.append(x.double())
        after_steps = theirs[1:-1:2] + theirs[-1:] if name == "heun" else theirs
        assert_states(flow_states(name, schedule, pairs), after_steps, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize(("name", "kind", "settings"), [
    ("dpmpp_2m", DPMSolverMultistepScheduler, {"lower_order_final": False, "euler_at_final": False}),
    ("unipc", UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
])  # fmt: skip
def test_multistep_samplers_match_diffusers_on_a_flow(name, kind, settings, steps):
    # diffusers never starts at pure noise: from its first timestep down, both are given the same start and levels.
    pairs = timestep_pairs(FLOW, steps + 1, "trailing")[1:]
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, **settings)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.tensor([t for t, _ in pairs])
    levels = [level(FLOW, t).sigma for t, _ in pairs]
    scheduler.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
    x, theirs = normal(0), []
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(x, int(t)), t, x).prev_sample
        theirs.append(x)

    def denoise(x, t):
        return to_x0("flow", epsilon(x, t), x, level(FLOW, t))

    ours = list(SAMPLERS[name].run(denoise, normal(0), pairs, FLOW))
    assert_states(ours, theirs, rtol=1e-5, atol=1e-5)  # DPM-Solver's steps are float32 there


def test_ddim_is_euler_on_a_flow():
    pairs = timestep_pairs(SHIFTED, 7, "trailing")
    assert_states(flow_states("ddim", SHIFTED, pairs), flow_states("euler", SHIFTED, pairs))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_a_flow_starts_in_pure_noise_or_not_at_all(name, spacing):
    pairs = timestep_pairs(FLOW, 4, spacing)
    if spacing == "trailing":
        assert all(state.isfinite().all() for state in flow_states(name, FLOW, pairs, eta=1.0, step_noise=normal))
        return
    with pytest.raises(SpecError, match="starts at timestep 999, pure noise, and not at 751: use spacing 'trailing'"):
        planned_evaluations(name, pairs, Guidance(), FLOW)


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 3, 7, 50])
@pytest.mark.parametrize("schedule", [SD, SD_FIRST], ids=lambda schedule: schedule.final_alpha)
def test_ddim_at_eta_1_is_ddpm_with_small_variance(spacing, steps, schedule):
    pairs = timestep_pairs(schedule, steps, spacing)
    noise = {"step_noise": lambda k: normal(100 + k)}
    assert_states(states("ddim", schedule, pairs, eta=1.0, **noise), states("ddpm", schedule, pairs, **noise))


def test_the_first_steps_of_the_second_order_samplers_are_first_order():
    pairs, noise = timestep_pairs(SD, 2, "trailing"), {"step_noise": lambda k: normal(100 + k)}
    for name, kin in (("unipc", "ddim"), ("dpmpp_2m", "ddim"), ("dpmpp_2m_sde", "ddpm")):
        torch.testing.assert_close(states(name, SD, pairs, **noise)[0], states(kin, SD, pairs, **noise)[0])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_last_state_is_the_last_denoised_image(name, spacing, steps):
    seen = []

    def denoise(x, t):
        seen.append(to_x0("epsilon", epsilon(x, t), x, level(SD, t)))
        return seen[-1]

    pairs = timestep_pairs(SD, steps, spacing)
    *_, last = sample(name, denoise, normal(0), SD, pairs, variance="large", step_noise=normal)
    torch.testing.assert_close(last, seen[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_keep_the_dtype(name, dtype):
    pairs = timestep_pairs(SD, 4, "trailing")
    noise = normal(1)
    for state in sample(
        name, lambda x, t: 0.9 * x, normal(0).to(dtype), SD, pairs, eta=1.0, step_noise=lambda k: noise
    ):
        assert state.dtype == dtype


# --- zero terminal SNR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "euler", "lcm", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_samplers_start_from_pure_noise(name, steps):
    pairs = timestep_pairs(ZERO_SNR, steps, "trailing")
    context = torch.zeros(2, 1, 1)
    denoise = Denoiser(lambda x, t, c: epsilon(x, int(t[0])), ZERO_SNR, "v_prediction").bind(context)
    assert level(ZERO_SNR, pairs[0][0]).alpha == 0
    x_T, noise = normal(0), normal(1)
    first, *rest = sample(name, denoise, x_T, ZERO_SNR, pairs, eta=1.0, step_noise=lambda k: noise)
    then = level(ZERO_SNR, pairs[0][1])
    fresh = noise if stochastic(name, 1.0) else x_T  # the first step keeps all of x_T as noise, or none of it
    torch.testing.assert_close(first, then.alpha * denoise(x_T, 999) + then.sigma * fresh)
    assert all(state.isfinite().all() for state in [first, *rest])


def test_heun_refuses_to_start_from_pure_noise():
    pairs = timestep_pairs(ZERO_SNR, 4, "trailing")
    message = "'heun' cannot start at timestep 999.*spacing 'leading'"
    with pytest.raises(SpecError, match=message):
        sample("heun", lambda x, t: x, normal(0), ZERO_SNR, pairs)
    with pytest.raises(SpecError, match=message):
        planned_evaluations("heun", pairs, Guidance(), ZERO_SNR)
    assert planned_evaluations("heun", timestep_pairs(ZERO_SNR, 4, "leading"), Guidance(), ZERO_SNR) == 7


# --- x0 ~ N(mean, deviation^2): everything is known ------------------------------------------------------------------

MEAN = torch.tensor([0.7, -1.0, 0.2], dtype=torch.float64)
DEVIATION = torch.tensor([0.8, 1.5, 0.4], dtype=torch.float64)


def gaussian_denoiser(schedule):
    """E[x0 | x_t] for x0 ~ N(MEAN, DEVIATION^2)."""

    def denoise(x, t):
        now = level(schedule, t)
        signal, noise = now.alpha**2 * DEVIATION**2, now.sigma**2
        return (noise * MEAN + now.alpha * DEVIATION**2 * x) / (signal + noise)

    return denoise


def ode_solution(schedule, x, t, s):
    """The probability-flow ODE keeps (x - alpha mean) / sqrt(alpha^2 deviation^2 + sigma^2)."""
    now, then = level(schedule, t), level(schedule, s)
    spread = [torch.sqrt(at.alpha**2 * DEVIATION**2 + at.sigma**2) for at in (now, then)]
    return then.alpha * MEAN + spread[1] / spread[0] * (x - now.alpha * MEAN)


# UniPC's corrector makes its second order a third.
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_convergence_order(name, order):
    # Between two timesteps with even steps at every count; off t = 0, where sigma goes as sqrt(t) and is not smooth.
    schedule = NoiseSchedule(num_train_timesteps=8000, beta_start=1e-4, beta_end=1.5e-3)
    x_T, top, bottom = normal(0, (5, 3)), 7600, 1200
    truth = ode_solution(schedule, x_T, top, bottom)
    errors = []
    for steps in (100, 200, 400):
        timesteps = range(top, bottom - 1, -(top - bottom) // steps)
        pairs = list(pairwise(timesteps))
        assert len(pairs) == steps
        *_, last = sample(name, gaussian_denoiser(schedule), x_T, schedule, pairs)
        errors.append(float((last - truth).abs().max()))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, order, atol=0.15)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
def test_convergence_order_on_a_flow(name, order):
    # From sigma 0.95 to 0.15; the samplers themselves, as a trajectory would have to start in pure noise.
    schedule = NoiseSchedule(kind="flow", num_train_timesteps=8000)
    x, top, bottom = normal(0, (5, 3)), 7599, 1199
    truth = ode_solution(schedule, x, top, bottom)
    errors = []
    for steps in (100, 200, 400):
        pairs = list(pairwise(range(top, bottom - 1, -(top - bottom) // steps)))
        settings = {"eta": 0.0, "step_noise": normal} if name == "ddim" else {}
        *_, last = SAMPLERS[name].run(gaussian_denoiser(schedule), x, pairs, schedule, **settings)
        errors.append(float((last - truth).abs().max()))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), order, atol=0.15)


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("schedule", [SD, FLOW, SHIFTED], ids=["sd", "flow", "shifted"])
def test_final_image_of_the_gaussian(name, schedule):
    x_T = normal(0, (5, 3))
    *_, last = sample(name, gaussian_denoiser(schedule), x_T, schedule, timestep_pairs(schedule, 1000, "trailing"))
    torch.testing.assert_close(last, ode_solution(schedule, x_T, 999, -1), rtol=0, atol=0.01)


def mean_and_deviation(name, schedule, steps, **settings):
    """Of the last state over all noise, exactly: it is affine in each noise, whose coefficient one row gives.

    x_T is drawn from the Gaussian's own marginal at the first timestep, so that only the steps' error is left.
    """
    pairs = timestep_pairs(schedule, steps, "trailing")
    now = level(schedule, pairs[0][0])
    x_T = (now.alpha * MEAN).repeat(steps + 2, 1)
    x_T[0] += torch.sqrt(now.alpha**2 * DEVIATION**2 + now.sigma**2)

    def one_row(k):
        noise = torch.zeros_like(x_T)
        noise[k + 1] = 1
        return noise

    denoise = gaussian_denoiser(schedule)
    *_, last = sample(name, denoise, x_T, schedule, pairs, step_noise=one_row, **settings)
    mean = last[-1]  # the row without any noise
    return mean, (last[:-1] - mean).square().sum(0).sqrt()


@pytest.mark.parametrize("schedule", [SD, ZERO_SNR, FLOW], ids=["sd", "zero_snr", "flow"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ddpm", {"variance": "small"}),
        ("ddpm", {"variance": "large"}),
        ("ddim", {"eta": 1.0}),
        ("ddim", {"eta": 0.5}),
        ("dpmpp_2m_sde", {}),
    ],
    ids=str,
)
def test_stochastic_samplers_reach_mean_and_deviation(name, settings, schedule):
    errors = []
    for steps in (100, 1000):
        mean, deviation = mean_and_deviation(name, schedule, steps, **settings)
        errors.append(max(float((mean - MEAN).abs().max()), float((deviation - DEVIATION).abs().max())))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_lcm_of_a_consistency_function_keeps_the_distribution():
    # A perfect consistency model gives the image at the end of the ODE from any timestep: fresh noise changes nothing.
    for steps in (1, 2, 8):
        pairs = timestep_pairs(SD, steps, "lcm")
        x_T = torch.zeros(steps + 2, 3, dtype=torch.float64)
        start = level(SD, pairs[0][0])
        x_T += start.alpha * MEAN
        x_T[0] += torch.sqrt(start.alpha**2 * DEVIATION**2 + start.sigma**2)

        def one_row(k, x_T=x_T):
            noise = torch.zeros_like(x_T)
            noise[k + 1] = 1
            return noise

        *_, last = sample("lcm", lambda x, t: ode_solution(SD, x, t, -1), x_T, SD, pairs, step_noise=one_row)
        deviation = (last[:-1] - last[-1]).square().sum(0).sqrt()
        torch.testing.assert_close(last[-1], MEAN, rtol=0, atol=1e-12)
        # x0 and noise add up to a marginal that is the Gaussian's own only where x0 has its deviation.
        torch.testing.assert_close(deviation, DEVIATION, rtol=0, atol=1e-9)


# --- planned evaluations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "guidance", [Guidance(), Guidance(scale=3), Guidance(scale=3, interval=(200, 700))], ids=["none", "all", "interval"]
)
def test_counted_evaluations_are_the_planned_ones(name, guidance):
    x_T, context = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1)
    rows = []

    def network(x, timesteps, context):
        rows.append(x.shape[0])
        return x

    for steps in (*range(1, 21), 50, 128, 500):
        for schedule, spacing in ((SD, "trailing"), (SD_FIRST, "leading")):
            rows.clear()
            denoiser = Denoiser(network, schedule, "v_prediction")
            pairs = timestep_pairs(schedule, steps, spacing)
            denoise = guide(denoiser, context, context[0], guidance)
            trajectory = list(sample(name, denoise, x_T, schedule, pairs, step_noise=lambda k: x_T))
            assert len(trajectory) == steps
            planned = planned_evaluations(name, pairs, guidance, schedule)
            assert denoiser.evaluations == sum(rows) == planned
            if guidance.interval is None:
                each = 1 if guidance.scale == 1 else 2
                assert planned == each * evaluations(name, steps)


def test_evaluations_by_hand():
    assert {name: evaluations(name, 10) for name in SAMPLERS} == {
        "ddim": 10,
        "ddim_back": 10,
        "ddpm": 10,
        "dpmpp_2m": 10,
        "dpmpp_2m_sde": 10,
        "euler": 10,
        "heun": 19,
        "lcm": 10,
        "unipc": 10,
    }
    pairs = [(999, 600), (600, 300), (300, -1)]
    # Heun calls D at 999 600 | 600 300 | 300.
    assert planned_evaluations("heun", pairs, Guidance(scale=2, interval=(500, 700)), SD) == 7
    assert planned_evaluations("ddim", pairs, Guidance(scale=2, interval=(500, 700)), SD) == 4


# --- what is refused -------------------------------------------------------------------------------------------------


def test_stochastic():
    always = ["ddim_back", "ddpm", "dpmpp_2m_sde", "lcm"]
    assert [name for name in SAMPLERS if stochastic(name, 0.0)] == always
    assert [name for name in SAMPLERS if stochastic(name, 0.5)] == ["ddim", *always]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "ddmi"}, "unknown sampler 'ddmi'.*'ddpm'"),
        ({"name": "ddpm"}, "'ddpm' at eta 0.0 is stochastic"),
        ({"name": "lcm"}, "'lcm' at eta 0.0 is stochastic"),
        ({"name": "dpmpp_2m_sde"}, "'dpmpp_2m_sde' at eta 0.0 is stochastic"),
        ({"name": "ddim", "eta": 0.3}, "'ddim' at eta 0.3 is stochastic"),
        ({"name": "ddpm", "variance": "medium", "step_noise": normal}, "'medium' is neither"),
        ({"name": "ddim", "pairs": [(9, 5), (4, -1)]}, "not contiguous"),
    ],
)
def test_refused_before_any_evaluation(settings, message):
    def denoise(x, t):
        pytest.fail("the network was evaluated")

    arguments = {"D": denoise, "x_T": normal(0), "schedule": SD, "pairs": [(9, 5), (5, -1)], **settings}
    with pytest.raises(SpecError, match=message):
        sample(**arguments)


@pytest.mark.parametrize("function", [evaluations, stochastic, samplers.calls])
def test_unknown_sampler(function):
    with pytest.raises(SpecError, match=r"unknown sampler 'eular'.*'euler'"):
        function("eular", 1)
