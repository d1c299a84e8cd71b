"""EfficientNet-Lite0's stages as a perceptual distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from isocost.errors import DataError
from isocost.scoring.measures import load_measures
from isocost.scoring.pretrained import efficientnet_file, stage_distance

pytestmark = pytest.mark.skipif(efficientnet_file() is None, reason="the extra imagenet is not installed")


@pytest.fixture(scope="module")
def distance():
    return stage_distance()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 12, 12, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((64, 64))) for image in coarse])


def blurred(images: np.ndarray, radius: float) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))) for image in images])


def test_an_image_is_nearest_to_itself_and_farther_the_more_it_is_blurred(distance, pictures):
    assert (distance(pictures, pictures) == 0).all()
    light, heavy = (distance(blurred(pictures, radius), pictures) for radius in (1, 3))
    assert (light > 0).all() and (heavy > light).all()


def test_it_is_symmetric_and_does_not_hang_on_the_batch(distance, pictures):
    others = blurred(pictures, 2)
    together = distance(pictures, others)
    np.testing.assert_allclose(together, distance(others, pictures), rtol=1e-5)
    assert np.array_equal(distance(pictures[3:4], others[3:4]), together[3:4])


def test_against_the_formula(distance, pictures):
    """Hooks on the network's own forward pass see the same features."""
    others, seen = blurred(pictures, 2), {}
    module = distance._module
    hooks = [
        module._blocks[number].register_forward_hook(lambda _, __, out, n=number: seen.setdefault(n, []).append(out))
        for number in (0, 2, 4, 10, 15)
    ]
    with torch.no_grad():
        for images in (pictures, others):
            module.extract_features((torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128)
    for hook in hooks:
        hook.remove()
    expected = np.zeros(5)
    for first, second in seen.values():
        lengths = [features.norm(dim=1, keepdim=True) for features in (first, second)]
        expected += ((first / lengths[0] - second / lengths[1]) ** 2).sum(1).mean((1, 2)).numpy()
    np.testing.assert_allclose(distance(pictures, others), expected, rtol=1e-4)


def test_it_is_a_metric_of_pairs_by_a_name_of_its_own(distance):
    (measure,) = load_measures(["lite0-distance"])
    assert measure.label(measure.metric) == "lite0-distance"
    assert measure.identity.startswith("efficientnet-lite0-stages@") and measure.columns()[0].of == "pairs"
    with pytest.raises(DataError, match="do not pair up"):
        distance(np.zeros((1, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8))
