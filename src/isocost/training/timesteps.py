"""At which timesteps a network is trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isocost.specs import TrainSettings


def _uniform(generator: np.random.Generator, total: int, count: int) -> np.ndarray:
    return generator.integers(total, size=count)


def _logit_normal(generator: np.random.Generator, total: int, count: int) -> np.ndarray:
    shares = 1 / (1 + np.exp(-generator.standard_normal(count)))
    return np.minimum((shares * total).astype(np.int64), total - 1)  # a share of 1 is a rounding


SAMPLINGS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
}


def draw_timesteps(settings: TrainSettings, generator: np.random.Generator, count: int) -> np.ndarray:
    """Timesteps int64 [count] in 0..T-1: uniform, or the logit of their share of T is standard normal.

    The latter is Stable Diffusion 3's logit-normal density with m = 0 and s = 1 (arXiv 2403.03206, section 3.1), the
    best of those tried there. On a flow with a `shift` it is shifted with the schedule.
    """
    return SAMPLINGS[settings.timesteps](generator, settings.schedule.num_train_timesteps, count)
