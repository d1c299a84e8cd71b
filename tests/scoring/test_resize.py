from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.scoring.random_weights import random_images

from isocost.scoring.resize import RESIZES, clean_bicubic, tf1_bilinear

SHAPES = [(32, 32), (48, 31), (299, 299), (400, 301), (640, 512)]


def pixels(height: int, width: int, count: int = 2) -> tuple[np.ndarray, torch.Tensor]:
    """White noise, on which resizes differ most, as [N, H, W, 3] and as [N, 3, H, W]."""
    images = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return images, torch.from_numpy(images).permute(0, 3, 1, 2)


def pillow_bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """As clean-fid: each channel as float, clipped and not rounded. [H, W, 3] -> [3, size, size]."""
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 255) for c in channels])


def tensorflow_1(image: np.ndarray, size: int) -> np.ndarray:
    """`resize_bilinear` without aligned corners, from its definition, whose places are float32. -> [3, size, size]."""

    def places(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(size, dtype=np.float32) * np.float32(side / size)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, side - 1), at - low

    (top, bottom, down), (left, right, across) = places(image.shape[0]), places(image.shape[1])
    values = image.astype(np.float64).transpose(2, 0, 1)
    rows = values[:, top] * (1 - down)[:, None] + values[:, bottom] * down[:, None]
    return rows[:, :, left] * (1 - across) + rows[:, :, right] * across


@pytest.mark.parametrize("shape", SHAPES)
def test_clean_is_pillow_s_bicubic(shape):
    images, tensor = pixels(*shape)
    expected = np.stack([pillow_bicubic(image, 299) for image in images])
    assert np.abs(clean_bicubic(tensor, 299).numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_tf1_is_tensorflow_s_bilinear(shape):
    images, tensor = pixels(*shape)
    expected = np.stack([tensorflow_1(image, 299) for image in images])
    assert np.abs(tf1_bilinear(tensor, 299).numpy() - expected).max() < 1e-4


def test_tf1_is_torch_fidelity_s():
    # Recorded from torch-fidelity 0.4.0: interpolate_bilinear_2d_like_tensorflow1x, 40 x 56 to 7 x 7, channel 0, row 3.
    recorded = [149.5714111, 98.2856980, 22.9999771, 70.5714264, 81.7142944, 100.5714111, 73.4285736]
    ours = tf1_bilinear(torch.from_numpy(random_images(1, 40, 56)).permute(0, 3, 1, 2), 7)
    np.testing.assert_allclose(ours[0, 0, 3].numpy(), recorded, atol=1e-4)


@pytest.mark.parametrize("name", RESIZES)
def test_an_image_does_not_depend_on_the_others(name):
    _, tensor = pixels(48, 31, count=5)
    together = RESIZES[name](tensor, 64)
    assert together.dtype == torch.float32 and together.shape == (5, 3, 64, 64)
    assert torch.equal(RESIZES[name](tensor[3:4], 64), together[3:4])


@pytest.mark.parametrize("name", RESIZES)
def test_pixels_stay_pixels(name):
    _, tensor = pixels(70, 90)
    resized = RESIZES[name](tensor, 64)
    assert resized.min() >= 0 and resized.max() <= 255
    assert torch.equal(RESIZES[name](tensor.float(), 64), resized)
    assert torch.equal(RESIZES[name](torch.full((1, 3, 9, 9), 77), 64).round(), torch.full((1, 3, 64, 64), 77.0))
    same = torch.arange(3 * 64 * 64, dtype=torch.float32).reshape(1, 3, 64, 64) % 256
    assert torch.equal(RESIZES[name](same, 64), same)
