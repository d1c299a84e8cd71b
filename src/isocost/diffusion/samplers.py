"""Samplers: each a short function over exact timestep pairs that yields the state after every step.

A state is x = alpha x0 + sigma eps, and x_T is unit-variance noise, for all samplers alike. None asks for alpha^2 +
sigma^2 = 1, so a flow (alpha + sigma = 1) is sampled as any schedule is. Coefficients are Python floats (float64),
applied in the dtype of x. The last pair's s = -1 lands on the schedule's `final_alpha`; where that is 1, the last state
is the last denoised image. Nothing divides by zero there, nor at a start in pure noise (Heun apart, which refuses it
but on a flow).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from isocost.diffusion.guidance import Denoise, evaluations_per_call
from isocost.diffusion.schedule import END, Level, Pairs, check_pairs, level
from isocost.errors import SpecError, lookup
from isocost.specs import Guidance, NoiseSchedule

StepNoise = Callable[[int], Tensor]
"""k -> standard normal noise [B, C, H, W] for step k (0-based)."""


def ddim(
    D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule, eta: float, step_noise: StepNoise
) -> Iterator[Tensor]:
    """DDIM (arXiv 2010.02502, eq. 12 and 16): eta 0 is deterministic, eta 1 is `ddpm` with its small variance."""
    for k, (t, s) in enumerate(pairs):
        now, then = level(schedule, t), level(schedule, s)
        x0 = D(x, t)
        std = eta * math.sqrt(_small_variance(now, then))
        x = then.alpha * x0 + math.sqrt(max(then.sigma**2 - std**2, 0.0)) * _epsilon(x, x0, now)
        yield (x := _with_noise(x, std, step_noise, k))


def ddpm(
    D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule, variance: str, step_noise: StepNoise
) -> Iterator[Tensor]:
    """Ancestral sampling from q(x_s | x_t, x0) (DDPM, arXiv 2006.11239, eq. 6 and 7, with timesteps skipped).

    The last step always has the small variance (0 where final alpha is 1), so that no noise is left on the image.
    """
    for k, (t, s) in enumerate(pairs):
        now, then = level(schedule, t), level(schedule, s)
        added = _added_variance(now, then)
        x = _posterior_mean(x, D(x, t), now, then)
        large = variance == "large" and s != END
        yield (x := _with_noise(x, math.sqrt(added if large else _small_variance(now, then)), step_noise, k))


def dpmpp_2m(D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2): second order from the last two denoised images.

    First order (DDIM) on the first step and on a step to sigma 0, where h is infinite. Nor can a step out of pure
    noise tell a slope: h_last is infinite, and the step after it comes out first order.
    """
    x0_last, h_last = None, math.inf
    for t, s in pairs:
        now, then = level(schedule, t), level(schedule, s)
        x0, h = D(x, t), _log_snr_step(now, then)
        x = _exponential_step(x, _extrapolated(x0, x0_last, h, h_last), now, then)
        x0_last, h_last = x0, h
        yield x


