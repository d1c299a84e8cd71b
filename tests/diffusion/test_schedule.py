from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, rescale_zero_terminal_snr
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from hypothesis import given
from hypothesis import strategies as st

from isocost.diffusion.schedule import (
    LCM_TIMESTEPS,
    SPACINGS,
    alphas_cumprod,
    check_pairs,
    ends_in_noise,
    level,
    level_table,
    timestep_pairs,
)
from isocost.errors import SpecError
from isocost.specs import NoiseSchedule

SD = NoiseSchedule()
ZERO_SNR = NoiseSchedule(zero_terminal_snr=True)
FLOW = NoiseSchedule(kind="flow")
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIVISORS = [n for n in range(1, 1001) if 1000 % n == 0]


def test_stable_diffusion_table():
    values = alphas_cumprod(SD)
    assert values.shape == (1000,) and values.dtype == np.float64
    assert values[0] == 1 - 0.00085
    assert values[-1] == pytest.approx(0.00466, abs=5e-6)


KINDS = ["scaled_linear", "linear", "squaredcos_cap_v2"]


@pytest.mark.parametrize("kind", KINDS)
def test_alphas_cumprod_match_diffusers(kind):
    schedule = NoiseSchedule(kind=kind, beta_start=1e-4, beta_end=0.02)
    theirs = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule=kind).alphas_cumprod
    # theirs is float32
    np.testing.assert_allclose(alphas_cumprod(schedule), theirs.numpy(), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_terminal_snr_matches_diffusers_and_is_exactly_zero(kind):
    ours = alphas_cumprod(NoiseSchedule(kind=kind, zero_terminal_snr=True))
    plain = alphas_cumprod(NoiseSchedule(kind=kind))
    betas = torch.from_numpy(1 - plain / np.concatenate([[1.0], plain[:-1]]))
    np.testing.assert_allclose(ours, np.cumprod(1 - rescale_zero_terminal_snr(betas).numpy()), rtol=1e-9, atol=1e-15)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(plain[0], rel=1e-15)
    assert (np.diff(ours) < 0).all()


def test_alphas_cumprod_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        alphas_cumprod(SD)[0] = 1


def test_the_end_is_the_final_alpha():
    assert level(SD, -1) == (1, 0)
    assert level(NoiseSchedule(final_alpha="first"), -1) == level(SD, 0)
    assert level(SD, 999).alpha == math.sqrt(alphas_cumprod(SD)[999])


@pytest.mark.parametrize("t", [-2, 1000])
def test_timestep_outside_the_schedule(t):
    with pytest.raises(SpecError, match=r"outside the schedule's -1\.\.999"):
        level(SD, t)


def test_levels():
    now = level(SD, 500)
    assert now.alpha**2 + now.sigma**2 == pytest.approx(1, abs=1e-15)
    assert now.half_log_snr == pytest.approx(math.log(now.alpha / now.sigma))
    assert now.ve_sigma == pytest.approx(math.exp(-now.half_log_snr))
    clean, pure = level(SD, -1), level(NoiseSchedule(zero_terminal_snr=True), 999)
    assert (clean.half_log_snr, clean.ve_sigma) == (math.inf, 0)
    assert (pure.half_log_snr, pure.ve_sigma) == (-math.inf, math.inf)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_flow_is_diffusers_straight_line(shift):
    alpha, sigma = level_table(NoiseSchedule(kind="flow", shift=shift))
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift).sigmas.flip(0).numpy()  # float32
    np.testing.assert_allclose(sigma, theirs, rtol=1e-6)
    np.testing.assert_allclose(alpha + sigma, 1, rtol=0, atol=1e-15)
    assert (alpha[-1], sigma[-1]) == (0, 1) and (np.diff(sigma) > 0).all()


def test_where_a_schedule_ends():
    assert [ends_in_noise(schedule) for schedule in (SD, ZERO_SNR, FLOW)] == [False, True, True]
    assert level(FLOW, -1) == (1, 0)
    assert level(FLOW.model_copy(update={"final_alpha": "first"}), -1) == level(FLOW, 0) == (0.999, 0.001)
    with pytest.raises(SpecError, match="'flow' has no alpha_cumprod"):
        alphas_cumprod(FLOW)
    with pytest.raises(ValueError, match="read-only"):
        level_table(FLOW)[0, 0] = 1


@pytest.mark.parametrize("steps", [n for n in DIVISORS if n < 1000])
def test_leading_matches_diffusers_where_steps_divide(steps):
    scheduler = DDIMScheduler(**SD_BETAS)
    scheduler.set_timesteps(steps)
    assert [t for t, _ in timestep_pairs(SD, steps, "leading")] == scheduler.timesteps.tolist()


