from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.scoring.random_weights import random_images

from isocost.scoring.resize import clean_bicubic, tf1_bilinear

SIZES = [(32, 32), (256, 200), (299, 299), (640, 480)]


def batch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clean_bicubic_is_clean_fids(library, height, width):
    resizer = library("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    (image,) = random_images(1, height, width)
    expected = np.clip(resizer(image), 0, 255)
    found = clean_bicubic(batch(image), 299)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= 3e-3


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tf1_bilinear_is_torch_fidelitys(library, height, width):
    module = library("torch_fidelity.interpolate_compat_tensorflow")
    (image,) = random_images(1, height, width)
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(
        batch(image).float(), size=(299, 299), align_corners=False
    )
    assert (tf1_bilinear(batch(image), 299) - expected).abs().max() <= 1e-3
