from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from isocost.specs import NoiseSchedule, TrainSettings
from isocost.training.timesteps import draw_timesteps


def draw(kind: str, count: int, timesteps: int = 1000) -> np.ndarray:
    settings = TrainSettings(
        images=8,
        batch=8,
        caption_dropout=0.0,
        timesteps=kind,  # pyright: ignore[reportArgumentType]
        schedule=NoiseSchedule(num_train_timesteps=timesteps),
    )
    return draw_timesteps(settings, np.random.default_rng(5), count)


@pytest.mark.parametrize(
    ("kind", "distribution"), [("uniform", stats.uniform()), ("logit_normal", stats.norm())], ids=["uniform", "normal"]
)
def test_shares_follow_their_distribution(kind, distribution):
    shares = (draw(kind, 20_000, timesteps=100_000) + 0.5) / 100_000
    values = np.log(shares / (1 - shares)) if kind == "logit_normal" else shares
    assert stats.kstest(values, distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
def test_every_timestep_is_inside_the_schedule(kind):
    drawn = draw(kind, 200_000, timesteps=4)
    assert drawn.dtype == np.int64 and set(drawn) == {0, 1, 2, 3}


def test_uniform_is_what_it_was():
    assert draw("uniform", 4).tolist() == np.random.default_rng(5).integers(1000, size=4).tolist()
