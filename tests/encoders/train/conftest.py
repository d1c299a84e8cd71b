"""Small scenes by number, and a training that is stopped on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from isocost.data import scenes
from isocost.encoders.train import AutoencoderSettings, ClassifierSettings, ClipSettings
from isocost.encoders.train.steps import Images
from isocost.specs import SceneOptions

OPTIONS = SceneOptions(groups=1)


def images(numbers: range) -> np.ndarray:
    return scenes.draw(0, numbers, 16, OPTIONS)


def captions(numbers: range) -> list[str]:
    return [caption for caption, _ in scenes.describe_all(0, numbers, OPTIONS)]


def attributes(numbers: range) -> list[dict]:
    return [attributes for _, attributes in scenes.describe_all(0, numbers, OPTIONS)]


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """Scenes of 16 px with captions and attributes, and settings of encoders that fit them."""
    return SimpleNamespace(
        images=images,
        captions=captions,
        attributes=attributes,
        autoencoder=AutoencoderSettings(channels=(8, 8), images=96, batch=8, statistics_images=16),
        clip=ClipSettings(
            text_hidden=16,
            text_layers=1,
            image_hidden=16,
            image_layers=1,
            heads=2,
            patch=8,
            projection=8,
            vocabulary=600,
            tokenizer_captions=64,
            images=192,
            batch=16,
        ),
        classifier=ClassifierSettings(width=4, resolution=16, images=192, batch=16),
    )


@pytest.fixture
def stopping() -> Callable[[Images, int], Images]:
    """stopping(images, n): the same images, but whoever asks for number n is told to stop, as by a scheduler."""

    def stop_at(images: Images, number: int) -> Images:
        def given(numbers: range) -> np.ndarray:
            if number in numbers:
                os.kill(os.getpid(), signal.SIGTERM)
            return images(numbers)

        return given

    return stop_at