def dpmpp_2m_sde(
    D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule, step_noise: StepNoise
) -> Iterator[Tensor]:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, section 3.4): `ddpm` with the extrapolated image of `dpmpp_2m`.

    For the paper's factors sigma_s/sigma_t e^-h, alpha_s (1 - e^-2h) and sigma_s (1 - e^-2h)^(1/2) are those of the
    posterior q(x_s | x_t, x0): a first-order step is `ddpm`'s at its small variance.
    """
    x0_last, h_last = None, math.inf
    for k, (t, s) in enumerate(pairs):
        now, then = level(schedule, t), level(schedule, s)
        x0, h = D(x, t), _log_snr_step(now, then)
        x = _posterior_mean(x, _extrapolated(x0, x0_last, h, h_last), now, then)
        x0_last, h_last = x0, h
        yield (x := _with_noise(x, math.sqrt(_small_variance(now, then)), step_noise, k))


def unipc(D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule) -> Iterator[Tensor]:
    """UniPC of order 2 with B(h) = e^h - 1 (arXiv 2302.04867, Algorithms 1 and 2, data prediction: "bh2").

    Its predictor is the step of `dpmpp_2m`. The denoised image at the next timestep, before it serves the next step,
    corrects the step that led there, so a step is one call. The last step is first order, and is not corrected.
    """
    x0_last, h_last, correct = None, math.inf, None
    for t, s in pairs:
        now, then = level(schedule, t), level(schedule, s)
        x0, h = D(x, t), _log_snr_step(now, then)
        x = correct(x0) if correct else x
        correct = functools.partial(_corrected_step, x, x0, x0_last, h_last, now, then)
        slope = x0 if s == END else _extrapolated(x0, x0_last, h, h_last)
        x0_last, h_last = x0, h
        yield (x := _exponential_step(x, slope, now, then))


def lcm(D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule, step_noise: StepNoise) -> Iterator[Tensor]:
    """Multistep consistency sampling (arXiv 2310.04378, Algorithm 3): denoise, then add fresh noise; the last denoises.

    For networks distilled to give the image from any timestep. D is the plain denoiser: the boundary scalings of a
    consistency model are left out, of which c_skip is under 1e-5 from timestep 16 up.
    """
    for k, (t, s) in enumerate(pairs):
        x0, then = D(x, t), level(schedule, s)
        yield (x := x0 if s == END else _with_noise(then.alpha * x0, then.sigma, step_noise, k))


def ddim_back(D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule, step_noise: StepNoise) -> Iterator[Tensor]:
    """The stochastic sampler of guided distillation (arXiv 2210.03142, section 3.2): a DDIM step of twice the length,
    then noise takes it half-way back; the last step is a single one.

    For a student of N steps that learned to start between them, 2N steps here.
    """
    for k, (t, s) in enumerate(pairs):
        now, back = level(schedule, t), level(schedule, s)
        beyond = back if s == END else level(schedule, pairs[k + 1][1])
        x0 = D(x, t)
        x = beyond.alpha * x0 + beyond.sigma * _epsilon(x, x0, now)
        if s != END:
            x = _with_noise(back.alpha / beyond.alpha * x, math.sqrt(_added_variance(back, beyond)), step_noise, k)
        yield x


def euler(D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule) -> Iterator[Tensor]:
    """Euler's method on the probability-flow ODE d(x/alpha) / d(sigma/alpha) = eps (arXiv 2206.00364, k-diffusion).

    x_s/alpha_s = x/alpha + (sigma_s/alpha_s - sigma/alpha) eps = x0 + (sigma_s/alpha_s) eps, which is DDIM at eta 0,
    and in that form starts at an infinite sigma too. In k-diffusion's terms x starts at x_T/alpha, of variance
    1 + (sigma/alpha)^2; k-diffusion leaves out the 1, which makes x 0.2% smaller at Stable Diffusion's last timestep.
    Euler's step on the ODE of a flow, dx / d(sigma) = eps - x0, is this one too.
    """
    for t, s in pairs:
        x0 = D(x, t)
        yield (x := _euler_step(x, x0, level(schedule, t), level(schedule, s)))


def heun(D: Denoise, x: Tensor, pairs: Pairs, schedule: NoiseSchedule) -> Iterator[Tensor]:
    """Heun's method on the ODE of `euler` (EDM, arXiv 2206.00364, Algorithm 1): two calls a step, but one on the last.

    On a flow its ODE is dx / d(sigma) = eps - x0 instead, which has a slope at pure noise too; elsewhere it cannot
    start there, where the two slopes meet an infinite step. The last step (s = -1) is Euler's whatever `final_alpha`:
    no network was trained at sigma 0, and so N steps are 2N - 1 calls always.
    """
    for t, s in pairs:
        now, then = level(schedule, t), level(schedule, s)
        x0 = D(x, t)
        ahead = _euler_step(x, x0, now, then)
        if s != END:
            x0_ahead = D(ahead, s)
            slope = (_epsilon(x, x0, now) + _epsilon(ahead, x0_ahead, then)) / 2
            if schedule.kind == "flow":
                ahead = x + (then.sigma - now.sigma) * (slope - (x0 + x0_ahead) / 2)
            else:
                ahead = (then.alpha / now.alpha) * x + then.alpha * (then.ve_sigma - now.ve_sigma) * slope
        yield (x := ahead)


def _epsilon(x: Tensor, x0: Tensor, now: Level) -> Tensor:
    return (x - now.alpha * x0) / now.sigma


def _euler_step(x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    return then.alpha * x0 + then.sigma * _epsilon(x, x0, now)


def _log_snr_step(now: Level, then: Level) -> float:
    """h, a step in lambda = ln(alpha / sigma): positive, and infinite out of pure noise or to a clean image."""
    return then.half_log_snr - now.half_log_snr


def _exponential_step(x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """The ODE's exact step where the denoised image stays x0 all along (DPM-Solver++, arXiv 2211.01095, eq. 8)."""
    return (then.sigma / now.sigma) * x - then.alpha * math.expm1(-_log_snr_step(now, then)) * x0


