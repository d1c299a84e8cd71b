"""Noise levels and timesteps: x_t = alpha_t x0 + sigma_t eps.

A schedule of betas preserves variance: alpha_t^2 = alpha_cumprod[t] and sigma_t^2 = 1 - alpha_t^2. A flow is the
straight line alpha_t = 1 - sigma_t. All in float64; nothing here imports torch. Timestep -1 stands for the end of
sampling, the schedule's `final_alpha`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from isocost.errors import SpecError, lookup
from isocost.specs import NoiseSchedule

END = -1
LCM_TIMESTEPS = 50
Pairs = Sequence[tuple[int, int]]


class Level(NamedTuple):
    """A noise level: x = alpha x0 + sigma eps, with alpha^2 + sigma^2 = 1, or alpha + sigma = 1 on a flow."""

    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """lambda = ln(alpha / sigma) of DPM-Solver (arXiv 2206.00927); -inf at pure noise, inf at a clean image."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.alpha else -math.inf
        return math.log(self.alpha / self.sigma)

    @property
    def ve_sigma(self) -> float:
        """sigma / alpha, the sigma of k-diffusion and EDM: x / alpha = x0 + ve_sigma eps; inf at pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf


def alphas_cumprod(schedule: NoiseSchedule) -> np.ndarray:
    """alpha_cumprod at timesteps 0..T-1: float64 [T], strictly falling, read-only (it is cached).

    `scaled_linear` is linear in sqrt(beta) (Stable Diffusion), `linear` in beta (DDPM, arXiv 2006.11239), and
    `squaredcos_cap_v2` the cosine of arXiv 2102.09672, eq. 17, with no beta over 0.999. A flow has none: `SpecError`.
    """
    if schedule.kind == "flow":
        raise SpecError("a schedule of kind 'flow' has no alpha_cumprod: its levels are those of level_table().")
    count, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
    return _alphas_cumprod(schedule.kind, count, start, end, schedule.zero_terminal_snr)


@lru_cache(maxsize=64)
def _alphas_cumprod(kind: str, count: int, start: float, end: float, zero_terminal_snr: bool) -> np.ndarray:
    if kind == "scaled_linear":
        betas = np.linspace(math.sqrt(start), math.sqrt(end), count) ** 2
    elif kind == "linear":
        betas = np.linspace(start, end, count)
    else:
        cosine = np.cos((np.linspace(0, 1, count + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)
    values = np.cumprod(1 - betas)
    if zero_terminal_snr:
        values = _rescale_to_zero_snr(values)
    return _read_only(values)


def _rescale_to_zero_snr(values: np.ndarray) -> np.ndarray:
    """Shift and scale sqrt(alpha_cumprod): its last becomes 0, its first stays (arXiv 2305.08891, Algorithm 1)."""
    roots = np.sqrt(values)
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)) ** 2


def level_table(schedule: NoiseSchedule) -> np.ndarray:
    """alpha and sigma at timesteps 0..T-1: float64 [2, T], read-only (it is cached).

    Timestep t of a flow has sigma = (t + 1) / T, shifted: sigma' = shift sigma / (1 + (shift - 1) sigma) (Stable
    Diffusion 3, arXiv 2403.03206, eq. 23). So its last timestep is pure noise.
    """
    if schedule.kind == "flow":
        return _flow_levels(schedule.num_train_timesteps, schedule.shift)
    count, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
    return _levels_of_betas(schedule.kind, count, start, end, schedule.zero_terminal_snr)


@lru_cache(maxsize=64)
def _flow_levels(count: int, shift: float) -> np.ndarray:
    straight = np.arange(1, count + 1) / count
    sigma = shift * straight / (1 + (shift - 1) * straight)
    return _read_only(np.stack([1 - sigma, sigma]))


@lru_cache(maxsize=64)
def _levels_of_betas(kind: str, count: int, start: float, end: float, zero_terminal_snr: bool) -> np.ndarray:
    signal = _alphas_cumprod(kind, count, start, end, zero_terminal_snr)
    return _read_only(np.sqrt([signal, 1 - signal]))


def _read_only(table: np.ndarray) -> np.ndarray:
    table.setflags(write=False)
    return table


def level(schedule: NoiseSchedule, t: int) -> Level:
    """The noise level at timestep t; -1 is the end of sampling: a clean image, or timestep 0's level where
    `final_alpha` is "first"."""
    if not END <= t < schedule.num_train_timesteps:
        raise SpecError(f"timestep {t} is outside the schedule's -1..{schedule.num_train_timesteps - 1}.")
    if t == END and schedule.final_alpha == "one":
        return Level(1.0, 0.0)
    alpha, sigma = level_table(schedule)[:, max(t, 0)]
    return Level(float(alpha), float(sigma))


def ends_in_noise(schedule: NoiseSchedule) -> bool:
    """Whether the last timestep is pure noise: zero terminal SNR, or a flow."""
    return level(schedule, schedule.num_train_timesteps - 1).alpha == 0


def _leading(count: int, steps: int, offset: int) -> list[int]:
    # At `count` steps there is no room for an offset (diffusers runs off the end). Where steps do not divide count,
    # diffusers rounds the stride down and so starts far below the top (at 600 of 1000 for 600 steps, while x_T is pure
    # noise); here each timestep is rounded down instead.
    offset = offset if steps < count else 0
    return [i * count // steps + offset for i in reversed(range(steps))]


def _linspace(count: int, steps: int, offset: int) -> list[int]:
    # Counted from 0 up, so that halves round as in diffusers. One step starts at the top: there, at 0, the clean end.
    return [count - 1] if steps == 1 else np.linspace(0, count - 1, steps).round()[::-1].astype(int).tolist()


def _trailing(count: int, steps: int, offset: int) -> list[int]:
    return [round(count * (steps - i) / steps) - 1 for i in range(steps)]


def _lcm(count: int, steps: int, offset: int) -> list[int]:
    # The 50 timesteps that latent consistency models are distilled at, thinned out evenly from the top.
    if steps > LCM_TIMESTEPS or count < LCM_TIMESTEPS:
        raise SpecError(
            f"spacing 'lcm' has {LCM_TIMESTEPS} timesteps, for {steps} steps of {count}: use spacing 'trailing'."
        )
    stride = count // LCM_TIMESTEPS
    return [(LCM_TIMESTEPS - i * LCM_TIMESTEPS // steps) * stride - 1 for i in range(steps)]


SPACINGS: dict[str, Callable[[int, int, int], list[int]]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
    "lcm": _lcm,
}


@lru_cache(maxsize=4096)
def _timesteps(spaced: Callable[[int, int, int], list[int]], count: int, steps: int, offset: int) -> tuple[int, ...]:
    """A large study asks for the same few hundred trajectories in each of its cells."""
    return tuple(spaced(count, steps, offset))


def timestep_pairs(schedule: NoiseSchedule, steps: int, spacing: str, steps_offset: int = 1) -> list[tuple[int, int]]:
    """A trajectory as pairs (t, s): a step from timestep t to s < t; each s is the next pair's t, and the last s is -1.

    Spacings are those of arXiv 2305.08891, Table 2: `leading` (never visits the last timestep; with one step it starts
    at t = steps_offset, so it is of no use there), `linspace` (visits both ends), `trailing` (starts at the last
    timestep); and `lcm` (arXiv 2310.04378: at most 50 steps, among the 50 of the distillation).
    Exact at every count, so no timestep repeats. Raises `SpecError` for an unknown spacing, steps outside 1..T, more
    steps than the spacing has, or an offset that leads out of the schedule.
    """
    count = schedule.num_train_timesteps
    timesteps_of = lookup(SPACINGS, spacing, "spacing")
    if not 1 <= steps <= count:
        raise SpecError(f"steps: {steps} is outside 1..{count}, the schedule's num_train_timesteps.")
    timesteps = _timesteps(timesteps_of, count, steps, steps_offset)
    if timesteps[0] >= count:
        raise SpecError(f"steps_offset {steps_offset} at {steps} steps starts at timestep {timesteps[0]} of {count}.")
    return list(zip(timesteps, [*timesteps[1:], END], strict=True))


def check_pairs(pairs: Pairs) -> None:
    """Raise `SpecError` unless pairs descend and each one starts where the one before ended."""
    if not pairs:
        raise SpecError("timestep pairs: none given; timestep_pairs() makes them.")
    for t, s in pairs:
        if not t > s >= END:
            raise SpecError(f"timestep pair ({t}, {s}) does not descend to -1 or above.")
    for (_, end), (start, _) in pairwise(pairs):
        if end != start:
            raise SpecError(f"timestep pairs are not contiguous: one ends at {end}, the next starts at {start}.")