def test_leading_at_all_timesteps_stays_inside_the_schedule():
    # diffusers' offset of 1 makes this 1000..1, and alphas_cumprod[1000] is an IndexError.
    assert timestep_pairs(SD, 1000, "leading") == [(t, t - 1) for t in range(999, -1, -1)]


def test_leading_starts_near_the_top_at_uneven_counts():
    # diffusers' stride is 1000 // 600 = 1: it starts at 600, where x is far from pure noise.
    assert timestep_pairs(SD, 600, "leading")[0][0] == 999


def test_linspace_matches_diffusers_at_every_count():
    scheduler = DDIMScheduler(**SD_BETAS, timestep_spacing="linspace")
    for steps in range(2, 1001):
        scheduler.set_timesteps(steps)
        assert [t for t, _ in timestep_pairs(SD, steps, "linspace")] == scheduler.timesteps.tolist()


def test_one_linspace_step_starts_at_the_noise():
    assert timestep_pairs(SD, 1, "linspace") == [(999, -1)]  # diffusers: timestep 0, the clean end


@pytest.mark.parametrize("steps", [*DIVISORS, 3, 6, 7, 30, 600, 999])
def test_trailing_matches_diffusers(steps):
    # Euler's scheduler has the same timesteps as DDIM's, and takes steps between them rather than of a fixed stride.
    scheduler = EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert [t for t, _ in timestep_pairs(SD, steps, "trailing")] == scheduler.timesteps.tolist()


def test_uneven_pairs_step_to_the_next_timestep():
    # diffusers' DDIM steps by 1000 // 6 = 166 whatever the timesteps are: 999 -> 833, then resumes from 832.
    assert timestep_pairs(SD, 6, "trailing") == [(999, 832), (832, 666), (666, 499), (499, 332), (332, 166), (166, -1)]


@pytest.mark.parametrize("steps", range(1, 51))
def test_lcm_matches_diffusers(steps):
    scheduler = LCMScheduler()
    scheduler.set_timesteps(steps)
    assert [t for t, _ in timestep_pairs(SD, steps, "lcm")] == scheduler.timesteps.tolist()


@pytest.mark.parametrize(("steps", "count"), [(51, 1000), (4, 49)])
def test_lcm_has_fifty_timesteps(steps, count):
    with pytest.raises(SpecError, match="'lcm' has 50 timesteps"):
        timestep_pairs(NoiseSchedule(num_train_timesteps=count), steps, "lcm")


@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("steps", [4, 10, 50])
def test_leading_with_another_offset_matches_diffusers(steps, offset):
    scheduler = DDIMScheduler(**SD_BETAS | {"steps_offset": offset})
    scheduler.set_timesteps(steps)
    assert [t for t, _ in timestep_pairs(SD, steps, "leading", offset)] == scheduler.timesteps.tolist()


def test_an_offset_that_leads_out_of_the_schedule():
    with pytest.raises(SpecError, match="steps_offset 600 at 4 steps starts at timestep 1350 of 1000"):
        timestep_pairs(SD, 4, "leading", 600)


@given(
    count=st.integers(2, 4000),
    share=st.floats(0, 1),
    spacing=st.sampled_from(sorted(SPACINGS)),
)
def test_pairs_descend_contiguously_from_the_schedule_to_the_end(count, share, spacing):
    steps = max(1, round(share * count))
    if spacing == "lcm":
        count, steps = max(count, LCM_TIMESTEPS), max(1, round(share * LCM_TIMESTEPS))
    pairs = timestep_pairs(NoiseSchedule(num_train_timesteps=count), steps, spacing)
    assert len(pairs) == steps
    assert pairs[0][0] < count and pairs[-1][1] == -1
    assert all(t > s >= -1 for t, s in pairs)
    assert all(end == start for (_, end), (start, _) in pairwise(pairs))
    if spacing in ("linspace", "trailing"):
        assert pairs[0][0] == count - 1


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts(spacing, steps):
    with pytest.raises(SpecError, match=rf"steps: {steps} is outside 1\.\.1000"):
        timestep_pairs(SD, steps, spacing)


def test_unknown_spacing_names_the_nearest():
    with pytest.raises(SpecError, match=r"unknown spacing 'trailin'\. Did you mean 'trailing'"):
        timestep_pairs(SD, 10, "trailin")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "none given"),
        ([(3, 3)], "does not descend"),
        ([(3, -2)], "does not descend"),
        ([(9, 5), (4, -1)], "ends at 5, the next starts at 4"),
    ],
)
def test_broken_pairs(pairs, message):
    with pytest.raises(SpecError, match=message):
        check_pairs(pairs)


def test_schedules_and_noise_need_no_torch():
    code = "import sys, isocost.diffusion.schedule, isocost.diffusion.noise; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