def _extrapolated(x0: Tensor, x0_last: Tensor | None, h: float, h_last: float) -> Tensor:
    """The denoised image in the middle of a step of h, by the line through the last two, h_last apart."""
    return x0 if x0_last is None or h == math.inf else x0 + h / (2 * h_last) * (x0 - x0_last)


def _corrected_step(
    x: Tensor, x0: Tensor, x0_last: Tensor | None, h_last: float, now: Level, then: Level, x0_then: Tensor
) -> Tensor:
    """UniC: the step from x again, now that the denoised image at its end is known."""
    if x0_last is None:
        return _exponential_step(x, x0 + (x0_then - x0) / 2, now, then)
    h = _log_snr_step(now, then)
    first = 1 / -h - 1 / math.expm1(-h)
    second = 2 * (first / -h - 1 / (2 * math.expm1(-h)))
    before = (first - second) / (1 + h_last / h)
    slope = x0 + before * h / h_last * (x0 - x0_last) + (first - before) * (x0_then - x0)
    return _exponential_step(x, slope, now, then)


def _posterior_mean(x: Tensor, x0: Tensor, now: Level, then: Level) -> Tensor:
    """Mean of q(x_s | x_t, x0)."""
    ratio, added = now.alpha / then.alpha, _added_variance(now, then)
    return (ratio * then.sigma**2 / now.sigma**2) * x + (then.alpha * added / now.sigma**2) * x0


def _added_variance(now: Level, then: Level) -> float:
    """Variance of q(x_t | x_s), the "large" one: b = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2.

    That is 1 - (alpha_t / alpha_s)^2 where alpha^2 + sigma^2 = 1.
    """
    return now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2


def _small_variance(now: Level, then: Level) -> float:
    """Variance of q(x_s | x_t, x0): b sigma_s^2 / sigma_t^2."""
    return _added_variance(now, then) * then.sigma**2 / now.sigma**2


def _with_noise(x: Tensor, std: float, step_noise: StepNoise, k: int) -> Tensor:
    return x + std * step_noise(k).to(x) if std > 0 else x


def _one_call_a_step(pairs: Pairs) -> list[int]:
    return [t for t, _ in pairs]


def _two_calls_a_step(pairs: Pairs) -> list[int]:
    return [called for pair in pairs for called in pair if called != END]


