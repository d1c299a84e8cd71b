from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isocost.encoders.latents import LatentShards
from isocost.encoders.precompute import precompute
from isocost.specs import DataSource, Ema, LrSchedule, ModelSpec, Optimizer, TrainSpec


class Pixels:
    """An autoencoder that only averages: 16 px -> latents [4,4,4]."""

    digest = "pixels"

    def encode(self, images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255 - 0.5
        return (4 * np.concatenate([blocks, blocks[:, :1]], 1)).astype(np.float32)


class Letters:
    """A text encoder whose embeddings [3,8] are noise, fixed by the caption's letters."""

    digest = "letters"

    def encode(self, captions: list[str]) -> np.ndarray:
        return np.stack(
            [np.random.default_rng(list(c.encode())).standard_normal((3, 8), dtype=np.float32) for c in captions]
        )


def latents_of_scenes(folder: Path, images: int = 40) -> LatentShards:
    return precompute(DataSource(resolution=16, images=images), Pixels(), Letters(), folder)


def tiny_spec(data: LatentShards, **changes) -> TrainSpec:
    fields = {
        "model": ModelSpec(family="micro", width=4, context_dim=8, num_heads=2),
        "data": data.spec,
        "images": 96,
        "batch": 8,
        "caption_dropout": 0.25,
        "optimizer": Optimizer(lr=3e-3),
        "lr_schedule": LrSchedule(warmup_images=24),
        "ema": Ema(halflife_images=40),
        "checkpoints": (32, 96),
        "seed": 3,
    }
    return TrainSpec(**{**fields, **changes})


@pytest.fixture(scope="session")
def make_data():
    return latents_of_scenes


@pytest.fixture(scope="session")
def make_spec():
    return tiny_spec


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> LatentShards:
    return latents_of_scenes(tmp_path_factory.mktemp("latents"))