class Sampler(NamedTuple):
    """A sampler with what planning needs of it.

    settings: which of eta, variance and step_noise it takes. ddim_steps: whether, at an eta, its steps are
    x_s = alpha_s x0 + sigma_s eps, which is the step that CFG++ is defined for.
    """

    run: Callable[..., Iterator[Tensor]]
    settings: tuple[str, ...] = ()
    stochastic: Callable[[float], bool] = lambda eta: False
    ddim_steps: Callable[[float], bool] = lambda eta: False
    calls: Callable[[Pairs], list[int]] = _one_call_a_step
    starts_at_zero_snr: bool = True


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim, ("eta", "step_noise"), stochastic=lambda eta: eta > 0, ddim_steps=lambda eta: eta == 0),
    "ddim_back": Sampler(ddim_back, ("step_noise",), stochastic=lambda eta: True),
    "ddpm": Sampler(ddpm, ("variance", "step_noise"), stochastic=lambda eta: True),
    "dpmpp_2m": Sampler(dpmpp_2m),
    "dpmpp_2m_sde": Sampler(dpmpp_2m_sde, ("step_noise",), stochastic=lambda eta: True),
    "euler": Sampler(euler, ddim_steps=lambda eta: True),
    "heun": Sampler(heun, calls=_two_calls_a_step, starts_at_zero_snr=False),
    "lcm": Sampler(lcm, ("step_noise",), stochastic=lambda eta: True),
    "unipc": Sampler(unipc),
}
VARIANCES = ("small", "large")


def sample(
    name: str,
    D: Denoise,
    x_T: Tensor,
    schedule: NoiseSchedule,
    pairs: Pairs,
    eta: float = 0.0,
    variance: str = "small",
    step_noise: StepNoise | None = None,
) -> Iterator[Tensor]:
    """States [B, C, H, W] after each pair, the last one at `final_alpha`; x_T [B, C, H, W] is standard normal noise.

    `eta` counts for ddim, `variance` ("small" or "large") for ddpm; `step_noise` where `stochastic(name, eta)`.
    Raises `SpecError`, before any evaluation, for an unknown sampler or variance, pairs that are not a trajectory,
    missing step noise, Heun from zero terminal SNR, or a flow from anywhere but pure noise.
    """
    _check_trajectory(name, pairs, schedule)
    if variance not in VARIANCES:
        raise SpecError(f"variance '{variance}' is neither 'small' nor 'large'.")
    if step_noise is None and stochastic(name, eta):
        raise SpecError(f"sampler '{name}' at eta {eta} is stochastic: give it step_noise.")
    settings = {"eta": eta, "variance": variance, "step_noise": step_noise}
    sampler = SAMPLERS[name]
    return sampler.run(D, x_T, pairs, schedule, **{key: settings[key] for key in sampler.settings})


def evaluations(name: str, steps: int) -> int:
    """Calls of D in a whole trajectory of `steps` steps: `steps`, but 2 steps - 1 for Heun, on any schedule."""
    return len(calls(name, [(t, t - 1) for t in reversed(range(steps))]))


def calls(name: str, pairs: Pairs) -> list[int]:
    """The timesteps at which the sampler calls D, in order."""
    return lookup(SAMPLERS, name, "sampler").calls(pairs)


def planned_evaluations(name: str, pairs: Pairs, guidance: Guidance, schedule: NoiseSchedule) -> int:
    """Network evaluations an image, guidance included. Raises `SpecError` where `sample` would refuse the pairs."""
    _check_trajectory(name, pairs, schedule)
    return sum(evaluations_per_call(guidance, t) for t in calls(name, pairs))


def stochastic(name: str, eta: float) -> bool:
    """Whether the sampler draws noise on its way: always for ddpm, at eta > 0 for ddim, else never."""
    return lookup(SAMPLERS, name, "sampler").stochastic(eta)


def _check_trajectory(name: str, pairs: Pairs, schedule: NoiseSchedule) -> None:
    sampler = lookup(SAMPLERS, name, "sampler")
    check_pairs(pairs)
    start = level(schedule, pairs[0][0])
    if schedule.kind == "flow":
        if start.alpha > 0:
            raise SpecError(
                f"a flow starts at timestep {schedule.num_train_timesteps - 1}, pure noise, and not at {pairs[0][0]}: "
                "use spacing 'trailing'."
            )
    elif start.alpha == 0 and not sampler.starts_at_zero_snr:
        raise SpecError(
            f"sampler '{name}' cannot start at timestep {pairs[0][0]}, where the SNR is 0 and sigma infinite: "
            "use 'ddim' or 'dpmpp_2m', or spacing 'leading'."
        )
